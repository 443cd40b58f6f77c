"""The label budget of a run, as far as its rows say."""

from sail_jax.training.rows import MetricsRows


class LabelBudget:
    """How many comparisons the labeller was asked for; known with the rows, and so a dispatch late.

    A sweep has spent its budget once every member has.
    """

    spent_at: int | None = None
    """The update that spent it, if this process has seen its row."""

    def __init__(self, limit: int | None, labels: list[int], closed: bool = False):
        """`limit` is `labeller.max_labels`; `labels` are those of each member so far; `closed` is
        as it was when the run was saved."""
        self._limit, self._labels = limit, labels
        self.closed = closed
        """Whether the dispatch after the one that spent it was made, with which a run ends however
        often it was stopped."""

    @property
    def spent(self) -> bool:
        return self._limit is not None and min(self._labels) >= self._limit

    def see(self, rows: MetricsRows) -> None:
        """Takes note of the rows of the next updates."""
        self.closed = self.spent
        self._labels = [int(member[-1]['labels']) for member in rows]
        if self._limit is None or not self.spent or self.spent_at is not None:
            return
        for update in zip(*rows, strict=True):  # The same update's row of each member.
            if min(row['labels'] for row in update) >= self._limit:
                self.spent_at = int(update[0]['step'])
                return
