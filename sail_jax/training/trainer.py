"""Trains a run: open; first evaluation; the loop of updates; finish."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sail_jax import config
from sail_jax.core import update
from sail_jax.errors import UserError
from sail_jax.sweep import Members
from sail_jax.training import devices, finishing, hosts, metrics, opening, rundir, signals
from sail_jax.training.callbacks import NO_CALLBACKS, Callbacks
from sail_jax.training.loop import Instruments, Loop
from sail_jax.training.progress import ProgressBar
from sail_jax.training.recorder import Recorder
from sail_jax.training.result import Result
from sail_jax.training.saver import FailedSaves
from sail_jax.training.setup import Job
from sail_jax.training.task import Task


# parameters: what a run is, and how it is run, by name.
def train(
    run: config.Trained,
    task: Task,
    run_dir: Path,
    resume: bool = False,
    quiet: bool = False,
    finish: Callable[[Result], None] = lambda result: None,
    callbacks: Callbacks = NO_CALLBACKS,
    in_turn: bool = False,
) -> Result | list[Result]:
    """Trains to the end of the configuration, or of the label budget, or until a callback ends it.

    Args:
      run: the configuration.
      task: the workload.
      run_dir: where everything goes; see `runs.default_run_dir`.
      resume: go on from the newest checkpoint, bit for bit.
      quiet: no progress bar.
      finish: done with the result of a run that is no sweep, while the directory is still its own.
      callbacks: the user's, that see its numbers and may end it.
      in_turn: it is one of several that are trained one after the other: once a callback has ended
        it, it stays at its end while they go on.

    Returns:
      One result; of a sweep, a list of its members'.

    Raises:
      UserError: a run directory or a reference that cannot be used; nothing was overwritten.
      TrainingFailed: too many gradient steps in a row were not finite; a reward that does not
        answer; a device's memory was not enough; no checkpoint could be written.
      Interrupted: SIGINT or SIGTERM; the state was saved.
    """
    began = time.perf_counter()
    metrics.check(run)
    if task.workload is not None:
        update.check(run, task.workload.group_size, Members.of(run).sweep)
    devices.require_memory(task.batch_bytes(), 'a batch of this configuration')
    callbacks.check()
    told = {'resume': resume, 'quiet': quiet, 'callbacks': callbacks, 'in_turn': in_turn}
    job = hosts.together(lambda: Job.of(run, task, run_dir, **told))
    hosts.require_same(job.inputs)
    state = devices.size(job.layout.state)
    devices.require_memory(state, 'the training state of this configuration')
    with alone(), rundir.claimed(run, run_dir, resume):
        result = _train(job, began)
        if isinstance(result, Result):
            finish(result)
        return result


_training = threading.Lock()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keeps other threads, and the callbacks of this one, from training meanwhile: saves of two
    runs in one process take each other's signals, and some wait for ever.

    Raises:
      UserError: there is a run under way.
    """
    if not _training.acquire(blocking=False):
        raise UserError(
            'this process trains already, in another thread or around this call; wait for its end, '
            'or take another process'
        )
    try:
        yield
    finally:
        _training.release()


def _train(job: Job, began: float) -> Result | list[Result]:
    """`train`, once the directory is the run's; it began at a time of `time.perf_counter`."""
    task = job.task
    with contextlib.ExitStack() as exits:
        hidden = job.quiet or not hosts.is_main()
        every = task.evaluate_every
        shown = ProgressBar(task.updates, task.watch, task.unit, evaluate_every=every, quiet=hidden)
        bar = exits.enter_context(shown)
        bar.stage('preparing the start policy')
        weights = opening.load(job)
        exits.enter_context(devices.memory_named(f'{task.smaller}; {job.saved}'))
        failed = FailedSaves()
        saver = exits.enter_context(opening.open_saver(job, failed))
        caught = exits.enter_context(signals.collected())
        exits.enter_context(signals.ending_compilations(caught, job.run_dir))
        opened = opening.begin(job, weights, saver, bar)
        del weights  # A start policy that is kept as the reference alone.
        hosts.on_main(lambda: rundir.hold_members(job.members, job.run_dir, exits))
        recorder = Recorder(job, began - opened.wall_s, opened.written, failed, bar)
        exits.enter_context(recorder)
        loop = Loop(job, opened, Instruments(bar, saver, recorder, caught))
        loop.evaluate_start()
        loop.evaluate_waiting()
        loop.train()
        return finishing.finish(loop)
