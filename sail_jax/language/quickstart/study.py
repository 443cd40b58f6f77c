"""Runs the stages of the language quickstart and shows what came of them."""

import shlex
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sail_jax import configfile, tables, terminal
from sail_jax.errors import Interrupted
from sail_jax.files import ROOM, writing
from sail_jax.language import export
from sail_jax.language import task as language_task
from sail_jax.language.quickstart import frontier, grammar
from sail_jax.language.quickstart.config import (
    METHODS,
    REVIEWS,
    SFT,
    QuickstartRun,
    alignment,
    check,
    supervised,
)
from sail_jax.language.quickstart.frontier import Point
from sail_jax.language.sft import task as sft_task
from sail_jax.language.supervised import task as supervised_task
from sail_jax.language.supervised.config import MODEL
from sail_jax.training import rundir, trainer
from sail_jax.training.result import Result

SHOWN = 8
"""Prompts in the table of samples."""


class Exchange(NamedTuple):
    """A prompt and what two models answer."""

    prompt: str
    before: str
    after: str


class QuickstartResult(NamedTuple):
    """What the stages came to."""

    loss: float
    """Of the supervised stage on held-out reviews, nats per response."""
    entropy: float
    """Of the grammar, which bounds it."""
    curves: dict[str, list[Point]]
    """The evaluations of each method, the first one before any update."""
    samples: list[Exchange]
    """Before alignment, and after SAIL-RevKL's."""


def run(
    run: QuickstartRun, run_dir: Path, resume: bool = False, quiet: bool = False
) -> QuickstartResult:
    """Runs all stages; on `resume` those that are done are left as they are.

    Raises:
      UserError, TrainingFailed, Interrupted: as of `trainer.train`.
    """
    check(run)
    with rundir.claimed(run, run_dir, resume):
        configfile.write(run, run_dir / 'config.yaml')
        if not (run_dir / REVIEWS).exists():
            part = run_dir / f'{REVIEWS}.part'
            with writing(run_dir / REVIEWS, ROOM):
                grammar.write(run.reviews, run.seed, part)
                part.replace(run_dir / REVIEWS)
        try:
            first = _train(run, run_dir, quiet)
        except Interrupted as stop:
            where = shlex.quote(str(run_dir))
            raise Interrupted(
                'stopped and saved; go on with: '
                f'sail-jax train {where}/config.yaml --run-dir {where} --resume',
                status=stop.status,
            ) from None
        curves = {title: frontier.points(run_dir / name) for name, title in METHODS.items()}
        with writing(run_dir, ROOM):
            frontier.write(curves, run_dir)
        return QuickstartResult(
            loss=first.after['eval/response_loss'],
            entropy=grammar.entropy(run.seed, run.reviews.reviews),
            curves=curves,
            samples=samples(run, run_dir),
        )


def _train(run: QuickstartRun, run_dir: Path, quiet: bool) -> Result:
    """All stages, from where they are; gives back the supervised one's result."""
    directory, settings = run_dir / SFT, supervised(run, run_dir)
    leave_model = partial(supervised_task.leave_model, settings, directory)
    task, begun = sft_task.make(settings), _begun(directory)
    first: Any = trainer.train(settings, task, directory, begun, quiet, leave_model)
    for name, title in METHODS.items():
        if not quiet:
            terminal.say(title)
        directory, settings = run_dir / name, alignment(run, run_dir, name)
        task = language_task.make(settings, run_dir=directory)
        trainer.train(settings, task, directory, _begun(directory), quiet)
    return first


def _begun(directory: Path) -> bool:
    """Whether a stage can go on; what cannot is removed."""
    begun = (directory / 'config.yaml').exists()
    if not begun:
        shutil.rmtree(directory, ignore_errors=True)
    return begun


def samples(run: QuickstartRun, run_dir: Path) -> list[Exchange]:
    """What the model says before and after its alignment by SAIL-RevKL, on the same random
    numbers."""
    prompts = list(dict.fromkeys(review.prompt for review in grammar.reviews(run.seed, 100)))
    answers = []
    for path in (run_dir / SFT / MODEL, run_dir / list(METHODS)[-1]):
        decoder, tokenizer, _ = export.load(path)
        groups = export.generate(
            decoder, tokenizer, prompts[:SHOWN], run.alignment.sampling, seed=run.seed
        )
        answers.append([group[0].strip() for group in groups])
    return [Exchange(*row) for row in zip(prompts, *answers, strict=False)]


def report(outcome: QuickstartResult) -> None:
    """Prints the samples, and where each method ended."""
    terminal.print_table(
        f'Samples; held-out loss {outcome.loss:.2f} nats per response, entropy of the grammar '
        f'{outcome.entropy:.2f}',
        ('prompt', 'start', 'after SAIL-RevKL'),
        outcome.samples,
        justify='left',
    )
    start = next(iter(outcome.curves.values()))[0]
    rows = [('start', start), *((name, curve[-1]) for name, curve in outcome.curves.items())]
    terminal.print_table(
        'Responses to held-out prompts',
        ('', 'sentiment', 'win rate', 'KL to start, nats', 'tokens'),
        [
            (
                name,
                f'{point.reward:.3f} ± {point.reward_se:.2g}',
                f'{point.win_rate:.2f}',
                f'{point.kl:.2f}',
                f'{point.length:.1f}',
            )
            for name, point in rows
        ],
    )
    terminal.out(f'what they mean: {tables.MEANINGS}')
