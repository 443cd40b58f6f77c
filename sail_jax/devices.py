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


def make_sweep_mesh(members: int) -> Mesh:
    """All devices along a `seed` axis, over which the members of a sweep are split.

    Raises:
      UserError: if the members do not divide by the devices.
    """
    devices = jax.devices()
    if members % len(devices):
        raise UserError(
            f'{members} members of a sweep (seeds, sweep) do not divide by {len(devices)} devices; '
            f'use a multiple of {len(devices)}'
        )
    return Mesh(np.asarray(devices)[:, None], ('seed', 'data'))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """Shardings of an `update.State`: the sampler's rows split, everything else replicated; of a
    sweep's, members split."""
    if 'seed' in mesh.axis_names:
        return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec('seed')), state)
    everywhere = jax.tree.map(lambda _: replicated(mesh), state)
    by_rows = NamedSharding(mesh, PartitionSpec('data'))
    return everywhere._replace(sampler=jax.tree.map(lambda _: by_rows, state.sampler))
