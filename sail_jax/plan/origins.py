"""Where an instruction of a compiled program came from: the line of source of JAX's operation that
became it. What a compiler adds of its own (a copy, a slice fetched ahead of its use, an exchange of
several arrays in one) has none, and gets that of what it is for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sail_jax.plan import hlo
from sail_jax.plan.hlo import Computation, Instruction, Module, SourceLine


def own(module: Module, instruction: Instruction) -> Instruction:
    """The instruction that says where one came from: of a fusion, its product if it has one."""
    if instruction.opcode != 'fusion':
        return instruction
    inside = list(_inside(module, instruction.called['calls']))
    products = [x for x in inside if x.opcode in ('dot', 'convolution', 'custom-call')]
    for candidate in (*products, instruction, *reversed(inside)):
        if module.lines(candidate):
            return candidate
    return instruction


def _inside(module: Module, name: str) -> Iterator[Instruction]:
    for instruction in module.computations[name].instructions.values():
        yield instruction
        if instruction.opcode == 'fusion':
            yield from _inside(module, instruction.called['calls'])


class Element(NamedTuple):
    """What an instruction results in, or one element of it, which is a tuple."""

    name: str
    place: int | None = None
    """None: all of it."""


class Neighbours:
    """Lines of the instructions around those that have none."""

    def __init__(self, module: Module):
        self.module = module
        instructions = (x for c in module.computations.values() for x in c.instructions.values())
        self.bodies = {x.called['body'] for x in instructions if x.opcode == 'while'}
        self._users = functools.cache(self._users_of)

    def lines(self, computation: Computation, instruction: Instruction) -> list[SourceLine]:
        """Of the nearest that uses its result, or else of the nearest that it reads; none where
        neither has any."""
        start = Element(instruction.name)
        return self._nearest(computation, start, self._used) or self._nearest(
            computation, start, self._read
        )

    def _nearest(
        self,
        computation: Computation,
        start: Element,
        step: Callable[[Computation, Element], Iterator[Element]],
    ) -> list[SourceLine]:
        seen, level = {start}, [start]
        while level:
            # In this order, each once.
            level = list(dict.fromkeys(x for value in level for x in step(computation, value)))
            level = [x for x in level if x not in seen]
            seen.update(level)
            for value in level:
                said = own(self.module, computation.instructions[value.name])
                if lines := self.module.lines(said):
                    return lines
        return []

    def _used(self, computation: Computation, value: Element) -> Iterator[Element]:
        """What reads a value; of what a loop's body leaves, what reads it in the next round."""
        if value.name == computation.root and computation.name in self.bodies:
            yield Element(computation.parameters[0].name, value.place)
        for user in self._users(computation.name).get(value.name, ()):
            if user.opcode == 'tuple':
                places = [i for i, name in enumerate(user.operands) if name == value.name]
                yield from (Element(user.name, place) for place in places)
            elif user.opcode != 'get-tuple-element' or value.place in (None, hlo.index(user)):
                yield Element(user.name)

    def _read(self, computation: Computation, value: Element) -> Iterator[Element]:
        yield from map(Element, computation.instructions[value.name].operands)

    def _users_of(self, name: str) -> dict[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {}
        for instruction in self.module.computations[name].instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        return users
