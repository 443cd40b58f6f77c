"""Runs that a study finds in its directory, and reads in the place of training them again."""

import sys
from pathlib import Path
from typing import Any

from sail_jax import configfile, runs
from sail_jax.errors import UserError

ASIDE = ('checkpoints.', 'logging.')
"""Settings that change no number."""


def require_same(run: Any, run_dir: Path) -> None:
    """Refuses a run that is there with other settings, whose numbers would stand for this one's.

    Raises:
      UserError: naming the first setting that differs.
    """
    file = run_dir / runs.CONFIG
    if not file.exists():
        return
    theirs, ours = (configfile.flatten(one) for one in (runs.load(file), run))
    for key in sorted(theirs.keys() & ours.keys()):
        if theirs[key] != ours[key] and not key.startswith(ASIDE):
            raise UserError(
                f'{run_dir}: has a run with {key}: {theirs[key]!r:.80}, and not '
                f'{ours[key]!r:.80}; name another directory'
            )


def command(config: str | Path, words: list[str], run_dir: Path) -> list[str]:
    """`sail-jax train` of a file with options, for a process of its own: begins the run, or goes on
    with it.

    Raises:
      UserError: there is a run with other settings.
    """
    require_same(configfile.override(runs.load(config), words, 'train', ''), run_dir)
    train = [sys.executable, '-m', 'sail_jax.cli', 'train', str(config)]
    resume = ['--resume'] if (run_dir / runs.CONFIG).exists() else []
    return [*train, '--run-dir', str(run_dir), *words, *resume]
