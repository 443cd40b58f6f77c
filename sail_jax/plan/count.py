"""A compiled program, counted: what it does to the products, the memory and the links of a device,
the bodies of its loops as often as they run.

    counted = count.count(compiled.as_text(), 'tpu', {'data': 8, 'fsdp': 1, 'tensor': 1})
    counted.flops, counted.traffic_bytes, counted.kernels
    for operation in count.heaviest(counted, seconds, 10): ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from sail_jax.plan import collectives, hlo, origins, trips, work
from sail_jax.plan.collectives import Collective
from sail_jax.plan.hlo import Array, Computation, Instruction, Module, SourceLine, leaves
from sail_jax.plan.trips import Scope

Platform = Literal['tpu', 'cuda']

FREE = {
    'parameter',
    'constant',
    'tuple',
    'get-tuple-element',
    'bitcast',
    'after-all',
    'add-dependency',
    'opt-barrier',
    'optimization-barrier',
    'partition-id',
    'replica-id',
    'domain',
}
"""What costs nothing."""
OUTSIDE = {'tpu': lambda space: space != 0, 'cuda': lambda space: space == 5}
"""Which memory spaces are not the device's memory: a TPU's vector and scalar memory, and the
host's."""


class Operation(NamedTuple):
    """An instruction that is run, and how often."""

    name: str
    opcode: str
    shape: str
    """Of its first result."""
    op_name: str
    lines: tuple[SourceLine, ...]
    """Where it came from, the innermost call first; of what the compiler adds, where what it is for
    came from."""
    times: int
    flops: Mapping[str, int]
    """Of each time, by precision; see `work.flops`."""
    traffic_bytes: int
    """Of each time."""
    kernel: bool
    """Whether something is launched for it."""
    collective: Collective | None


class WhileLoop(NamedTuple):
    """A loop, and how often it goes round each time it is met."""

    lines: tuple[SourceLine, ...]
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    exact: bool
    """Or it may end earlier, and this is the most."""


class Counted(NamedTuple):
    """A program of one device."""

    operations: tuple[Operation, ...]
    loops: tuple[WhileLoop, ...]
    partitions: int

    @property
    def flops(self) -> int:
        """Operations of matrix products."""
        return sum(self.flops_by_precision.values())

    @property
    def flops_by_precision(self) -> dict[str, int]:
        """The same, `bf16`, `f32` and so on apart."""
        total: dict[str, int] = {}
        for operation in self.operations:
            for precision, count in operation.flops.items():
                total[precision] = total.get(precision, 0) + count * operation.times
        return total

    @property
    def traffic_bytes(self) -> int:
        """Read from memory and written to it."""
        return _moved(self.operations)

    @property
    def kernels(self) -> int:
        """Launched, loops included."""
        return sum(x.times for x in self.operations if x.kernel)


def count(text: str, platform: Platform, longest: int = 1) -> Counted:
    """Counts the text of a compiled program.

    Args:
      longest: how often a loop goes round of which the text does not tell.

    Raises:
      ValueError: it is no such text.
    """
    module = hlo.parse(text)
    counter = _Counter(module, platform, longest)
    operations = counter.run(Scope(module.computations[module.entry]), 1)
    return Counted(tuple(operations), tuple(counter.loops), module.partitions)


class _Counter:
    """The walk through the computations that are run."""

    def __init__(self, module: Module, platform: Platform, longest: int):
        self.module, self.platform, self.longest = module, platform, longest
        self.loops: list[WhileLoop] = []
        outside = OUTSIDE[platform]
        self._in_memory: Callable[[Array], bool] = lambda array: not outside(array.space)
        self._of = functools.cache(self._operation)
        self._neighbours = origins.Neighbours(module)

    def run(self, scope: Scope, times: int) -> list[Operation]:
        """The operations of a computation that is run so often."""
        return list(self._run(scope, times))

    def _run(self, scope: Scope, times: int) -> Iterator[Operation]:
        computations = self.module.computations
        for instruction in scope.computation.instructions.values():
            called = instruction.called
            match instruction.opcode:
                case 'while':
                    yield from self._loop(scope, instruction, times)
                case 'conditional':
                    arguments = instruction.operands[1:]
                    ways = [
                        self.run(Scope(computations[name], scope, arguments[i : i + 1]), times)
                        for i, name in enumerate(instruction.branches)
                    ]
                    yield from max(ways, key=_moved)  # Which way is not known.
                case 'call':
                    inner = computations[called['to_apply']]
                    yield from self.run(Scope(inner, scope, instruction.operands), times)
                case 'async-start' if 'calls' in called:
                    inner = computations[called['calls']]
                    yield from self.run(Scope(inner, scope, instruction.operands), times)
                case opcode if opcode in FREE or opcode.endswith(('-done', '-update')):
                    continue
                case _:
                    operation = self._of(scope.computation.name, instruction.name)
                    yield operation._replace(times=times)

    def _loop(self, scope: Scope, loop: Instruction, times: int) -> Iterator[Operation]:
        computations, called = self.module.computations, loop.called
        said = trips.of_loop(self.module, scope, loop) or trips.Trips(self.longest, exact=False)
        self.loops.append(WhileLoop(tuple(self.module.lines(loop)), said.count, said.exact))
        body, condition = computations[called['body']], computations[called['condition']]
        yield from self.run(Scope(body, scope, loop.operands, body), times * said.count)
        if not said.exact:  # A counter's condition is not asked.
            inner = Scope(condition, scope, loop.operands, body)
            yield from self.run(inner, times * (said.count + 1))

    def _operation(self, computation_name: str, name: str) -> Operation:
        module = self.module
        computation = module.computations[computation_name]
        instruction = computation.instructions[name]
        source = origins.own(module, instruction)
        lines = module.lines(source) or self._neighbours.lines(computation, instruction)
        return Operation(
            name=name,
            opcode=instruction.opcode,
            shape=str(next(leaves(instruction.shape), '()')),
            op_name=source.op_name,
            lines=tuple(lines),
            times=1,
            flops=work.flops(module, computation, instruction),
            traffic_bytes=work.traffic(module, computation, instruction, self._in_memory),
            kernel=self.platform == 'cuda' or not _is_scalar(computation, instruction),
            collective=collectives.read(computation, instruction, module.partitions),
        )


def _moved(operations: Sequence[Operation]) -> int:
    return sum(x.traffic_bytes * x.times for x in operations)


def _is_scalar(computation: Computation, instruction: Instruction) -> bool:
    """A TPU has a core of its own for these."""
    shapes = [instruction.shape, *(computation.instructions[x].shape for x in instruction.operands)]
    return all(not array.dims for shape in shapes for array in leaves(shape))
