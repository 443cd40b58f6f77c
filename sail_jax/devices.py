"""The device mesh and how a training state lies on it."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sail_jax.errors import UserError


def make_mesh(rows: int) -> Mesh:
    """All devices along one `data` axis, over which `rows` are split.

    Raises:
      UserError: if the rows do not divide by the devices.
    """
    devices = jax.devices()
    if rows % len(devices):
        raise UserError(
            f'{rows} rows (rollout.contexts) do not divide by {len(devices)} devices; '
            f'use a multiple of {len(devices)}'
        )
    return Mesh(np.asarray(devices), ('data',))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the mesh."""
    return NamedSharding(mesh, PartitionSpec('data'))


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """Shardings of a `update.State`: the sampler's rows split, everything else replicated."""
    everywhere = jax.tree.map(lambda _: replicated(mesh), state)
    return everywhere._replace(sampler=jax.tree.map(lambda _: by_rows(mesh), state.sampler))
