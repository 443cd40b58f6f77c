"""Which random keys a function uses, and how: its program is gone through step by step.

A key may be used in one way: for numbers, once; to be split; or to have numbers folded into it.
What is drawn from a key that was used otherwise is not independent of what was drawn then.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

RANDOM = ('random_bits', 'random_split', 'random_fold_in')


class Use(NamedTuple):
    """One key, put to use once."""

    key: bytes
    what: str
    """`random_bits`, `random_split` or `random_fold_in`."""
    folded: int
    """The number that was folded in; else 0."""


def uses(function: Callable[..., Any], *args: Any) -> list[Use]:
    """Every use of a key when `function(*args)` is computed, of each row and step by itself.

    What no key depends on is left out, so that a simulator or a network costs nothing.
    """
    found: list[Use] = []
    program = jax.make_jaxpr(function)(*args)
    _run(program, [_known(x) for x in jax.tree.leaves(args)], found)
    return found


def reused(found: Iterable[Use]) -> list[list[Use]]:
    """The uses of keys that gave numbers twice, or were used in more than one way.

    To split a key as before, or fold the same into it, is the same way to the same keys: where
    these give numbers twice, it is they that were used twice.
    """
    by_key: dict[bytes, list[Use]] = {}
    for use in found:
        by_key.setdefault(use.key, []).append(use)
    found = []
    for of_key in by_key.values():
        numbers = sum(use.what == 'random_bits' for use in of_key)
        if numbers > 1 or len({use.what for use in of_key}) > 1:
            found.append(of_key)
    return found


Value = Callable[[], Any]
"""Computed when it is asked for, once."""


def _known(x: Any) -> Value:
    return lambda: x


def _run(program: ClosedJaxpr | Jaxpr, args: list[Value], found: list[Use]) -> list[Value]:
    jaxpr, consts = _parts(program)
    values = dict(zip(jaxpr.constvars, map(_known, consts), strict=True))
    values |= zip(jaxpr.invars, args, strict=True)
    read = lambda var: _known(var.val) if isinstance(var, Literal) else values[var]
    for eqn in jaxpr.eqns:
        inputs = [read(var) for var in eqn.invars]
        if eqn.primitive.name in RANDOM:
            found += _of(eqn.primitive.name, inputs)
        if any(map(_is_random, _inner(eqn.params))):
            outputs = _run_inner(eqn, inputs, found)
        else:
            outputs = _outputs(eqn, inputs)
        values |= zip(eqn.outvars, outputs, strict=True)
    return [read(var) for var in jaxpr.outvars]


def _outputs(eqn: Any, inputs: list[Value]) -> list[Value]:
    @functools.cache
    def computed() -> list[Any]:
        params = eqn.primitive.get_bind_params(eqn.params)
        found = eqn.primitive.bind(*(x() for x in inputs), **params)
        return found if eqn.primitive.multiple_results else [found]

    return [lambda i=i: computed()[i] for i in range(len(eqn.outvars))]


def _of(name: str, inputs: list[Value]) -> list[Use]:
    keys = np.asarray(jax.random.key_data(inputs[0]()))
    folded = np.asarray(inputs[1]())[..., None] if name == 'random_fold_in' else np.zeros(1)
    keys, folded = np.broadcast_arrays(keys, folded)
    rows, numbers = keys.reshape(-1, keys.shape[-1]), folded[..., 0].ravel()
    return [Use(row.tobytes(), name, int(x)) for row, x in zip(rows, numbers, strict=True)]


def _run_inner(eqn: Any, inputs: list[Value], found: list[Use]) -> list[Value]:
    """A step that is a program itself, and uses keys."""
    name, params = eqn.primitive.name, eqn.params
    if name == 'scan':
        assert not params['reverse']
        if 'ft_in' in params:  # Since JAX 0.12.
            fixed, carried, _ = (len(part.vals) for part in params['ft_in'].unpack())
        else:
            fixed, carried = params['num_consts'], params['num_carry']
        carry, xs = inputs[fixed : fixed + carried], inputs[fixed + carried :]
        steps = []
        for t in range(params['length']):
            now = [lambda x=x, t=t: x()[t] for x in xs]
            out = _run(params['jaxpr'], [*inputs[:fixed], *carry, *now], found)
            carry = out[:carried]
            steps.append(out[carried:])
        join = lambda column: lambda: jnp.stack([x() for x in column])
        return [*carry, *map(join, zip(*steps, strict=True))]
    if name == 'while':
        first = params['cond_nconsts']
        second = first + params['body_nconsts']
        asking, doing, carry = inputs[:first], inputs[first:second], inputs[second:]
        while _run(params['cond_jaxpr'], [*asking, *carry], found)[0]():
            carry = _run(params['body_jaxpr'], [*doing, *carry], found)
        return carry
    if name == 'cond':
        return _run(params['branches'][int(inputs[0]())], inputs[1:], found)
    (program,) = _inner(params)
    return _run(program, inputs, found)


def _parts(program: ClosedJaxpr | Jaxpr) -> tuple[Jaxpr, list[Any]]:
    return (program.jaxpr, program.consts) if isinstance(program, ClosedJaxpr) else (program, [])


def _inner(value: Any) -> Iterator[Any]:
    if isinstance(value, ClosedJaxpr | Jaxpr):
        yield value
    elif isinstance(value, dict):
        for x in value.values():
            yield from _inner(x)
    elif isinstance(value, list | tuple):
        for x in value:
            yield from _inner(x)


def _is_random(program: Any) -> bool:
    return any(
        eqn.primitive.name in RANDOM or any(map(_is_random, _inner(eqn.params)))
        for eqn in _parts(program)[0].eqns
    )
