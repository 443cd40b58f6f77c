"""When a run ends because its evaluations get no better."""

from collections.abc import Sequence
from typing import Any


class Patience:
    """Counts evaluations in a row that were no better than the best before them.

    Args:
      most: `Task.patience`.
      kept: `kept` of a run that goes on.
    """

    def __init__(self, most: int | None, kept: Sequence[Any] = ()):
        self._most = most
        self._best, self._in_vain = kept or (None, 0)

    def see(self, worth: float) -> None:
        """Takes an evaluation's score, as of `saver.score`."""
        if worth > (float('-inf') if self._best is None else self._best):
            self._best, self._in_vain = worth, 0
        else:
            self._in_vain += 1

    @property
    def kept(self) -> list[Any]:
        """For a checkpoint."""
        return [self._best, self._in_vain]

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self._most is not None and self._in_vain >= self._most
