"""Runs the stages of the language quickstart and shows what came of them."""

from pathlib import Path
from typing import NamedTuple

from sail_jax import config, trainer
from sail_jax.language import grammar
from sail_jax.language import task as language_task
from sail_jax.language.quickstart import frontier
from sail_jax.language.quickstart.config import METHODS, QuickstartRun, alignment, check, sft
from sail_jax.language.quickstart.frontier import Point
from sail_jax.language.sft import task as sft_task
from sail_jax.trainer import Result

SHOWN = 8
"""Prompts in the table of samples."""


class Outcome(NamedTuple):
    """What the stages came to."""

    sft: Result
    curves: dict[str, list[Point]]
    """The evaluations of each method, the first one before any update."""
    samples: list[tuple[str, str, str]]
    """Prompt, and what follows it before and after SAIL-RevKL."""


def run(run: QuickstartRun, run_dir: Path, resume: bool = False, quiet: bool = False) -> Outcome:
    """Runs all stages; on `resume` those that are done are left as they are.

    Raises:
      UserError, TrainingFailed, Interrupted: as of `trainer.train`.
    """
    check(run)
    trainer.claim_run_dir(run, run_dir, resume)
    config.write(run, run_dir / 'config.yaml')
    if not (run_dir / 'reviews').exists():
        grammar.write(run.reviews, run.seed, run_dir / 'reviews')

    def begun(directory: Path) -> bool:
        return (directory / 'config.yaml').exists()

    directory = run_dir / 'sft'
    supervised = sft_task.train(sft(run, run_dir), directory, begun(directory), quiet)
    for name in METHODS:
        directory, settings = run_dir / name, alignment(run, run_dir, name)
        task = language_task.make(settings, run_dir=directory)
        result = trainer.train(settings, task, directory, begun(directory), quiet)
    curves = {title: frontier.points(run_dir / name) for name, title in METHODS.items()}
    frontier.write(curves, run_dir)
    return Outcome(supervised, curves, samples(settings, result))
