"""What a device can do, measured; and what a program asks of it, counted."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core


def fastest_s(fn: Callable[..., Any], *args: Any, calls: int = 5) -> float:
    """Seconds of the fastest call of a compiled function, after one that is not timed."""
    jax.block_until_ready(fn(*args))
    seconds = []
    for _ in range(calls):
        began = time.perf_counter()
        jax.block_until_ready(fn(*args))
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def bandwidth(size: int = 2**29, copies: int = 8) -> float:
    """Bytes per second, read and written, of passes over `size` bytes, more than a cache holds."""
    x = jnp.zeros(size // 4, jnp.float32)
    copy = jax.jit(lambda x: jax.lax.fori_loop(0, copies, lambda _, x: x + 1, x))
    return 2 * copies * size / fastest_s(copy, x)


def matmul_rate(dtype: jnp.dtype, size: int = 2048) -> float:
    """Floating-point operations per second of a square matrix product."""
    x = jnp.ones((size, size), dtype)
    return 2 * size**3 / fastest_s(jax.jit(jnp.matmul), x, x)


def matmul_flops(fn: Callable[..., Any], *args: Any) -> int:
    """Floating-point operations of a function's matrix products, loops multiplied out.

    XLA's own cost analysis counts the body of a loop once, and so a stack of scanned layers as
    one. What rematerialisation computes again is counted, as it is executed.

    Raises:
      ValueError: a loop of unknown length.
    """
    return _flops(jax.make_jaxpr(fn)(*args).jaxpr)


def _flops(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == 'dot_general':
            contracted, _ = params['dimension_numbers'][0]
            lengths = [equation.invars[0].aval.shape[axis] for axis in contracted]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(lengths)
        elif name == 'while':
            raise ValueError('a while loop has no known length')
        elif name == 'cond':
            total += max(_flops(branch.jaxpr) for branch in params['branches'])
        else:
            inner = [_flops(sub) for sub in jax.core.jaxprs_in_params(params)]
            total += params.get('length', 1) * sum(inner)
    return total
