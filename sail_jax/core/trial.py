"""What a user's function returns, found out before anything starts, most of it on shapes."""

import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from sail_jax.errors import UserError, one_line

_NOT_USERS = (
    *(sysconfig.get_paths()[name] for name in ('purelib', 'platlib', 'stdlib')),
    str(Path(__file__).parents[1]),
    '<',
)
_UNKNOWN_VALUES = (
    jax.errors.ConcretizationTypeError,  # Of a branch, too.
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def tried(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Shapes and types of what a user's function returns.

    Raises:
      UserError: it raises: what, and where.
    """
    try:
        program, returned = jax.make_jaxpr(function, return_shape=True)(*arguments)
        if program.effects:  # Some of them, as that of `checkify.check`, are refused only here.
            jax.jit(function).lower(*arguments)
        return returned
    except Exception as error:  # Whatever a user's function does.
        raise UserError(f'{what}: raised {explain(error)}') from error


def tried_on_one(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """`tried` under `vmap`, on a batch of one: for what runs side by side with others."""
    lead = lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype)
    side_by_side = lambda *batch: jax.vmap(function)(*batch)  # It raises for some functions.
    batch = tried(what, side_by_side, *jax.tree.map(lead, arguments))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)


def answered(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a user's function returns, on the host; None where it asks or tells somebody, who is to
    hear of the run's own numbers alone.

    Raises:
      UserError: it raises.
    """
    try:
        if jax.make_jaxpr(function)(*arguments).effects:
            return None
        return jax.device_get(jax.jit(function)(*arguments))
    except Exception as error:  # Whatever a user's function does.
        raise UserError(f'{what}: raised {explain(error)}') from error


def explain(error: Exception) -> str:
    """An error of a user's function in one line, with the line of theirs that it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith(_NOT_USERS)]
    where = f' ({Path(users[-1].filename).name}:{users[-1].lineno})' if users else ''
    if isinstance(error, _UNKNOWN_VALUES):
        reason = (
            'a value that only the compiled program knows is needed in Python, to branch on or to '
            'convert; use jnp.where, jax.lax.cond and functions of jnp'
        )
    elif isinstance(error, jax.errors.UnexpectedTracerError):
        reason = 'a value was left outside of the state by an earlier call; put it into the state'
    else:
        reason = one_line(error)
    return f'{type(error).__name__}: {reason}{where}'
