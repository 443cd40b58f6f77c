"""The host loop: dispatch, log, evaluate, checkpoint, stop."""

import contextlib
import math
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np

from sail_jax import config, configfile
from sail_jax.core import update
from sail_jax.core.update import Policy, State
from sail_jax.errors import TrainingFailed, UserError
from sail_jax.files import ROOM, writing
from sail_jax.sweep import Member, Members
from sail_jax.training import checkpoint, devices, hosts, metrics, rundir, setup, signals
from sail_jax.training.metrics import Row
from sail_jax.training.progress import ProgressBar
from sail_jax.training.recorder import Recorder
from sail_jax.training.result import Result
from sail_jax.training.saver import Saver
from sail_jax.training.setup import Layout
from sail_jax.training.task import Task

BROKEN = 1e12
"""What a broken episode, or a response without a reward, takes from an evaluation's score: one with
fewer of them is better, whatever its numbers are."""


def train(
    run: config.Trained,
    task: Task,
    run_dir: Path,
    resume: bool = False,
    quiet: bool = False,
    finish: Callable[[Result], None] = lambda result: None,
) -> Result | list[Result]:
    """Trains to the end of the configuration, or of the label budget.

    Args:
      run: the configuration.
      task: the workload.
      run_dir: where everything goes; see `default_run_dir`.
      resume: go on from the newest checkpoint, bit for bit.
      quiet: no progress bar.
      finish: done with the result of a run that is no sweep, while the directory is still its own.

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
    devices.require_memory(task.batch_bytes(), 'a batch of this configuration')
    members = Members.of(run)
    layout, read = Layout.of(members, task), task.digests()
    devices.require_memory(devices.size(layout.state), 'the training state of this configuration')
    with rundir.claimed(run, run_dir, resume):
        result = _train(members, task, layout, read, run_dir, resume, quiet, began)
        if isinstance(result, Result):
            finish(result)
        return result


def _train(
    members: Members,
    task: Task,
    layout: Layout,
    read: dict[str, str],
    run_dir: Path,
    resume: bool,
    quiet: bool,
    began: float,
) -> Result | list[Result]:
    """`train`, once the directory is the run's.

    Args:
      read: `Task.digests`.
      began: when, by `time.perf_counter`.
    """
    directory = run_dir / 'checkpoints'
    run, (seed, hyper) = members.run, setup.identity(members, task)
    judge = setup.evaluation(members, task)
    saved = f'checkpoints so far are in {directory}'
    begun = resume and checkpoint.has_begun(directory)
    if resume and not begun and rundir.updated(members, run_dir):
        raise UserError(f'{directory}: no checkpoint, though metrics.jsonl has updates')
    with contextlib.ExitStack() as exits:
        bar = exits.enter_context(
            ProgressBar(task.updates, task.watch, task.unit, quiet or not hosts.is_main())
        )
        bar.stage('preparing the start policy')
        try:
            # Killed before anything was saved, a run begins again.
            start = None if begun else setup.start_policy(members, task)
            shared = task.shared()
        except UserError:
            if not resume and hosts.is_main():  # The directory is free for the corrected run.
                (run_dir / 'config.yaml').unlink()
            raise
        exits.enter_context(devices.memory_named(f'{task.smaller}; {saved}'))
        with writing(directory, ROOM):
            saver = Saver(
                directory, run.checkpoints, lambda *failure: recorder.note_failed_save(*failure)
            )
        exits.enter_context(saver)
        caught = exits.enter_context(signals.collected())
        if start is None:
            checkpoint.require_own(directory, run.model_dump(mode='json'))
            start = checkpoint.restore_start(directory, layout.policy)
        else:
            start = hosts.place(start, layout.shardings.policy)
            with writing(directory / 'start', ROOM):
                checkpoint.save_start(directory, start)
        if resume and hosts.any_process(bool(checkpoint.saved_steps(directory))):
            state, meta = checkpoint.restore(
                saver.manager, layout.state, run.model_dump(mode='json')
            )
            rundir.require_not_shortened(task, int(np.max(state.step)), run_dir)
            state = state._replace(shared=shared)
            before, held, began = meta['before'], meta['held'], began - meta['wall_s']
            rundir.require_same_files(run_dir, meta.get('read', {}), read)
        else:
            if resume and hosts.is_main():
                rundir.keep_rows_aside(members, run_dir)
            bar.stage('compiling the start')
            state = setup.initial_state(members, task, start, shared)
            before, held = [], []
        if resume and hosts.is_main():
            configfile.write(run, run_dir / 'config.yaml')
        step, size = int(np.max(state.step)), task.updates_per_dispatch
        hosts.on_main(lambda: rundir.hold_members(members, run_dir, exits))
        recorder = exits.enter_context(
            Recorder(members, task, run_dir, began, state if before else None, bool(held), bar)
        )

        def evaluate() -> list[Row]:
            numbers = jax.device_get(judge(state.policy, start, state.shared, seed, hyper))
            rows = setup.split(members, numbers)
            return [{f'eval/{key}': float(value) for key, value in row.items()} for row in rows]

        def save(score: float, wait: bool = False) -> bool:
            meta = {'before': before, 'held': held, 'wall_s': recorder.wall_s(), 'read': read}
            return saver.save(step, state, meta | checkpoint.origin(run), score, wait)

        def stop(score: float = -math.inf) -> NoReturn:
            if save(score, wait=True):
                number = caught[0] if caught else signal.SIGTERM  # Another process got it.
                raise signals.interrupted(number, recorder.at(step), run_dir)
            raise TrainingFailed(
                f'stopped at {recorder.at(step)} by a signal, and this checkpoint could not be '
                f'written; --resume goes on from the newest in {directory}'
            )

        def give_up(error: UserError | TrainingFailed) -> NoReturn:
            # The host's part failed, a reward function for example; nothing learnt is lost unless
            # the device's part has taken the state's memory.
            taken = any(x.is_deleted() for x in jax.tree.leaves(state))
            where = saved
            if not taken and save(-math.inf, wait=True):
                where = f'saved at {recorder.at(step)}'
            raise type(error)(f'{error}; {where}') from error

        if not before:
            bar.stage('compiling and evaluating')
            before = evaluate()
            recorder.write([[{**recorder.position(0, 0), **row}] for row in before])
            score = _score(members, task, before)
            if hosts.any_process(bool(caught)):
                stop(score)
            save(score)
        after, pending = [], None
        if held:
            after, rows = evaluate(), held
            recorder.write([[row | numbers] for row, numbers in zip(rows, after, strict=True)])
            saver.rate(step, _score(members, task, after))
            held = []
        last = step >= task.updates or recorder.budget_spent()
        if last and resume and hosts.is_main() and not quiet:
            metrics.say(f'nothing is left to train: the run is at its end, {recorder.at(step)}')
        dispatch = task.dispatch
        if not last and dispatch is None:
            dispatch = update.make_dispatch(
                task.workload, members.shared, size, layout.shardings, members.sweep
            )
            dispatch = recorder.compile(dispatch, state)
        bar.training()
        recorder.restart_clock()
        while not last:
            try:
                with devices.memory_named(task.smaller):
                    state, numbers = dispatch(state)
            except (UserError, TrainingFailed) as error:
                give_up(error)
            step += size
            if pending is not None:  # Read while the device works on the next.
                recorder.write(recorder.rows(pending))
            pending = numbers
            last = step >= task.updates or recorder.budget_spent()
            stopped = hosts.any_process(bool(caught))
            evaluating = last or _due(step, size, task.evaluate_every)
            saving = last or _due(step, size, run.checkpoints.every_updates)
            # Where the host has a part in every update, nothing is gained by reading late.
            if evaluating or saving or stopped or task.dispatch is not None:
                rows, pending, score = recorder.rows(pending), None, -math.inf
                if stopped and not last:
                    # Who stops us may not wait for an evaluation: the run makes it once it goes on.
                    held = [member.pop() for member in rows] if evaluating else []
                    recorder.write(rows)
                    stop()
                if evaluating:
                    try:
                        with devices.memory_named(task.smaller):
                            after = evaluate()
                    except (UserError, TrainingFailed) as error:
                        held = [member.pop() for member in rows]
                        recorder.write(rows)
                        give_up(error)
                    score = _score(members, task, after)
                    for member, row in zip(rows, after, strict=True):
                        member[-1] |= row
                recorder.write(rows)
                if saving or saver.is_among_best(score, run.checkpoints.keep_best):
                    save(score, wait=last)
                recorder.restart_clock()
        recorder.note_spent_budget(step)
        if not hosts.any_process(saver.has(step)):
            newest = max(checkpoint.saved_steps(directory), default=None)
            if newest is None:
                raise TrainingFailed(f'{directory}: no checkpoint could be written; see above')
            raise TrainingFailed(
                f'{directory}: the last state, at {recorder.at(step)}, could not be written; see '
                f'above; --resume goes on from {recorder.at(newest)}'
            )
        recorder.require_written()
        scores = checkpoint.scores(saver.manager)
        best = max(scores, key=scores.get, default=step)
        if best != step and hosts.is_main() and not quiet:
            metrics.say(
                f'the best evaluation was at {recorder.at(best)}; --best takes its checkpoint'
            )
        after = after or evaluate()
        results = [
            Result(
                policy=policy,
                start=begin,
                before=first,
                after=row,
                length=step * task.units_per_update,
                unit=task.unit,
                labels=int(labels),
                wall_s=recorder.wall_s(),
                shared=state.shared,
            )
            for policy, begin, first, row, labels in zip(
                setup.split(members, state.policy),
                setup.split(members, start),
                before,
                after,
                np.ravel(state.labels),
                strict=True,
            )
        ]
        if not members.sweep:
            return results[0]
        for member, begin, own, first in zip(
            members.each,
            setup.split(members, start),
            setup.split(members, state),
            before,
            strict=True,
        ):
            with writing(run_dir / member.name, ROOM):
                _make_a_run_of(member, run_dir / member.name, begin, own, first, recorder.wall_s())
        return results


def _score(members: Members, task: Task, evaluation: Sequence[Row]) -> float:
    """How good an evaluation is, by `checkpoints.metric`: more is better, -inf says nothing.

    Raises:
      UserError: the evaluation has no such number.
    """
    # Members of a sweep are at their best at different updates.
    checkpoints = members.run.checkpoints
    if members.sweep or not checkpoints.keep_best:
        return -math.inf
    (row,), given = evaluation, checkpoints.metric
    for name in task.best if given is None else (given,):
        value = row.get(name.removeprefix('-'))
        if value is not None:
            value = -value if name.startswith('-') else value
            value -= BROKEN * row.get('eval/not_finite', 0)
            return value if math.isfinite(value) else -math.inf
    if given is None:
        return -math.inf
    raise UserError(f'checkpoints.metric: {given}; evaluations have {", ".join(row)}')


def _make_a_run_of(
    member: Member, run_dir: Path, start: Policy, state: State, before: Row, wall_s: float
) -> None:
    """Leaves a finished member of a sweep as a run that was trained alone would be left."""
    directory = run_dir / 'checkpoints'
    shutil.rmtree(directory, ignore_errors=True)
    checkpoint.save_start(directory, start)
    with checkpoint.open_manager(directory, member.run.checkpoints) as manager:
        meta = {'before': [before], 'held': [], 'wall_s': wall_s} | checkpoint.origin(member.run)
        checkpoint.save(manager, int(state.step), state, meta)


def _due(step: int, size: int, every: int) -> bool:
    """Whether a multiple of `every` lies in the `size` updates that end at `step`."""
    return step // every > (step - size) // every
