"""What a run says once: that nothing can be learned from its updates, or that evaluations broke."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from sail_jax import config
from sail_jax.core import pair_losses
from sail_jax.training.metrics import MetricsRow

PATIENCE = 10
"""Updates in a row before it is said; a run that ends before says it at its end."""

NO_MARGIN = 1e-6
"""A mean margin that is rounding."""


def nothing_to_learn(row: MetricsRow) -> str | None:
    """Why an update had nothing to learn from, or None: `unlabelled`, `tied`, `no margin`; or
    `no step`, where it made none."""
    if 'train/grad_norm' not in row:
        return 'no step'
    if 'train/labelled' not in row or not math.isfinite(row['train/grad_norm']):
        return None  # No preferences; or the update is skipped, and counted as that.
    if row['train/labelled'] == 0:
        return 'unlabelled'
    if 'train/label_accuracy' not in row:
        return 'tied'
    return 'no margin' if abs(row['train/margin']) <= NO_MARGIN else None


def explain(reason: str, run: Any) -> str:
    """What a reason of preferences means, and the settings that it may come from."""
    teacher = getattr(run, 'labeller', config.Teacher())
    if reason == 'unlabelled':
        why = 'the simulator broke in all of them (train/not_finite)'
        if teacher.kind != config.Teacher().kind:
            why = f'labeller.kind: {teacher.kind} leaves all of them out, or {why}'
        elif teacher.skip > 0:
            why = f'labeller.skip: {teacher.skip:g} leaves all of them out'
        return f'no pair has a label, and the policy stays as it is: {why}'
    if reason == 'tied':
        why = 'what the labeller goes by does not differ between the responses to a context'
        if teacher.equal > 0:
            why = f'labeller.equal: {teacher.equal:g} calls all of them equal, or {why}'
        return f'all pairs are ties, and nothing says which response is better: {why}'
    if _never_apart(run):
        key = next(key for key in type(run.reference).model_fields if key.startswith('refresh_'))
        return (
            f'the margin is 0: reference.{key} makes every policy the next reference, so that '
            'objective.response_grad and the KL penalty have no effect, and only the labels '
            'themselves are learned from'
        )
    return 'the margin is 0: the policy does not move away from its reference'


def _always_refreshed(run: Any) -> bool:
    """Whether every update begins with a reference that is the policy."""
    if not hasattr(run, 'objective'):
        return False  # Without margins that would be 0.
    return getattr(run, 'refresh_updates', None) == 1 and getattr(run.reference, 'ema', 0) == 0


def _never_apart(run: Any) -> bool:
    """Whether all margins are then 0 and all pairs worth the same: with one gradient step an
    update, and a loss that is of the reference and not of the labeller's rewards."""
    if not _always_refreshed(run) or run.optimizer.epochs * run.optimizer.minibatches > 1:
        return False
    loss = pair_losses.PAIR_LOSSES.get(run.objective.loss)
    return not (isinstance(loss, pair_losses.OfReward) or pair_losses.needs_rewards(loss))


class Notices:
    """Keeps count for each member of a sweep; a run alone is one."""

    def __init__(
        self,
        run: Any,
        members: Sequence[str],
        say: Callable[[str], Any],
        stepless: str | None = None,
        unasked: str | None = None,
    ):
        """`members` are their names, empty for a run alone; `say` takes a line; the others are the
        task's."""
        self._run, self._members, self._say = run, members, say
        self._stepless, self._unasked = stepless, unasked
        self._streaks: list[tuple[str | None, int]] = [(None, 0) for _ in members]
        # With one gradient step an update the margin is then 0, whatever rounding leaves of it.
        # With several it is 0 before the first, which metrics are of, and not afterwards.
        self._always_new = _never_apart(run)
        self._new_at_first = _always_refreshed(run) and not self._always_new
        self._updates = 0
        self._said: set[tuple[int, str]] = set()

    def updates(self, rows: Sequence[Sequence[MetricsRow]]) -> None:
        """Looks at the rows of updates, the next after those that were looked at before."""
        budget = getattr(getattr(self._run, 'labeller', None), 'max_labels', None)
        for m, member in enumerate(rows):
            for row in member:
                spent = budget is not None and row['labels'] >= budget
                reason = None if spent else nothing_to_learn(row)
                if reason == 'no margin' and self._new_at_first:
                    reason = None
                if reason is None and self._always_new and 'train/margin' in row and not spent:
                    reason = 'no margin'
                before, count = self._streaks[m]
                self._streaks[m] = reason, count + 1 if reason == before else 1
                # A run that begins at random has many of those.
                if self._streaks[m][1] == PATIENCE and reason != 'no step':
                    self._note(m)
        self._updates += len(rows[0])

    def end(self) -> None:
        """Of a run that had less than the patience, and never anything else."""
        for m, (reason, count) in enumerate(self._streaks):
            # Policy and reference begin as one: a first margin of 0 means nothing.
            if count == self._updates and count > (reason == 'no margin'):
                self._note(m)
        if self._unasked is not None:
            self._say(f'no question was asked: {self._unasked}')

    def _note(self, m: int) -> None:
        reason, count = self._streaks[m]
        if reason is None or (reason == 'no step' and self._stepless is None):
            return
        if reason == 'no step':
            what = f'no gradient step was made, and the policy stays as it is: {self._stepless}'
        else:
            what = explain(reason, self._run)
        self._once(m, reason, f'{count} updates in a row: {what}')

    def evaluation(self, rows: Sequence[MetricsRow], what: str) -> None:
        """Looks at evaluations for `what` they count as `eval/not_finite`."""
        for m, row in enumerate(rows):
            if row.get('eval/not_finite', 0) > 0:
                self._once(m, what, f'eval/not_finite: {row["eval/not_finite"]:.0f} {what}')

    def _once(self, m: int, what: str, line: str) -> None:
        if (m, what) not in self._said:
            self._said.add((m, what))
            self._say(f'{self._members[m]}: {line}' if self._members[m] else line)
