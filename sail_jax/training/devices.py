"""The device mesh and how a training state lies on it."""

import contextlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sail_jax import processor
from sail_jax.config import Devices
from sail_jax.errors import TrainingFailed, UserError, one_line

AXES = ('data', 'fsdp', 'tensor')
ROWS = ('data', 'fsdp')
"""The axes that the rows of a batch are split over."""

Chips = Sequence[Any] | None
"""Devices of JAX; None is all that there are."""

Rules = Sequence[tuple[str, PartitionSpec]]
"""Patterns of the last parts of an array's dotted name, and layouts; the first that fits counts,
and what none fits is copied to every device."""


def make_mesh(
    rows: int,
    settings: Devices | None = None,
    rows_key: str = 'a batch',
    devices: Chips = None,
) -> Mesh:
    """Devices along the axes (data, fsdp, tensor).

    Args:
      rows: of a batch, which are split over data and fsdp.
      settings: sizes of the axes; by default all devices lie along data.
      rows_key: what has them, for the message: a setting.
      devices: instead of all that there are.

    Raises:
      UserError: sizes that do not multiply to the number of devices, or rows that do not divide.
    """
    count = jax.device_count() if devices is None else len(devices)
    sizes = _sizes(settings or Devices(), count)
    parts = sizes['data'] * sizes['fsdp']
    if rows % parts:
        raise UserError(
            f'{rows} rows ({rows_key}) do not divide by {parts} devices; use a multiple of {parts}'
        )
    auto = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=auto, devices=devices)


def use_cores(rows: int) -> None:
    """Where there is no accelerator, makes a device of each core, as many as divide the rows.

    XLA does not split a simulator's small arrays over cores by itself. To be called before JAX is
    used; it changes nothing afterwards, or where the environment already says how many CPU devices
    there are (JAX_NUM_CPU_DEVICES, XLA_FLAGS).
    """
    said = 'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
    # JAX declares its settings when it is imported.
    number = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
    if said or number != -1:
        return
    count = max(n for n in range(1, processor.cores() + 1) if rows % n == 0)
    with contextlib.suppress(RuntimeError):  # JAX has begun.
        jax.config.update('jax_num_cpu_devices', count)


def _sizes(settings: Devices, count: int) -> dict[str, int]:
    """Devices along each axis."""
    sizes = {axis: getattr(settings, axis) for axis in AXES}
    fixed = math.prod(size for size in sizes.values() if size != 'auto')
    free = [axis for axis, size in sizes.items() if size == 'auto']
    said = ', '.join(f'{axis}: {size}' for axis, size in sizes.items())
    if len(free) > 1:
        raise UserError(f'devices: {said}; only one axis can be auto')
    if count % fixed or (not free and fixed != count):
        raise UserError(
            f'devices: {said}; {count} devices do not make such a mesh: the sizes must '
            f'{"divide" if free else "multiply to"} {count}'
        )
    return {axis: count // fixed if size == 'auto' else size for axis, size in sizes.items()}


def make_sweep_mesh(members: int, devices: Chips = None) -> Mesh:
    """Devices along a `seed` axis, over which the members of a sweep are split.

    Args:
      devices: instead of all that there are.

    Raises:
      UserError: if the members do not divide by the devices.
    """
    devices = jax.devices() if devices is None else devices
    if jax.process_count() > 1:
        raise UserError('seeds, sweep: on one process only; start the seeds on their own')
    if members % len(devices):
        raise UserError(
            f'{members} members of a sweep (seeds, sweep) do not divide by {len(devices)} devices; '
            f'use a multiple of {len(devices)}'
        )
    return Mesh(np.asarray(devices)[:, None], ('seed', 'data'))


def local_part(mesh: Mesh) -> Mesh:
    """The part of a mesh that is this process's own.

    Raises:
      UserError: its devices are no block of the mesh.
    """
    try:
        return mesh.local_mesh
    except ValueError:
        said = ', '.join(f'{axis}: {size}' for axis, size in mesh.shape.items())
        raise UserError(
            f'devices: {said}; the {jax.local_device_count()} devices of a process are no block of '
            'such a mesh, and a reward model needs one; make tensor and fsdp divide their number'
        ) from None


def memory() -> int | None:
    """Bytes that all devices have together; on CPU the host's. None where they do not say."""
    local = jax.local_devices()
    if local[0].platform == 'cpu':
        here = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    else:
        here = sum((device.memory_stats() or {}).get('bytes_limit', 0) for device in local)
    return here * jax.process_count() or None


def require_memory(needed: int, what: str) -> None:
    """Refuses what no device could hold, before anything is allocated.

    Args:
      needed: bytes, over all devices.
      what: needs them, for the message.

    Raises:
      UserError: the devices have less.
    """
    have = memory()
    if have is not None and needed > have:
        raise UserError(
            f'{what} would take at least {needed / 2**30:,.0f} GiB; '
            f'the devices have {have / 2**30:,.0f} GiB'
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed on a device."""
    return isinstance(error, jax.errors.JaxRuntimeError) and 'RESOURCE_EXHAUSTED' in str(error)


@contextlib.contextmanager
def memory_named(advice: str) -> Iterator[None]:
    """Says in one line that a device's memory was not enough.

    Args:
      advice: what would need less.

    Raises:
      TrainingFailed: an allocation failed. Of several processes the others do not know of it, so
        there the error passes.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error) or jax.process_count() > 1:
            raise
        raise TrainingFailed(f'out of device memory ({one_line(error)}); {advice}') from error


def size(tree: Any) -> int:
    """Bytes of a tree of abstract arrays, every copy on a device counted."""

    def copies(x: Any) -> int:
        sharding = getattr(x, 'sharding', None)
        return 1 if sharding is None else len(sharding.device_set)

    return sum(size_on_one(x) * copies(x) for x in jax.tree.leaves(tree))


def size_on_one(tree: Any) -> int:
    """Bytes that a tree of abstract arrays takes of a device."""

    def of(x: Any) -> int:
        sharding = getattr(x, 'sharding', None)
        shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
        return math.prod(shape) * x.dtype.itemsize

    return sum(map(of, jax.tree.leaves(tree)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the mesh."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def by_rules(mesh: Mesh, rules: Rules, name: str, shape: tuple[int, ...]) -> NamedSharding:
    """The layout of an array by its dotted name, as `layers.mlp.up_proj.kernel`.

    An axis of the mesh that does not divide the array's own is left out.
    """
    for pattern, spec in rules:
        if re.search(rf'(^|\.)({pattern})(\.value)?$', name):
            pairs = zip(shape, spec, strict=False)
            fits = (axis if size % parts(mesh, axis) == 0 else None for size, axis in pairs)
            return NamedSharding(mesh, PartitionSpec(*fits))
    return replicated(mesh)


def parts(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
    """How many an array's axis is split into that lies on these of the mesh."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape.get(name, 1) for name in names)


def tree_by_rules(mesh: Mesh, rules: Rules, tree: Any) -> Any:
    """The layouts of a tree of arrays; an optimizer's moments are named as their parameters."""

    def of(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator='.')
        return by_rules(mesh, rules, name, leaf.shape)

    return jax.tree.map_with_path(of, tree)


def state_sharding(mesh: Mesh, state: Any, rules: Rules = ()) -> Any:
    """Shardings of an `types.State`: the sampler's rows split, the rest by the rules; of a
    sweep's, members split."""
    if 'seed' in mesh.axis_names:
        return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec('seed')), state)
    named = tree_by_rules(mesh, rules, state._replace(sampler=()))
    return named._replace(sampler=jax.tree.map(lambda _: by_rows(mesh), state.sampler))
