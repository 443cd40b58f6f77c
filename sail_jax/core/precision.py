"""How exactly float32 matrices are multiplied, decided where a program is traced.

Accelerators multiply float32 faster than float32 is: by default an NVIDIA GPU rounds the factors
to TF32 (10 bits of mantissa), a TPU to bfloat16 (7). A simulator, a Gaussian's log-probability or a
float32 language model computed so is another program; see `config.Trained.matmul_precision`.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

from sail_jax.config import Trained

FunctionT = TypeVar('FunctionT', bound=Callable[..., Any])


def resolved(run: Trained) -> str | None:
    """The setting in JAX's words; None leaves it to JAX and its environment."""
    setting = run.matmul_precision
    if setting == 'auto':
        setting = run.default_matmul_precision
    return None if setting == 'default' else setting


def of(dtype: jax.typing.DTypeLike) -> str | None:
    """That of a language model alone, by the type of its activations."""
    return 'highest' if jnp.dtype(dtype) == jnp.float32 else None


def traced_at(precision: str | None) -> Callable[[FunctionT], FunctionT]:
    """Decorates a function, below its `jax.jit`: what it traces multiplies at that precision,
    whoever calls it."""

    def decorate(function: FunctionT) -> FunctionT:
        if precision is None:
            return function

        @functools.wraps(function)
        def at_precision(*args: Any, **kwargs: Any) -> Any:
            with jax.default_matmul_precision(precision):
                return function(*args, **kwargs)

        return cast(FunctionT, at_precision)

    return decorate
