"""Policies that are saved on their own: the start policy, and the reference of each refresh.

The reference is constant between refreshes and saved once for each, before the first checkpoint
that needs it: `references/STEP` is what was taken after STEP updates, and a checkpoint's is the
last of those up to its own step. What was taken after none is `start`, the start policy.
"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp

from sail_jax import files
from sail_jax.core.types import Policy, State
from sail_jax.errors import UserError, one_line
from sail_jax.training import hosts, quiet
from sail_jax.training.listing import saved_steps


def save_start(directory: Path, policy: Policy) -> None:
    """The policy that a run starts from, saved once: later numbers are relative to it."""
    _save_policy(directory / 'start', policy)


def restore_start(directory: Path, abstract: Policy) -> Policy:
    """What `save_start` saved.

    Raises:
      UserError: if it is missing or damaged.
    """
    path = directory / 'start'
    try:
        return read(path, abstract)
    except Exception as error:
        reason = one_line(error)
        raise UserError(f'{path}: cannot be read ({reason})') from None


def _save_policy(path: Path, policy: Policy) -> None:
    def write() -> None:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), policy)

    quiet.saving(write)


def read(path: Path, abstract: Policy) -> Policy:
    """A policy that is saved on its own."""
    quiet.silence_failed_saves()
    with ocp.StandardCheckpointer() as checkpointer:
        return Policy(*checkpointer.restore(path.absolute(), as_saved(path, abstract))[:2])


class _Policy4(NamedTuple):
    """A policy on the disk, up to schema 4."""

    params: Any
    fixed: Any
    """`Policy.statistics`."""
    frozen: tuple[()] = ()


def as_saved(path: Path, abstract: Policy) -> Policy | _Policy4:
    """The policy to restore, in the parts that it was saved in."""
    files.require_regular(path)
    directory: Any = path.absolute()
    parts = ocp.StandardCheckpointHandler().metadata(directory)
    return _Policy4(*abstract) if 'fixed' in parts else abstract


def path_of(directory: Path, training: dict[str, Any]) -> Path:
    """Where the reference of a state lies; `training` is as of `checkpoint`."""
    # Members of a sweep have one step each; whenever one of them is refreshed, the latest changes.
    step = int(np.max(training['reference_step']))
    return directory / 'references' / str(step) if step else directory / 'start'


def save(directory: Path, state: State) -> None:
    """Saves a state's reference unless it is there; deletes those that no checkpoint needs."""
    path = path_of(directory, state._asdict())
    if hosts.is_main():
        _drop_references(directory, path.name)
    if not hosts.any_process(hosts.is_main() and path.exists()):
        _save_policy(path, state.reference)


def _needed(directory: Path, step: int) -> int:
    """The reference of a checkpoint."""
    references = saved_steps(directory / 'references')
    return max((taken for taken in references if taken <= step), default=0)


def _drop_references(directory: Path, current: str) -> None:
    kept = {current, *(str(_needed(directory, step)) for step in saved_steps(directory))}
    for path in (directory / 'references').glob('*'):
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def set_aside(directory: Path, damaged: Sequence[int], reference: int) -> None:
    """Renames damaged checkpoints and their references, as far as they are later than what the run
    goes on with; it takes later references anew."""
    now = time.time_ns()
    for taken in {_needed(directory, step) for step in damaged}:
        if taken > reference:
            path = directory / 'references' / str(taken)
            path.rename(directory / f'damaged-reference-{taken}-{now}')
    for step in damaged:
        (directory / str(step)).rename(directory / f'damaged-{step}-{now}')
    _drop_references(directory, str(reference))
