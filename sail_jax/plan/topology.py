"""The devices of a target as its own compiler knows them, without the target: libtpu's for a TPU,
those of XLA's CUDA plugin for GPUs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sail_jax.errors import UserError, one_line
from sail_jax.plan import needs
from sail_jax.plan.targets import Target

COMPILES_ONLY = {
    'TPU_SKIP_MDS_QUERY': '1',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
    'TPU_WORKER_HOSTNAMES': 'localhost',
}
"""So that libtpu neither asks the network which TPU it is on, nor wants to be alone on it, nor
writes on the terminal that it is on none; what it is asked to compile for is another matter."""

ONE_HOST = {'1x1': (1, 1, 1), '2x4': (2, 4, 1)}
"""Slices whose chips have one host; of others four chips have one."""

# XLA's GpuTargetConfigProto, as a device would fill it in.
DEVICE = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {optin}
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {clock}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {l2} device_memory_size: {memory}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: 0 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{title}"
"""
HOPPER = {
    'shared': 233472,
    'optin': 232448,
    'cores': 132,
    'fpus': 128,
    'clock': 1.98,
    'l2': 52428800,
    'major': 9,
}
AMPERE = {
    'shared': 167936,
    'optin': 166912,
    'cores': 108,
    'fpus': 64,
    'clock': 1.41,
    'l2': 41943040,
    'major': 8,
}
GPUS = {'a100': AMPERE, 'h100': HOPPER, 'h200': HOPPER}


def devices(target: Target) -> list[Any]:
    """The target's devices, in their order; programs compile for them, and none is run.

    Raises:
      UserError: the compiler is not installed, or knows no such slice.
    """
    platform = target.chip.platform
    needs.require(target)
    from jax.experimental import topologies

    x = 'x'.join(map(str, target.shape))
    with _quiet():
        try:
            if platform == 'tpu':
                for name, value in COMPILES_ONLY.items():
                    os.environ.setdefault(name, value)
                host = {'chips_per_host_bounds': ONE_HOST[x]} if x in ONE_HOST else {}
                description = topologies.get_topology_desc(
                    platform='tpu', topology_name=f'{target.chip.name}:{x}', **host
                )
            else:
                description = _gpus(target)
        except Exception as error:
            raise UserError(f'--on {target}: the compiler says: {one_line(error)}') from error
    return list(description.devices)


def config(target: Target) -> str:
    """The target's GPU as XLA's compiler is told of it."""
    chip = target.chip
    return DEVICE.format(
        **GPUS[chip.name],
        bandwidth=int(chip.bandwidth),
        memory=chip.memory,
        title=chip.title,
    )


def _gpus(target: Target) -> Any:
    from jax.experimental import topologies

    os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')  # Which asks a device.
    hosts, gpus = target.shape
    shape = f'{hosts}x1x{gpus}'  # Hosts, processes of each, devices of each.
    options = {'target_config': config(target), 'topology': shape}
    try:
        return topologies.get_topology_desc(shape, 'cuda', **options)
    except NotImplementedError:  # JAX began before that was set, and left the plugin out.
        from jax._src import xla_bridge

        xla_bridge.discover_pjrt_plugins()
        return topologies.get_topology_desc(shape, 'cuda', **options)


@contextmanager
def _quiet() -> Iterator[None]:
    """What JAX logs of a plugin without a device is no news."""
    logger = logging.getLogger('jax')
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
