"""The text of a compiled program (`Compiled.as_text()`), read: computations, their instructions,
shapes as they lie in memory, and the line of source that each came from. Pure Python."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

BITS = {'pred': 8, 'token': 0, 'opaque': 0, 'bf16': 16}
"""Of the types whose name does not end with their bits."""


class Array(NamedTuple):
    """An array of one device."""

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    """What a TPU pads the most minor dimensions to multiples of."""
    space: int = 0
    """Where it lies: 0 is the device's memory; the compilers say which number is what else."""

    @property
    def bytes(self) -> int:
        """As it lies in memory, with the padding of its tiles."""
        dims = [self.dims[i] for i in reversed(self.minor_to_major)] or list(self.dims)
        for i, size in enumerate(reversed(self.tile), 1):
            if i <= len(dims):
                dims[-i] = -(-dims[-i] // size) * size
        return math.prod(dims) * _bits(self.dtype) // 8

    @property
    def size(self) -> int:
        """Entries, without padding."""
        return math.prod(self.dims)

    def __str__(self) -> str:
        return f'{self.dtype}[{",".join(map(str, self.dims))}]'


Shape = Array | tuple['Shape', ...]


def leaves(shape: Shape) -> Iterator[Array]:
    """The arrays of a shape."""
    if isinstance(shape, Array):
        yield shape
        return
    for part in shape:
        yield from leaves(part)


class Instruction(NamedTuple):
    """One operation of a computation."""

    name: str
    shape: Shape
    opcode: str
    operands: tuple[str, ...]
    literal: str
    """What stands between the parentheses."""
    attributes: str
    """What follows them."""

    @property
    def called(self) -> dict[str, str]:
        """The computations that it names, by how: `calls`, `to_apply`, `condition`, `body`."""
        return dict(re.findall(r'\b(calls|to_apply|condition|body)=%([\w.\-]+)', self.attributes))

    @property
    def branches(self) -> list[str]:
        """The computations of a `conditional`."""
        pattern = r'(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%[\w.\-]+))'
        said = ' '.join(a or b for a, b in re.findall(pattern, self.attributes))
        return re.findall(r'%([\w.\-]+)', said)

    def numbers(self, key: str) -> tuple[int, ...]:
        """Of an attribute `key={1,2}`; none where it has none."""
        match = re.search(rf'\b{key}=\{{([\d,]*)\}}', self.attributes)
        return tuple(int(x) for x in match[1].split(',') if x) if match else ()

    @property
    def backend(self) -> dict[str, Any]:
        """What the compiler notes for itself."""
        at = self.attributes.find('backend_config={')
        if at < 0:
            return {}
        try:
            return json.JSONDecoder().raw_decode(self.attributes, at + len('backend_config='))[0]
        except ValueError:
            return {}

    @property
    def op_name(self) -> str:
        """JAX's path of the operation, `jit(f)/while/body/dot_general`; '' where it has none."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ''


def index(element: Instruction) -> int:
    """Which element of its tuple a `get-tuple-element` is."""
    match = re.search(r'\bindex=(\d+)', element.attributes)
    return int(match[1]) if match else 0


class Computation(NamedTuple):
    """Instructions in the order they run."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    @property
    def parameters(self) -> list[Instruction]:
        """By their number."""
        mine = [x for x in self.instructions.values() if x.opcode == 'parameter']
        return sorted(mine, key=lambda x: int(x.literal))

    def users(self, name: str) -> list[Instruction]:
        """The instructions that read another's result."""
        return [x for x in self.instructions.values() if name in x.operands]


class SourceLine(NamedTuple):
    """A line of source."""

    file: str
    line: int
    function: str


class Module(NamedTuple):
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str
    frames: dict[int, tuple[SourceLine, int]]
    """Stack frames: a line, and the frame that called it; 0 is none."""
    partitions: int

    def lines(self, instruction: Instruction) -> list[SourceLine]:
        """The stack that an instruction came from, the innermost call first."""
        match = re.search(r'stack_frame_id=(\d+)', instruction.attributes)
        frame, stack = int(match[1]) if match else 0, []
        while frame in self.frames:
            line, caller = self.frames[frame]
            stack.append(line)
            frame = caller if caller < frame else 0
        return stack


def parse(text: str) -> Module:
    """Reads the text of a compiled program.

    Raises:
      ValueError: it is none.
    """
    computations, entry, name = {}, '', ''
    lines: list[str] = []
    for line in text.splitlines():
        if not name and line.startswith(('%', 'ENTRY ')) and line.endswith('{'):
            name = re.split(r'[ (]', line.removeprefix('ENTRY ').removeprefix('%'), maxsplit=1)[0]
            entry, lines = name if line.startswith('ENTRY ') else entry, []
        elif name and line == '}':
            computations[name] = _computation(name, lines)
            name = ''
        elif line.startswith(('  %', '  ROOT %')):
            lines.append(line)
        elif lines:  # An attribute of several lines.
            lines[-1] += line
    if not entry:
        raise ValueError('no text of a compiled program')
    partitions = re.search(r'num_partitions=(\d+)', text[:100_000])
    return Module(computations, entry, _frames(text), int(partitions[1]) if partitions else 1)


def _computation(name: str, lines: list[str]) -> Computation:
    inside, root = {}, ''
    for line in lines:
        instruction = _instruction(line)
        inside[instruction.name] = instruction
        if not root and line.startswith('  ROOT '):
            root = instruction.name
    return Computation(name, inside, root or next(reversed(inside), ''))


def _instruction(line: str) -> Instruction:
    """Of `[ROOT] %name = shape opcode(operands), attributes`."""
    name, _, rest = line.strip().removeprefix('ROOT ').partition(' = ')
    if '/*' in rest:
        rest = re.sub(r'/\*.*?\*/', '', rest)
    end = _closing(rest, 0) + 1 if rest.startswith('(') else rest.index(' ')
    shape, rest = rest[:end], rest[end:].lstrip()
    at = rest.index('(')
    closed = _closing(rest, at)
    inner = rest[at + 1 : closed]
    return Instruction(
        name=name.removeprefix('%'),
        shape=_shape(shape),
        opcode=rest[:at],
        operands=() if rest.startswith('constant') else tuple(re.findall(r'%([\w.\-]+)', inner)),
        literal=inner,
        attributes=rest[closed + 1 :],
    )


def _closing(text: str, at: int) -> int:
    """Where the parenthesis that opens at a place closes; those within quotes do not count."""
    depth = 0
    for match in re.compile(r'[()]|"(?:[^"\\]|\\.)*"').finditer(text, at):
        depth += {'(': 1, ')': -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    raise ValueError(f'unbalanced: {text[at : at + 80]}')


@functools.lru_cache(2**16)
def _shape(text: str) -> Shape:
    shape, _ = _read_shape(text, 0)
    return shape


ARRAY = re.compile(r'([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?|(token|opaque)\[\]')


def _read_shape(text: str, at: int) -> tuple[Shape, int]:
    """The shape that begins at a place, and where it ends."""
    if text[at] != '(':
        match = ARRAY.match(text, at)
        if match is None:
            raise ValueError(f'no shape: {text[at : at + 80]}')
        return _array(match), match.end()
    parts: list[Shape] = []
    at += 1
    while text[at] != ')':
        if text[at] in ', ':
            at += 1
            continue
        part, at = _read_shape(text, at)
        parts.append(part)
    return tuple(parts), at + 1


def _array(match: re.Match) -> Array:
    dims = tuple(int(x.lstrip('<=')) for x in (match[2] or '').split(',') if x)
    order, _, layout = (match[3] or '').partition(':')
    tile = re.search(r'T\(([\d,*]+)\)', layout)
    space = re.search(r'S\((\d+)\)', layout)
    return Array(
        dtype=match[1] or match[4],
        dims=dims,
        minor_to_major=tuple(int(x) for x in order.split(',') if x),
        tile=tuple(int(x) for x in tile[1].split(',') if x != '*') if tile else (),
        space=int(space[1]) if space else 0,
    )


def _bits(dtype: str) -> int:
    if dtype in BITS:
        return BITS[dtype]
    match = re.match(r'[a-z]+?(\d+)', dtype)
    return int(match[1]) if match else 0


def _frames(text: str) -> dict[int, tuple[SourceLine, int]]:
    """The tables of source lines that stand before the computations."""
    head = text[: text.find('\n%') if '\n%' in text else text.find('\nENTRY')]

    def table(title: str) -> list[tuple[int, str]]:
        match = re.search(rf'^{title}\n((?:\d+ .*\n)*)', head, re.MULTILINE)
        rows = (match[1] if match else '').splitlines()
        return [(int(number), rest) for number, _, rest in (row.partition(' ') for row in rows)]

    def fields(rest: str) -> dict[str, int]:
        return {key: int(value) for key, value in re.findall(r'(\w+)=(\d+)', rest)}

    files = {number: rest.strip('"') for number, rest in table('FileNames')}
    functions = {number: rest.strip('"') for number, rest in table('FunctionNames')}
    places = {}
    for number, rest in table('FileLocations'):
        place = fields(rest)
        places[number] = SourceLine(
            file=files.get(place.get('file_name_id', 0), ''),
            line=place.get('line', 0),
            function=functions.get(place.get('function_name_id', 0), ''),
        )
    rows = [(number, fields(rest)) for number, rest in table('StackFrames')]
    # XLA has written callers from 0, which is none, and from 1; the first frame has none.
    none = min(rows, key=lambda row: row[0])[1].get('parent_frame_id', 0) if rows else 0
    return {
        number: (places[frame['file_location_id']], frame.get('parent_frame_id', none) - none)
        for number, frame in rows
        if frame.get('file_location_id') in places
    }
