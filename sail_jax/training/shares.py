"""Which rows of a batch are whose, where several processes train one run."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sail_jax.training import devices, hosts


class Shares(NamedTuple):
    """Who answers for which row: one process for each."""

    process_B: np.ndarray
    """Its number, of each row."""

    @property
    def rows(self) -> np.ndarray:
        """Numbers of the rows that this process answers for, in their order; there may be none."""
        return np.flatnonzero(self.process_B == jax.process_index())

    def gather(self, values: np.ndarray) -> np.ndarray:
        """What each process has of its rows, of all rows and in all processes, [B, ...].

        All of them must ask.
        """
        rows = np.arange(len(self.process_B))
        spread = np.zeros((len(rows), *values.shape[1:]), values.dtype)
        spread[self.rows] = values
        return hosts.gather(spread)[self.process_B, rows]


def evenly(rows: int) -> Shares:
    """Of what lies in every process: as many rows for each."""
    return Shares(np.arange(rows) * jax.process_count() // max(rows, 1))


RowBlocks = Sequence[tuple[int, slice]]
"""Of each device the number of its process, and the rows that it holds."""


def rows_of(process: int, blocks: RowBlocks, rows: int) -> np.ndarray:
    """Numbers of the rows that devices of a process hold, in their order."""
    holds_B = np.zeros(rows, bool)
    for number, block in blocks:
        holds_B[block] |= number == process
    return np.flatnonzero(holds_B)


def first_to_hold(blocks: RowBlocks, rows: int) -> Shares:
    """Each row's process is the first of those that hold it."""
    process_B = np.full(rows, max(number for number, _ in blocks))
    for number, block in blocks:
        process_B[block] = np.minimum(process_B[block], number)
    return Shares(process_B)


class SplitRows(NamedTuple):
    """The rows of a batch that is split over a mesh, see `devices.by_rows`."""

    mesh: Mesh
    here: np.ndarray
    """See `rows_of`, of this process."""
    shares: Shares
    """See `first_to_hold`."""

    @classmethod
    def of(cls, mesh: Mesh, rows: int) -> 'SplitRows':
        layout = devices.by_rows(mesh).devices_indices_map((rows,))
        blocks = [(device.process_index, block) for device, (block,) in layout.items()]
        here = rows_of(jax.process_index(), blocks, rows)
        return cls(mesh, here, first_to_hold(blocks, rows))

    def place(self, tree: Any) -> Any:
        """Arrays of the rows that are `here`, on their devices: parts of whole batches."""
        layout, rows = devices.by_rows(self.mesh), len(self.shares.process_B)

        def of_array(x: np.ndarray) -> jax.Array:
            shape = (rows, *np.shape(x)[1:])
            return jax.make_array_from_process_local_data(layout, x, shape)

        return jax.tree.map(of_array, tree)

    def take(self, x: jax.Array) -> np.ndarray:
        """Of a whole batch the rows that this process answers for, on the host."""
        parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
        rows_here = np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
        return rows_here[np.isin(self.here, self.shares.rows)]
