"""What can be made of a run that is in its directory: a picture, an export, answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sail_jax import configfile, files, runs, workloads
from sail_jax.errors import UserError
from sail_jax.kind import Command, Saved


def _saved(
    run_dir: Path, best: bool, command: Command, handed: Mapping[str, Any]
) -> tuple[Callable[..., Any], Saved, dict[str, Any]]:
    """What a workload has for a command, the run that it is about, and what is handed in.

    Raises:
      UserError: no run there, or one of a workload that does not know the command.
    """
    run = runs.load(run_dir / runs.CONFIG)
    kind = workloads.of(run)
    write = getattr(kind, command)
    if write is None:
        raise UserError(f'{run_dir}: {command} is for {workloads.names(command)} runs')
    handed = kind.accepted(handed)
    policies = lambda: runs.open_run(run_dir, best, **handed)[1:]
    return write, Saved(run=run, run_dir=run_dir, best=best, policies=policies), handed


# parameters: those of the command, all but the first two by name
def render(
    run_dir: str | Path,
    out: str | Path = 'episode.html',
    *,
    seed: int = 0,
    stochastic: bool = False,
    start: bool = False,
    best: bool = False,
    **handed: Any,
) -> float:
    """Writes an episode of a run's policy as a web page that needs nothing else.

    Args:
      seed: of the start state and the noise.
      stochastic: sample actions, instead of taking the distribution's mode.
      start: the policy before training.
      best: as of `open_run`.
      **handed: the environment that `train` was called with.

    Returns:
      The episode's return.

    Raises:
      UserError: as of `open_run`; a workload or an environment of which there is no picture.
    """
    write, saved, handed = _saved(Path(run_dir), best, 'render', handed)
    return write(saved, Path(out), seed=seed, stochastic=stochastic, start=start, **handed)


# parameters: those of the command, all but the first two by name
def export(
    run_dir: str | Path,
    out: str | Path,
    *,
    best: bool = False,
    adapter: bool = False,
    dtype: str | None = None,
    **handed: Any,
) -> Path:
    """Writes a run's policy as others read it: a Brax PPO checkpoint, or a Hugging Face directory.

    Args:
      out: a new directory.
      best: as of `open_run`.
      adapter: of a language run, the adapter alone, as PEFT reads it.
      dtype: of a language run's tensors; None keeps the parameters'.
      **handed: the environment that `train` was called with.

    Returns:
      Where it is.

    Raises:
      UserError: as of `open_run`; the directory exists.
      TrainingFailed: it cannot be written.
    """
    write, saved, handed = _saved(Path(run_dir), best, 'export', handed)
    return write(saved, Path(out), adapter=adapter, dtype=dtype, **handed)


def generate(
    model: str | Path, prompts: Sequence[str], *, best: bool = False, **options: Any
) -> list[list[str]]:
    """A language model's responses to prompts, [N][samples].

    Args:
      model: a run, or a Hugging Face directory.
      best: of a run, as of `open_run`.
      **options: `chat`, `samples`, `max_tokens`, `temperature`, `seed`; see
        `sail_jax.language.export.respond`.

    Raises:
      UserError: no model there; a prompt that it cannot take; a setting out of bounds.
      TrainingFailed: a device's memory was not enough.
    """
    model = Path(model)
    if files.exists(model / runs.CONFIG):
        data, _ = configfile.read_yaml(model / runs.CONFIG)
        respond = workloads.of_file(data, model / runs.CONFIG).generate
        if respond is None:
            raise UserError(f'{model}: generate is for {workloads.names("generate")} runs')
    else:
        respond, *_ = [kind.generate for kind in workloads.kinds() if kind.generate is not None]
    return respond(model, prompts, best=best, **options)
