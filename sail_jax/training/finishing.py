"""How a run ends: what it says, what must be on the disk, what it gives back."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from sail_jax.core.types import Policy, State
from sail_jax.errors import TrainingFailed
from sail_jax.files import ROOM, writing
from sail_jax.sweep import Member
from sail_jax.training import checkpoint, hosts, listing, references, setup
from sail_jax.training.loop import Loop
from sail_jax.training.result import Result


def finish(loop: Loop) -> Result | list[Result]:
    """The results of a run that is at its end; of a sweep, a list of its members'.

    Raises:
      TrainingFailed: the last state, or rows of `metrics.jsonl`, could not be written.
    """
    _say_spent_budget(loop)
    _require_saved(loop)
    loop.recorder.require_written()
    _say_best(loop)
    if not loop.after:
        loop.after = loop.evaluate()
    results = _results(loop)
    if not loop.job.members.sweep:
        return results[0]
    _leave_members(loop)
    return results


def _say_spent_budget(loop: Loop) -> None:
    """That the labeller was asked no more, where that was before the end of the run."""
    task, budget = loop.job.task, loop.budget
    spent_at = loop.step if budget.spent_at is None else budget.spent_at
    if budget.spent and spent_at < task.updates:
        hosts.say(
            f'labeller.max_labels: the budget of {task.max_labels:,} comparisons was spent at '
            f'{task.at(spent_at)}, and no more is learned from the labeller; the run ends at '
            f'{task.at(loop.step)} of {task.at(task.updates)}'
        )


def _require_saved(loop: Loop) -> None:
    directory, at = loop.job.checkpoints, loop.job.task.at
    if hosts.any_process(loop.saver.has(loop.step)):
        return
    newest = max(listing.saved_steps(directory), default=None)
    if newest is None:
        raise TrainingFailed(f'{directory}: no checkpoint could be written; see above')
    raise TrainingFailed(
        f'{directory}: the last state, at {at(loop.step)}, could not be written; see above; '
        f'--resume goes on from {at(newest)}'
    )


def _say_best(loop: Loop) -> None:
    scores = checkpoint.scores(loop.saver.manager)
    best = max(scores, key=scores.__getitem__, default=loop.step)
    if best != loop.step:
        at = loop.job.task.at(best)
        loop.job.say(f'the best evaluation was at {at}; --best takes its checkpoint')


def _results(loop: Loop) -> list[Result]:
    """One a member."""
    members, task = loop.job.members, loop.job.task
    return [
        Result(
            policy=policy,
            start=start,
            before=before,
            after=after,
            length=loop.step * task.units_per_update,
            unit=task.unit,
            labels=int(labels),
            wall_s=loop.recorder.wall_s(),
            shared=loop.state.shared,
            update=update,
        )
        for policy, start, before, after, update, labels in zip(
            setup.split(members, loop.state.policy),
            setup.split(members, loop.start),
            loop.before,
            loop.after,
            loop.newest or [{}] * len(loop.after),
            np.ravel(loop.state.labels),
            strict=True,
        )
    ]


def _leave_members(loop: Loop) -> None:
    """Leaves each member of a sweep as a run that was trained alone would be left."""
    members = loop.job.members
    states, starts = setup.split(members, loop.state), setup.split(members, loop.start)
    for member, start, state, before in zip(members.each, starts, states, loop.before, strict=True):
        directory = member.directory(loop.job.run_dir)
        meta = {'before': [before], 'held': [], 'wall_s': loop.recorder.wall_s()}
        with writing(directory, ROOM):
            _leave_run(member, directory / 'checkpoints', start, state, meta)


def _leave_run(
    member: Member, directory: Path, start: Policy, state: State, meta: dict[str, Any]
) -> None:
    """The checkpoints of a member's own."""
    shutil.rmtree(directory, ignore_errors=True)
    references.save_start(directory, start)
    with checkpoint.open_manager(directory, member.run.checkpoints) as manager:
        checkpoint.save(manager, int(state.step), state, meta | checkpoint.origin(member.run))
