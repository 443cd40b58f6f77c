"""What is done about a checkpoint that cannot be written: it costs no other, and not the run."""

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from sail_jax import config
from sail_jax.core.types import State
from sail_jax.errors import UserError, one_line
from sail_jax.sweep import Members
from sail_jax.terminal import say
from sail_jax.training import checkpoint, hosts, listing
from sail_jax.training.rows import MetricsRow

BROKEN = 1e12
"""What a broken episode, or a response without a reward, takes from an evaluation's score: one with
fewer of them is better, whatever its numbers are."""


def score(members: Members, best: Sequence[str], evaluation: Sequence[MetricsRow]) -> float:
    """How good an evaluation is, by `checkpoints.metric`: more is better, -inf says nothing.

    Args:
      best: `Task.best`.
      evaluation: a row a member.

    Raises:
      UserError: the evaluation has no such number.
    """
    checkpoints = members.run.checkpoints
    # Members of a sweep are at their best at different updates.
    if members.sweep or not checkpoints.keep_best:
        return -math.inf
    (row,), metric = evaluation, checkpoints.metric
    for name in best if metric is None else (metric,):
        value = row.get(name.removeprefix('-'))
        if value is not None:
            value = -value if name.startswith('-') else value
            value -= BROKEN * row.get('eval/not_finite', 0)
            return value if math.isfinite(value) else -math.inf
    if metric is None:
        return -math.inf
    raise UserError(f'checkpoints.metric: {metric}; evaluations have {", ".join(row)}')


class FailedSaves:
    """Counts the checkpoints that could not be written, and says so; the run goes on without."""

    count = 0

    def __call__(self, step: int, error: Exception) -> None:
        self.count += 1
        say(
            f'the checkpoint of update {step} could not be written ({one_line(error)}); the run '
            f'goes on, {self.count} failed so far'
        )


class Saver:
    """Saves a run's states as it goes; failures are reported and survived."""

    manager: ocp.CheckpointManager
    """The one that saves: another one after each failure."""

    def __init__(
        self,
        directory: Path,
        settings: config.Checkpoints,
        report: Callable[[int, Exception], None],
    ):
        """Opens the directory, which no other process may write.

        Args:
          report: is told of each state that could not be saved: its step, and why.
        """
        self._directory, self._settings, self._report = directory, settings, report
        if hosts.is_main():
            listing.drop_unfinished(directory)
        self.manager = checkpoint.open_manager(directory, settings)
        self._scores = checkpoint.scores(self.manager)
        self._step = 0
        self._left = False
        """Whether a failed save may have left something: its last writes come after its error."""

    def __enter__(self) -> 'Saver':
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()
        checkpoint.close(self.manager)

    def save(
        self,
        step: int,
        state: State,
        meta: dict[str, Any],
        score: float = -math.inf,
        wait: bool = False,
    ) -> bool:
        """Starts a save once the one before is done, see `checkpoint.save`.

        Args:
          wait: until it is on the disk.

        Returns:
          False where it is known to have failed.
        """
        self._finish()
        run_dir = self._directory.parent
        if hosts.any_process(hosts.is_main() and not run_dir.is_dir()):
            # Orbax would make one, in which a checkpoint is all there is.
            self._report(step, UserError(f'{run_dir} is gone: moved, or deleted'))
            return False
        if self._left:
            listing.drop_unfinished(self._directory)
            self._left = False
        self._step, self._scores[step] = step, score
        try:
            checkpoint.save(self.manager, step, state, meta, score)
        except Exception as error:  # A full disk, say; Orbax raises what it hits.
            self._note(error)
            return False
        return self._finish() if wait else True

    def rate(self, step: int, score: float) -> None:
        """Gives a checkpoint the score of an evaluation that was made only after its save."""
        if hosts.is_main():
            try:
                checkpoint.rate(self._directory, step, score)
            except OSError as error:
                self._report(step, error)
        hosts.any_process(False)  # No process looks before it is there.
        self.manager.reload()
        self._scores[step] = score

    def has(self, step: int) -> bool:
        """Whether the state after that many updates is on the disk."""
        return step in listing.saved_steps(self._directory)

    def is_among_best(self, score: float, count: int) -> bool:
        """Whether an evaluation is among the `count` best of those that were saved."""
        better = sum(other >= score for other in self._scores.values())
        return better < count and score > -math.inf

    def _finish(self) -> bool:
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            self._note(error)
            return False
        return True

    def _note(self, error: Exception) -> None:
        if jax.process_count() > 1:  # The others are in the middle of theirs.
            raise error
        # A manager tells of one failure twice, of some of them when the next save is under way, and
        # forgets the older checkpoints that the failed one was to replace: they would stay.
        checkpoint.close(self.manager)
        listing.drop_unfinished(self._directory)
        with contextlib.suppress(Exception):  # Without it the next save fails, and tries again.
            if self._directory.parent.is_dir():
                self.manager = checkpoint.open_manager(self._directory, self._settings)
        self._left = True
        self._scores.pop(self._step, None)
        self._report(self._step, error)
