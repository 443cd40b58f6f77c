"""What lies in a directory of checkpoints, by its names; no checkpoint is opened."""

import shutil
from pathlib import Path

from sail_jax.errors import UserError

UNFINISHED = '.orbax-checkpoint-tmp'
"""In the name of a save until it is whole."""


def has_begun(directory: Path) -> bool:
    """Whether a run has saved anything there; the first thing is its start policy."""
    return (directory / 'start').exists() or bool(saved_steps(directory))


def saved_steps(directory: Path) -> list[int]:
    """Names of what was saved entirely; Orbax renames a directory once it is."""
    paths = directory.iterdir() if directory.is_dir() else []
    return [int(path.name) for path in paths if _is_step(path.name)]


def _is_step(name: str) -> bool:
    """`08` and the like are names that somebody else gave."""
    return name.isdecimal() and len(name) <= 10 and name == str(int(name)) and int(name) < 2**31


def refuse_odd_names(directory: Path) -> None:
    """Orbax takes any digits for a step, and would keep, rename and delete by the number.

    Raises:
      UserError: naming a checkpoint, or a reference, whose name no run gave it.
    """
    for parent in (directory, directory / 'references'):
        for path in sorted(parent.iterdir()) if parent.is_dir() else []:
            if path.name.isdigit() and not _is_step(path.name):
                raise UserError(
                    f'{path}: no name that a run gives; a checkpoint is named by its updates, '
                    'in plain digits: rename it, or move it away'
                )


def drop_unfinished(directory: Path) -> None:
    """Deletes what failed and killed saves have left, which takes room and is read by nobody."""
    for path in (directory, directory / 'references'):
        for left in path.glob(f'*{UNFINISHED}*'):
            shutil.rmtree(left, ignore_errors=True)
