"""Who talks to whom in a compiled program, along which axis of the mesh, and about how much."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sail_jax.plan.hlo import Computation, Instruction, leaves

KINDS = ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute', 'reduce-scatter')
Groups = tuple[tuple[int, ...], ...]
"""Devices that talk to each other, by their number in the mesh."""


class Collective(NamedTuple):
    """One exchange of a device."""

    kind: str
    bytes: int
    """Of the larger side: what is gathered, reduced or scattered."""
    wire_bytes: int
    """That a device sends at the least."""
    groups: Groups


class Fleet(NamedTuple):
    """The devices that a program is for."""

    axes: Mapping[str, int]
    """Sizes of the mesh's axes, in their order."""
    hosts: Sequence[int]
    """Of each device of the mesh, in its order."""


def read(computation: Computation, instruction: Instruction, devices: int) -> Collective | None:
    """What an instruction exchanges; None of one that exchanges nothing, or ends an exchange."""
    kind = instruction.opcode.removesuffix('-start')
    if kind not in KINDS:
        return None
    groups = of_attributes(instruction.attributes, devices)
    n = max(map(len, groups))
    mine = sum(
        x.bytes
        for name in instruction.operands
        for x in leaves(computation.instructions[name].shape)
    )
    payload = mine * n if kind == 'all-gather' else mine
    share = {'all-reduce': 2 * (n - 1) / n, 'collective-permute': 1.0}.get(kind, (n - 1) / n)
    return Collective(kind, payload, round(payload * share), groups)


def of_attributes(attributes: str, devices: int) -> Groups:
    """The groups that an instruction names, in any of the ways that XLA writes them."""
    everybody = (tuple(range(devices)),)
    if match := re.search(r'source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}', attributes):
        return _listed(match[1]) or everybody
    notations = r'mesh\[.*?\{[^}]*\}|\{\{.*?\}\}|\[[\d,]+\]<=\S*'
    match = re.search(rf'replica_groups=({notations})', attributes)
    said = match[1] if match else ''
    if said.startswith('{{'):
        return _listed(said)
    if match := re.match(r'\[([\d,]+)\]<=(\[.*)', said):
        rows, columns = _numbers(match[1])
        order = _iota(match[2])
        return tuple(tuple(order[i * columns : (i + 1) * columns]) for i in range(rows))
    if said.startswith('mesh['):
        return _of_mesh(said)
    return everybody


def _numbers(text: str) -> list[int]:
    return [int(x) for x in re.findall(r'\d+', text)]


def _listed(text: str) -> Groups:
    return tuple(tuple(_numbers(group)) for group in re.findall(r'\{+([\d,]+)\}', text))


def _iota(text: str) -> list[int]:
    """The order of `[2,4]T(1,0)`: 0, 1, ... in that shape, transposed, and read along."""
    match = re.match(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', text)
    assert match is not None
    dims = _numbers(match[1])
    order = _numbers(match[2]) if match[2] else list(range(len(dims)))
    strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
    places = itertools.product(*(range(dims[i]) for i in order))
    return [sum(p * strides[i] for p, i in zip(place, order, strict=True)) for place in places]


def _of_mesh(said: str) -> Groups:
    """Of `mesh['a'=2,'b'=4] {'b'}`: devices that differ along the axes in braces only, which may
    be parts of one, `'b':(2)2` the part of size 2 after the first of size 2."""
    sizes = re.findall(r"'([^']+)'=(\d+)", said.partition(']')[0])
    devices = re.search(r'device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?|[\d,]+)\)', said)
    named = said.rpartition('{')[2]
    parts: list[tuple[int, bool]] = []
    for name, size in sizes:
        pattern = rf"'{re.escape(name)}'(?::\((\d+)\)(\d+))?"
        matches = list(re.finditer(pattern, named))
        left = 1
        for match in matches:
            if match[1] is None:
                parts.append((int(size), True))
                left = int(size)
                continue
            before = int(match[1]) // left
            parts += [(before, False), (int(match[2]), True)]
            left = int(match[1]) * int(match[2])
        parts.append((int(size) // left, False))
    dims = [size for size, _ in parts]
    order = list(range(math.prod(dims)))
    if devices:
        order = _iota(devices[1]) if devices[1].startswith('[') else _numbers(devices[1])
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, place in enumerate(itertools.product(*map(range, dims))):
        key = tuple(p for p, (_, along) in zip(place, parts, strict=True) if not along)
        groups.setdefault(key, []).append(order[number])
    return tuple(map(tuple, groups.values()))


def axes_of(groups: Groups, axes: Mapping[str, int]) -> str:
    """The axes of the mesh along which those who talk to each other differ, `data+fsdp`: all
    devices along them, a part, or pairs."""
    places = list(itertools.product(*map(range, axes.values())))

    def differ(axis: int) -> bool:
        return any(len({places[device][axis] for device in group}) > 1 for group in groups)

    return '+'.join(name for axis, name in enumerate(axes) if differ(axis))


def across_hosts(groups: Groups, hosts: Sequence[int]) -> bool:
    """Whether any group has devices of several hosts."""
    return any(len({hosts[device] for device in group}) > 1 for group in groups)
