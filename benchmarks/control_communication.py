"""What the devices say to each other in one control update, and what that means on 256 chips.

Compiles the update of a configuration for 8 fake CPU devices, reads the collectives out of the
compiled program, and puts their count and bytes into a model of weak scaling (rows a device stay).

    python -m benchmarks.control_communication configs/control/ant.yaml --out x.json

The model (`MODEL`, `LINKS`) is written into the file with what it says.
"""

import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.machine import machine, make_parser, write
from sail_jax import runs
from sail_jax.control import task as control_task
from sail_jax.core import update
from sail_jax.sweep import Members
from sail_jax.training import setup

BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4, 'f32': 4, 'f64': 8}
KINDS = ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute', 'reduce-scatter')
DEVICES = 256
COMPUTE_S = (1e-3, 1e-2, 1e-1)


MODEL = (
    'A collective of b bytes among n devices takes 2 (n - 1) / n * b / bytes_per_s (a ring, or any '
    'bandwidth-optimal algorithm) plus latency_s * log2(n); nothing overlaps with computation. '
    'With t seconds of computation an update, efficiency is t / (t + communication). The rows of '
    'each device, and so t, stay as devices are added (weak scaling). Latencies are assumptions.'
)


class Link(NamedTuple):
    """Of a device to the others, one way."""

    bytes_per_s: float
    latency_s: float
    """For each doubling of the devices."""
    source: str
    """Of the bandwidth."""


LINKS = {
    'v5e': Link(
        400e9 / 2,
        1e-6,
        'https://cloud.google.com/tpu/docs/v5e: inter-chip interconnect, 400 GB/s both ways a chip',
    ),
    'H100, InfiniBand between hosts': Link(
        400e9 / 8,
        5e-6,
        'https://docs.nvidia.com/dgx/dgxh100-user-guide: one 400 Gbit/s ConnectX-7 port a GPU',
    ),
}


class Collective(NamedTuple):
    """One instruction of the program."""

    kind: str
    bytes: int
    in_gradient_step: bool


def collectives(hlo: str) -> list[Collective]:
    """The collectives of a compiled program's text."""
    exchanges = []
    for line in hlo.splitlines():
        match = re.match(rf'\s*(?:ROOT )?\S+ = (.*?) ({"|".join(KINDS)})(-start)?\(', line)
        if match:
            # Gradient steps are the scan within the scan over updates.
            name = re.search(r'op_name="([^"]*)"', line)
            inner = name is not None and ('jvp' in name[1] or name[1].count('while/body') > 1)
            exchanges.append(Collective(match[2], size(match[1]), inner))
    return exchanges


def size(shapes: str) -> int:
    """Bytes of the shapes in an instruction's type."""
    return sum(
        BYTES[kind] * math.prod(int(n) for n in dimensions.split(',') if n)
        for kind, dimensions in re.findall(r'(\w+)\[([\d,]*)\]', shapes)
    )


def seconds(exchanges: list[Collective], gradient_steps: int, link: Link, devices: int) -> float:
    """Communication of one update."""
    total = 0.0
    for one in exchanges:
        once = 2 * (devices - 1) / devices * one.bytes / link.bytes_per_s
        once += link.latency_s * math.log2(devices)
        total += once * (gradient_steps if one.in_gradient_step else 1)
    return total


def measure(path: Path) -> dict[str, Any]:
    run = runs.load(path)
    task = control_task.make(run)
    layout = setup.Layout.of(Members.of(run), task)
    dispatch = update.make_dispatch(task.workload, run, 1, layout.shardings)
    exchanges = collectives(dispatch.lower(layout.state).compile().as_text())
    steps = run.optimizer.epochs * run.optimizer.minibatches
    parameters = sum(x.size * 4 for x in jax.tree.leaves(layout.policy.params))
    return {
        'config': str(path),
        'gradient_steps': steps,
        'parameter_bytes': parameters,
        'collectives': [one._asdict() for one in exchanges],
        'bytes_per_update': sum(
            one.bytes * (steps if one.in_gradient_step else 1) for one in exchanges
        ),
        'model': {
            name: {
                'communication_s': seconds(exchanges, steps, link, DEVICES),
                'efficiency': {
                    f'{t:g} s of computation': round(
                        t / (t + seconds(exchanges, steps, link, DEVICES)), 4
                    )
                    for t in COMPUTE_S
                },
            }
            for name, link in LINKS.items()
        },
    }


def main() -> None:
    parser = make_parser(__doc__, needs_out=True)
    parser.add_argument('configs', type=Path, nargs='+')
    options = parser.parse_args()
    # Read when JAX first looks for devices, which is not before here.
    flags = os.environ.get('XLA_FLAGS', '')
    os.environ['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count=8'
    results = {
        'machine': machine('benchmarks.control_communication'),
        'model': {
            'devices': DEVICES,
            'says': MODEL,
            'links': {name: link._asdict() for name, link in LINKS.items()},
        },
        'programs': [measure(path) for path in options.configs],
    }
    write(results, options.out)
    for program in results['programs']:
        kinds = [one['kind'] for one in program['collectives']]
        counts = ', '.join(f'{kinds.count(kind)} {kind}' for kind in KINDS if kind in kinds)
        print(f'{program["config"]}: {counts}; {program["bytes_per_update"]:,} bytes an update')
        for name, model in program['model'].items():
            print(f'  {name}: {model["communication_s"] * 1e6:.0f} us; {model["efficiency"]}')


if __name__ == '__main__':
    main()
