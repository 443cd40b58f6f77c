"""How a run begins, or goes on from where it was."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sail_jax import configfile
from sail_jax.core.types import Policy, State
from sail_jax.errors import UserError
from sail_jax.files import ROOM, writing
from sail_jax.training import checkpoint, hosts, listing, references, rundir, setup
from sail_jax.training.progress import ProgressBar
from sail_jax.training.rows import MetricsRow
from sail_jax.training.saver import FailedSaves, Saver
from sail_jax.training.setup import Job


class Weights(NamedTuple):
    """What the workload makes or loads before anything is saved."""

    start: Policy | None
    """None where a run goes on, whose own start policy is on the disk."""
    shared: Any
    """`State.shared`."""


class Opened(NamedTuple):
    """Where training begins or goes on."""

    start: Policy | None
    """None where it is the state's reference, see `Task.reference_stays`."""
    state: State
    before: list[MetricsRow]
    """The evaluation of the start policy, a row a member; empty where it is still to be made."""
    waiting: list[MetricsRow]
    """Where a signal came before an evaluation that was due: its update's rows, one a member."""
    wall_s: float
    """Seconds of the processes that trained before."""
    patience: Sequence[Any] = ()
    """`Patience.kept` of a run that goes on."""
    closed: bool = False
    """`LabelBudget.closed` of a run that goes on."""
    ended: int | None = None
    """The length, in updates, of a run that a callback has ended before."""

    @property
    def written(self) -> int | None:
        """The last update whose rows stay in `metrics.jsonl`; None where the run begins.

        A row that waited for its evaluation is written anew: it may be there without.
        """
        return int(np.max(self.state.step)) - bool(self.waiting) if self.before else None


def load(job: Job) -> Weights:
    """The start policy of a run that begins, and what policies stand on.

    Raises:
      UserError: what they are made of cannot be used; a run has updates, and no checkpoint.
    """
    begun = job.resume and listing.has_begun(job.checkpoints)
    if job.resume and not begun and rundir.updated(job.members, job.run_dir):
        raise UserError(f'{job.checkpoints}: no checkpoint, though metrics.jsonl has updates')
    try:
        # Killed before anything was saved, a run begins again.
        start = None if begun else setup.start_policy(job.members, job.task)
        return Weights(start, job.task.shared())
    except UserError:
        if not job.resume and hosts.is_main():  # The directory is free for the corrected run.
            (job.run_dir / 'config.yaml').unlink()
        raise


def open_saver(job: Job, failed: FailedSaves) -> Saver:
    """Saves of the run; `failed` is told of those that fail."""
    with writing(job.checkpoints, ROOM):
        return Saver(job.checkpoints, job.run.checkpoints, failed)


def begin(job: Job, weights: Weights, saver: Saver, bar: ProgressBar) -> Opened:
    """The state that training begins with; or goes on with, where a checkpoint was written.

    Raises:
      UserError: as of `checkpoint.restore`; the run would be shortened; files that it reads have
        changed.
      TrainingFailed: the start policy cannot be written.
    """
    start = _start(job, weights.start)
    if job.resume and hosts.any_process(bool(listing.saved_steps(job.checkpoints))):
        opened = _restored(job, start, weights.shared, saver)
    else:
        if job.resume and hosts.is_main():
            rundir.keep_rows_aside(job.members, job.run_dir)
        bar.stage('compiling the start')
        state = setup.initial_state(job.members, job.task, start, weights.shared, job.layout)
        opened = Opened(start, state, before=[], waiting=[], wall_s=0.0)
    if job.task.reference_stays:
        opened = opened._replace(start=None)
    if job.resume and hosts.is_main():
        configfile.write(job.run, job.run_dir / 'config.yaml')
    return opened


def _start(job: Job, start: Policy | None) -> Policy:
    """The start policy as it lies on the devices, and on the disk."""
    if start is None:
        checkpoint.require_own(job.checkpoints, job.settings)
        return references.restore_start(job.checkpoints, job.layout.policy)
    placed: Any = hosts.place(start, job.layout.shardings.policy)
    with writing(job.checkpoints / 'start', ROOM):
        references.save_start(job.checkpoints, placed)
    return placed


def _restored(job: Job, start: Policy, shared: Any, saver: Saver) -> Opened:
    state, meta = checkpoint.restore(saver.manager, job.layout.state, job.settings)
    rundir.require_not_shortened(job.task, int(np.max(state.step)), job.run_dir)
    rundir.require_same_files(job.run_dir, meta.get('read', {}), job.digests)
    state = state._replace(shared=shared)
    return Opened(
        start=start,
        state=state,
        before=meta['before'],
        waiting=meta['held'],
        wall_s=meta['wall_s'],
        patience=meta.get('patience', ()),
        closed=meta.get('closed', True),
        ended=meta.get('ended'),
    )
