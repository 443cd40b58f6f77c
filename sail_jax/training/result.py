"""What a finished run gives back."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from sail_jax import tables
from sail_jax.core.types import Policy
from sail_jax.kind import Line
from sail_jax.training.rows import MetricsRow

_TOLD = ('eval/return', 'eval/reward', 'eval/loss', 'eval/win_rate', 'eval/kl_policy_to_start')
"""What of the evaluations a `Result` shows, after the first line of its workload's table."""


class Result(NamedTuple):
    """What a finished run gives back."""

    policy: Policy
    start: Policy
    before: MetricsRow
    """Evaluation of the start policy."""
    after: MetricsRow
    """Evaluation of the trained policy."""
    length: int
    """In `unit`s."""
    unit: str
    """`Task.unit`."""
    labels: int
    wall_s: float
    """Of this process, compilation included."""
    shared: Any = ()
    """`State.shared`: what both policies stand on."""
    table: Sequence[Line] = ()
    """`Kind.table`: what a notebook shows of the evaluations; none is all."""
    update: Mapping[str, float] = MappingProxyType({})
    """The last update's row of `metrics.jsonl`; empty where nothing was left to train."""

    @property
    def title(self) -> str:
        """How far the run went."""
        length = f'{self.length:,} {self.unit.replace("_", " ")}'
        return f'{length}, {self.labels:,} labels, {self.wall_s:.0f} s'

    def _repr_html_(self) -> str:
        """The table that the command line ends with, for a notebook's cell."""
        rows = tables.comparison(self.table, self.before, self.after, self.update)
        return tables.as_html(self.title, ('', tables.START, tables.TRAINED, tables.GOOD), rows)

    def __repr__(self) -> str:
        """Without the parameters, which are pages of numbers."""
        parts = [f'{self.length:,} {self.unit}', f'{self.labels:,} labels', f'{self.wall_s:.0f} s']
        keys = dict.fromkeys((*(f'eval/{line.metric}' for line in self.table[:1]), *_TOLD))
        parts += [
            f'{key} {before:.4g} -> {self.after[key]:.4g}'
            for key in keys
            if (before := self.before.get(key)) is not None and self.after.get(key) is not None
        ]
        return f'Result({", ".join(parts)})'
