"""`sail-jax doctor`: has this host what training needs? The first thing to run on a new one."""

import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from sail_jax.training import accelerator, checkpoint, devices, gpus, hosts, quiet

SIZE = 2**20
"""Entries of the float32 array that the checks move, on each device."""


class Finding(NamedTuple):
    """One line of the report."""

    what: str
    answer: str
    well: bool = True


def examine(directory: Path | None = None) -> list[Finding]:
    """What is seen, and what works; every process of a run must call it.

    Args:
      directory: where a checkpoint is tried: the disk that runs will lie on. A temporary one by
        default, which several processes do not share.
    """
    return [*_seen(), *_checked(directory)]


def _seen() -> Iterator[Finding]:
    versions = checkpoint.versions()
    yield Finding('versions', ', '.join(f'{name} {version}' for name, version in versions.items()))
    local = jax.local_devices()
    idle = accelerator.idle()
    yield Finding('platform', idle or jax.default_backend(), idle is None)
    yield Finding('processes', f'{jax.process_index() + 1} of {jax.process_count()}')
    kinds = ', '.join(sorted({device.device_kind for device in local}))
    yield Finding('devices', f'{len(local)} here, {jax.device_count()} in all ({kinds})')
    if jax.default_backend() == 'gpu':
        processes = hosts.gather_text(socket.gethostname()).count(socket.gethostname())
        yield of_gpus(processes * len(local), gpus.visible())
    stats = local[0].memory_stats() or {}
    limit = stats.get('bytes_limit')
    yield Finding('memory of a device', f'{limit / 2**30:.1f} GiB' if limit else 'not reported')
    total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    yield Finding('memory of the host', f'{total / 2**30:.1f} GiB, {os.cpu_count()} CPU cores')
    mesh = devices.make_mesh(jax.device_count())
    shape = ', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
    yield Finding('mesh', f'{shape}: rows must divide by {mesh.shape["data"]}')
    # JAX declares its settings when it is imported.
    cache = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    yield Finding('compilation cache', str(cache))
    yield Finding('matmul precision', _precision())


def _precision() -> str:
    """What float32 matrix products are here."""
    rounded = {'gpu': 'TF32', 'tpu': 'bfloat16'}.get(jax.default_backend(), 'float32')
    # JAX declares its settings when it is imported.
    said = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    default = f'JAX_DEFAULT_MATMUL_PRECISION: {said}' if said else f'{rounded} on this platform'
    return (
        'float32 for control, sac and float32 language models (matmul_precision: auto); '
        f'by default ({default}) for bfloat16 ones'
    )


def of_gpus(used: int, visible: int) -> Finding:
    """Whether the processes of this host use the GPUs that they see."""
    answer = f'{used} of {visible}'
    if used < visible:
        answer += ' that are visible; start a process for each, or one for all of them'
    return Finding('GPUs of this host', answer, used >= visible)


def _checked(directory: Path | None) -> Iterator[Finding]:
    count = jax.device_count()
    mesh = devices.make_mesh(count)
    split = NamedSharding(mesh, PartitionSpec(devices.ROWS))

    @jax.jit
    def make() -> jax.Array:
        numbers = jnp.arange(count * SIZE, dtype=jnp.float32).reshape(count, SIZE) % 1024
        return jax.lax.with_sharding_constraint(numbers, split)

    @jax.jit
    def reduce(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x.sum(0), devices.replicated(mesh))

    def collective() -> str:
        x = make()
        jax.block_until_ready(reduce(x))
        began = time.perf_counter()
        total = np.asarray(reduce(x))
        seconds = time.perf_counter() - began
        expected = (np.arange(count * SIZE).reshape(count, SIZE) % 1024).sum(0)
        if not np.array_equal(total, expected):
            raise ArithmeticError('the sum over the devices is wrong')
        took = f'{seconds * 1e3:.1f} ms for {SIZE * 4 / 2**20:.0f} MiB each'
        return f'a sum over {count} devices is right, {took}'

    def randomness() -> str:
        draw = jax.jit(lambda: jax.random.normal(jax.random.key(0), (3,)))
        expected = [1.6226422, 2.0252647, -0.43359444]
        if not np.allclose(draw(), expected, atol=1e-6):
            raise ArithmeticError(f'key 0 draws {draw()}, on other hosts {expected}')
        return 'a seed draws what it draws elsewhere'

    def round_trip() -> str:
        if directory is not None:
            return _there_and_back(make(), directory)
        with tempfile.TemporaryDirectory(prefix='sail-jax-') as temporary:
            return _there_and_back(make(), Path(temporary))

    yield _attempt('collective', collective)
    yield _attempt('randomness', randomness)
    yield _attempt('checkpoint', lambda: quiet.saving(round_trip))


def _there_and_back(x: jax.Array, base: Path) -> str:
    """Saves an array in a directory, and restores it."""
    saved, scratch = {'x': x}, _new(base)
    path = scratch / 'checkpoint'
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            began = time.perf_counter()
            checkpointer.save(path, saved)
            checkpointer.wait_until_finished()
            layout = {'x': saved['x'].sharding}
            restored = checkpointer.restore(path, checkpoint.abstract_like(saved, layout))
            seconds = time.perf_counter() - began
        if not bool(jax.jit(lambda a, b: (a['x'] == b['x']).all())(saved, restored)):
            raise ArithmeticError('what came back is not what was saved')
    finally:
        if hosts.is_main():
            shutil.rmtree(scratch, ignore_errors=True)
    free = shutil.disk_usage(base).free / 2**30
    size = saved['x'].nbytes / 2**20
    return f'{size:.0f} MiB to {base} and back in {seconds:.1f} s; {free:.0f} GiB free'


def _new(base: Path) -> Path:
    """A path in `base` where nothing is, the same in every process.

    Raises:
      FileExistsError: something is there after all.
    """
    number = int(multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32))))
    path = (base / f'doctor-{number:08x}').absolute()
    # Unlike `path.exists()` this never raises, in one process while the others wait for it.
    if hosts.any_process(os.path.exists(path)):
        raise FileExistsError(f'{path} is there already')
    return path


def _attempt(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, check())
    except Exception as error:
        # Whatever goes wrong here is what the report is for.
        return Finding(what, ' '.join(f'{type(error).__name__}: {error}'.split())[:300], False)
