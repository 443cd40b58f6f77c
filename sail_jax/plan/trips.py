"""How often a loop of a compiled program goes round.

CUDA's compiler says so (`known_trip_count`); of a TPU's, and of loops that may end early, it is
worked out from the condition: a counter that is compared with a number.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sail_jax.plan import hlo
from sail_jax.plan.hlo import Computation, Instruction, Module

SAME = ('copy', 'bitcast', 'convert', 'copy-start', 'copy-done', 'reshape')
"""What passes a number on."""


class Trips(NamedTuple):
    """Of one loop."""

    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    exact: bool
    """Or it may end earlier."""


class Scope(NamedTuple):
    """A computation, and what its parameters are."""

    computation: Computation
    caller: Scope | None = None
    arguments: tuple[str, ...] = ()
    """Names in the caller, by the parameters' numbers."""
    body: Computation | None = None
    """Of a loop, whose one parameter is its state: what the state becomes."""


def of_loop(module: Module, scope: Scope, loop: Instruction) -> Trips | None:
    """Of a `while` of the scope's computation; None where the text does not tell."""
    if said := loop.backend.get('known_trip_count'):
        return Trips(int(said['n']), exact=True)
    called = loop.called
    body = module.computations[called['body']]
    condition = Scope(module.computations[called['condition']], scope, loop.operands, body)
    within = Scope(body, scope, loop.operands, body)
    bounds = list(_bounds(module, condition, condition.computation.root))
    counts = []
    for bound in bounds:
        start = _start(module, condition, bound.index)
        first = start and reached(module, *start)
        step = _step(module, within, bound.index)
        counts.append(max(0, -(-(bound.limit - (first or 0)) // (step or 1))))
    if not counts:
        return None
    alone = all(bound.alone for bound in bounds) and len(bounds) == 1
    return Trips(min(counts), exact=alone)


class Bound(NamedTuple):
    """`state[index] < limit` has to hold for another round."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    limit: int
    alone: bool
    """Or other things have to hold too."""


def _bounds(module: Module, scope: Scope, name: str, alone: bool = True) -> list[Bound]:
    """The bounds of counters in a condition."""
    scope, instruction = _follow(module, scope, name)
    if instruction is None:
        return []
    if instruction.opcode == 'and':
        parts = (_bounds(module, scope, operand, False) for operand in instruction.operands)
        return [bound for part in parts for bound in part]
    if instruction.opcode != 'compare':
        return []
    left, right = instruction.operands
    match = re.search(r'direction=(\w\w)', instruction.attributes)
    direction = match[1] if match else ''
    if direction in ('GT', 'GE'):
        left, right = right, left
    limit = number(module, scope, right)
    scope, left, more = _without_numbers(module, scope, left)
    index = _counter(module, scope, left)
    if index is None or limit is None or direction == 'EQ':
        return []
    return [Bound(index, limit - more + (direction in ('LE', 'GE')), alone)]


def _without_numbers(module: Module, scope: Scope, name: str) -> tuple[Scope, str, int]:
    """A value without the numbers that are added to it, and their sum."""
    more = 0
    for _ in range(10):
        inside, made = _follow(module, scope, name)
        if made is None or made.opcode != 'add':
            break
        numbers = [reached(module, inside, operand) for operand in made.operands]
        if (numbers[0] is None) == (numbers[1] is None):
            break
        rest = numbers.index(None)
        scope, name, more = inside, made.operands[rest], more + (numbers[1 - rest] or 0)
    return scope, name, more


def _follow(module: Module, scope: Scope, name: str) -> tuple[Scope, Instruction | None]:
    """The instruction that makes a value, through copies, fusions and parameters."""
    for _ in range(200):
        instruction = scope.computation.instructions.get(name)
        if instruction is None:
            return scope, None
        if instruction.opcode in SAME:
            name = instruction.operands[0]
        elif instruction.opcode == 'fusion':
            inner = module.computations[instruction.called['calls']]
            scope, name = Scope(inner, scope, instruction.operands), inner.root
        elif instruction.opcode == 'parameter' and scope.caller and scope.body is None:
            name, scope = scope.arguments[int(instruction.literal)], scope.caller
        elif instruction.opcode == 'get-tuple-element':
            inside, made = _follow(module, scope, instruction.operands[0])
            if made is None or made.opcode != 'tuple':
                return scope, instruction
            scope, name = inside, made.operands[hlo.index(instruction)]
        else:
            return scope, instruction
    return scope, None


def _state(module: Module, scope: Scope, name: str) -> tuple[Scope, int] | None:
    """The loop, by its scope, and the place in its state, that a value is read from."""
    scope, element = _follow(module, scope, name)
    if element is None or element.opcode != 'get-tuple-element':
        return None
    inside, owner = _follow(module, scope, element.operands[0])
    if owner is None or owner.opcode != 'parameter' or inside.body is None:
        return None
    return inside, hlo.index(element)


def _counter(module: Module, scope: Scope, name: str) -> int | None:
    """The place in the loop's state that a value is."""
    state = _state(module, scope, name)
    return state and state[1]


def _start(module: Module, scope: Scope, index: int) -> tuple[Scope, str] | None:
    """What the loop's state begins with at a place."""
    assert scope.caller is not None
    inside, made = _follow(module, scope.caller, scope.arguments[0])
    if made is None or made.opcode != 'tuple':
        return None
    return inside, made.operands[index]


def _result(module: Module, scope: Scope, name: str) -> tuple[Scope, int] | None:
    """The loop, by its condition, and the place in its last state, that a value is read from."""
    scope, element = _follow(module, scope, name)
    if element is None or element.opcode != 'get-tuple-element':
        return None
    scope, loop = _follow(module, scope, element.operands[0])
    if loop is None or loop.opcode != 'while':
        return None
    body = module.computations[loop.called['body']]
    condition = module.computations[loop.called['condition']]
    return Scope(condition, scope, loop.operands, body), hlo.index(element)


def _step(module: Module, scope: Scope, index: int) -> int | None:
    """What a round adds to the state at a place."""
    root = scope.computation.instructions[scope.computation.root]
    if root.opcode != 'tuple':
        return None
    inside, made = _follow(module, scope, root.operands[index])
    if made is None or made.opcode != 'add':
        return None
    numbers = [number(module, inside, operand) for operand in made.operands]
    return next((x for x in numbers if x is not None), None)


def number(module: Module, scope: Scope, name: str) -> int | None:
    """The integer that a value always is, if it is one; a loop's state where no round changes
    it."""
    inside, made = _follow(module, scope, name)
    if made is None:
        return None
    if made.opcode == 'constant':
        return int(made.literal) if re.fullmatch(r'-?\d+', made.literal) else None
    start = _unchanged(module, _state(module, inside, made.name))
    return None if start is None else number(module, *start)


def reached(module: Module, scope: Scope, name: str) -> int | None:
    """`number`, or where an earlier loop's counter ends at the most: its limit. Of loops that share
    a counter the first then has all the rounds."""
    if (always := number(module, scope, name)) is not None:
        return always
    inside, made = _follow(module, scope, name)
    if made is None:
        return None
    if made.opcode == 'add':
        parts = [reached(module, inside, operand) for operand in made.operands]
        return None if None in parts else sum(part or 0 for part in parts)
    earlier = _result(module, inside, made.name)
    for state in (_state(module, inside, made.name), earlier):
        if start := _unchanged(module, state):
            return reached(module, *start)
    if earlier is None:
        return None
    condition, place = earlier
    bounds = _bounds(module, condition, condition.computation.root)
    return next((bound.limit for bound in bounds if bound.index == place), None)


def _unchanged(module: Module, state: tuple[Scope, int] | None) -> tuple[Scope, str] | None:
    """What a place in a loop's state begins with, if no round changes it."""
    if state is None:
        return None
    loop, index = state
    assert loop.body is not None
    root = loop.body.instructions[loop.body.root]
    if root.opcode != 'tuple' or _own_element(loop.body, root.operands[index]) != index:
        return None
    return _start(module, loop, index)


def _own_element(body: Computation, name: str) -> int | None:
    """The place in its own state that a body's value is read from unchanged."""
    element = body.instructions[name]
    if element.opcode != 'get-tuple-element':
        return None
    owner = body.instructions[element.operands[0]]
    return hlo.index(element) if owner.opcode == 'parameter' else None
