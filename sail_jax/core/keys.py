"""Keys of randomness: functions of seed, update and row, never of the device that draws."""

import jax
import jax.numpy as jnp

INIT, START, EVALUATE, UPDATE, ANSWERS = range(5)
"""Streams that are split off a run's seed: the sampler's first state, the start policy,
evaluations, updates, and fits on answers between them."""


def stream(seed: jax.typing.ArrayLike, which: int) -> jax.Array:
    """The key of one of the run's streams of randomness."""
    return jax.random.fold_in(jax.random.key(seed), which)


def update_key(seed: jax.typing.ArrayLike, step: jax.typing.ArrayLike) -> jax.Array:
    """The key of the update that makes the policy of `step`, from 1 on."""
    return jax.random.fold_in(stream(seed, UPDATE), step)


def row_keys(key: jax.Array, rows: int) -> jax.Array:
    """One key a row, [rows]: a function of the key and the row's index in the whole batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def split_rows(key_B: jax.Array, streams: int) -> jax.Array:
    """Independent keys of each row, [streams, B]."""
    return jax.vmap(lambda key: jax.random.split(key, streams), out_axes=1)(key_B)
