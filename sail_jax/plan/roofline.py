"""How long a counted program takes at the least on a chip, and where the time goes.

A program can be no faster than its matrix products at the chip's peak, its traffic at the memory's
bandwidth, its exchanges at that of the links, or its kernels one after the other. The largest of
these is its time at the roofline. Nothing here was measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sail_jax.plan.collectives import Collective, Fleet, across_hosts, axes_of
from sail_jax.plan.count import Counted, Operation
from sail_jax.plan.hlo import SourceLine
from sail_jax.plan.targets import Chip

LAUNCH = {'cuda': 1e-6, 'tpu': 0.0}
"""Seconds from the start of one kernel to that of the next, if it does nothing. No maker publishes
it: assumed low, so that times stay bounds; a TPU's program is launched as one."""


class Times(NamedTuple):
    """Seconds that a program takes at the least, for each of what it does."""

    matmul_s: float
    memory_s: float
    links_s: float
    kernels_s: float

    @property
    def roofline_s(self) -> float:
        """The least, for all of it."""
        return max(self)

    @property
    def bound_by(self) -> str:
        """What takes that long: `matmul`, `memory`, `links`, `kernels`."""
        return max(self._fields, key=lambda name: getattr(self, name)).removesuffix('_s')


def times(counted: Counted, chip: Chip, fleet: Fleet) -> Times:
    """The times of a program."""
    parts = [of_operation(operation, chip, fleet) for operation in counted.operations]
    return Times(*map(sum, zip(*parts, strict=True))) if parts else Times(0.0, 0.0, 0.0, 0.0)


def of_operation(operation: Operation, chip: Chip, fleet: Fleet) -> Times:
    """Of one operation, as often as it is run."""
    products = sum(count / chip.flops_of(kind) for kind, count in operation.flops.items())
    sent = exchange_s(operation.collective, chip, fleet) if operation.collective else 0.0
    return Times(
        matmul_s=operation.times * products,
        memory_s=operation.times * operation.traffic_bytes / chip.bandwidth,
        links_s=operation.times * sent,
        kernels_s=operation.times * operation.kernel * LAUNCH[chip.platform],
    )


def exchange_s(exchange: Collective, chip: Chip, fleet: Fleet) -> float:
    """Seconds of an exchange: within hosts by their links, across them by the network that the
    host's chips of a group share."""
    within = exchange.wire_bytes / chip.link
    if chip.platform == 'tpu' or not across_hosts(exchange.groups, fleet.hosts):
        return within
    if exchange.kind == 'collective-permute':
        return exchange.wire_bytes / chip.network
    group = max(exchange.groups, key=len)
    hosts = len({fleet.hosts[device] for device in group})
    passes = 2 if exchange.kind == 'all-reduce' else 1
    share = passes * exchange.bytes * (hosts - 1) / hosts / (len(group) / hosts)
    return max(within, share / chip.network)


class Heavy(NamedTuple):
    """Operations of one line of source, one kind and one shape."""

    operation: str
    shape: str
    source: str
    times: int
    flops: int
    traffic_bytes: int
    seconds: float


def heaviest(counted: Counted, chip: Chip, fleet: Fleet, most: int = 10) -> list[Heavy]:
    """Those that take longest at the roofline, the longest first."""
    together: dict[tuple[str, str, str], list[Operation]] = {}
    for operation in counted.operations:
        name = operation.op_name.rpartition('/')[2] or operation.opcode
        key = (name, operation.shape, source(operation.lines))
        together.setdefault(key, []).append(operation)
    heavy = [
        Heavy(
            operation=name,
            shape=shape,
            source=where,
            times=sum(x.times for x in members),
            flops=sum(x.times * sum(x.flops.values()) for x in members),
            traffic_bytes=sum(x.times * x.traffic_bytes for x in members),
            seconds=sum(of_operation(x, chip, fleet).roofline_s for x in members),
        )
        for (name, shape, where), members in together.items()
    ]
    return sorted(heavy, key=lambda x: -x.seconds)[:most]


def source(lines: Iterable[SourceLine]) -> str:
    """The innermost line of this package on a stack, and that of a library it calls, if another:
    `sail_jax/control/lanes.py:80 (brax/spring/pipeline.py:100)`; '' where there is none."""
    lines = tuple(lines)
    if not lines:
        return ''
    ours = next((line for line in lines if '/sail_jax/' in line.file), None)
    said = [_short(line) for line in (ours, lines[0]) if line is not None]
    return said[0] if len(set(said)) == 1 else f'{said[0]} ({said[1]})'


def _short(line: SourceLine) -> str:
    path = line.file
    for mark in ('/site-packages/', '/dist-packages/'):
        path = path.rpartition(mark)[2]
    if '/sail_jax/' in path:
        path = f'sail_jax/{path.rpartition("/sail_jax/")[2]}'
    return f'{path}:{line.line}'


class Exchanges(NamedTuple):
    """Exchanges of one kind along the same axes of the mesh."""

    kind: str
    axes: str
    hosts: str
    """`within` or `across`."""
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    bytes: int
    """Of all of them; see `Collective.bytes`."""
    wire_bytes: int


def exchanges(counted: Counted, fleet: Fleet) -> list[Exchanges]:
    """A program's exchanges, those with most bytes first."""
    together: dict[tuple[str, str, str], list[tuple[int, Collective]]] = {}
    for operation in counted.operations:
        if (one := operation.collective) is None or max(map(len, one.groups)) == 1:
            continue
        hosts = 'across' if across_hosts(one.groups, fleet.hosts) else 'within'
        key = (one.kind, axes_of(one.groups, fleet.axes), hosts)
        together.setdefault(key, []).append((operation.times, one))
    rows = [
        Exchanges(
            kind=kind,
            axes=axes,
            hosts=hosts,
            count=sum(times for times, _ in members),
            bytes=sum(times * one.bytes for times, one in members),
            wire_bytes=sum(times * one.wire_bytes for times, one in members),
        )
        for (kind, axes, hosts), members in together.items()
    ]
    return sorted(rows, key=lambda row: -row.bytes)
