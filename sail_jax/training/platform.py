"""Settings of JAX that users make: what nothing here works with, and what decides numbers."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from sail_jax import forked
from sail_jax.errors import UserError, one_line

UNUSABLE = {
    'jax_disable_jit': True,
    'jax_numpy_dtype_promotion': 'strict',
    'jax_numpy_rank_promotion': 'raise',
    'jax_debug_key_reuse': True,
    'jax_transfer_guard_host_to_device': 'disallow',
    'jax_error_checking_behavior_nan': 'raise',
    'jax_error_checking_behavior_divide': 'raise',
    'jax_no_tracing': True,
    'jax_no_execution': True,
}
"""For debugging; Brax, Optax and JAX's own `eval_shape` do not keep to these."""
NUMBERS = (
    'jax_enable_x64',
    'jax_default_prng_impl',
    'jax_threefry_partitionable',
    'jax_random_seed_offset',
)
"""Under another value a run has other random numbers, or a state of other types."""


def require_usable() -> None:
    """Refuses what would fail in the middle of things.

    Raises:
      UserError: a setting of JAX that is not worked with; no device; a process that was forked
        after JAX had begun; a call from within a function that JAX traces, or while a mesh is set.
    """
    if forked.without_threads:
        raise UserError(
            'this process was forked from one in which JAX had begun, and would wait for its '
            "threads for ever; begin processes with multiprocessing.get_context('spawn')"
        )
    for name, value in UNUSABLE.items():
        if getattr(jax.config, name) == value:
            raise UserError(
                f'{name.upper()}={value}: not with sail_jax, nor with the libraries that it is '
                'made of; leave it out'
            )
    try:
        jax.devices()
    except Exception as error:  # Whatever a driver does.
        platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        what = f'JAX_PLATFORMS={platforms}: ' if platforms else ''
        reason = one_line(error) or 'jaxlib has nothing for it; see docs.jax.dev, Installation'
        raise UserError(f'{what}JAX has no device: {reason}') from error
    if isinstance(jnp.zeros(()), jax.core.Tracer):
        raise UserError(
            'called from a function that JAX traces (jit, scan, eval_shape), which runs programs '
            'of its own; call it outside'
        )
    if not jax.sharding.get_abstract_mesh().empty:
        raise UserError(
            'called while a mesh is set (jax.set_mesh); sail_jax makes its own, call it outside'
        )


def numbers() -> dict[str, Any]:
    """The settings that decide numbers, for a checkpoint."""
    return {name: getattr(jax.config, name) for name in NUMBERS}


def require_same(where: str, saved: Mapping[str, Any]) -> None:
    """Refuses to go on under other settings than `numbers` were.

    Args:
      where: the checkpoint.
      saved: its `numbers`; one of an older version has none.

    Raises:
      UserError: naming the first that differs.
    """
    for name, now in numbers().items():
        if name in saved and saved[name] != now:
            raise UserError(
                f'{where}: the run has {name.upper()}={saved[name]}, and now it is {now}; set it '
                'as it was'
            )
