"""The unsupervised reward: how far a state is from the others of the replay."""

from typing import Any

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from brax.training.acme import running_statistics, specs
from brax.training.acme.running_statistics import RunningStatisticsState

from sail_jax.control.sac.replay import Replay


def init() -> RunningStatisticsState:
    """Statistics of no distances yet."""
    number: Any = specs.Array((), jnp.dtype('float32'))
    return running_statistics.init_state(number)


def distances(obs_BxO: jax.Array, replay: Replay, rows: int, neighbours: int) -> jax.Array:
    """Euclidean distance to the so manieth nearest state of the replay, itself left out, [B].

    That is PEBBLE's estimate of the entropy of states without its logarithm (arXiv 2106.05091, as
    released).

    Args:
      obs_BxO: states of the replay.
      rows: that are looked at, the first; they have not been overwritten.
    """
    envs = replay.steps.obs.shape[1]
    all_MxO = replay.steps.obs[:rows].reshape(rows * envs, -1)
    there_M = jnp.repeat(jnp.arange(rows) < replay.filled, envs)
    square = ((obs_BxO[:, None] - all_MxO[None]) ** 2).sum(-1)
    square = jnp.where(there_M, square, jnp.inf)

    def without_nearest(_: int, square: jax.Array) -> jax.Array:
        nearest = square.argmin(-1, keepdims=True)
        return jnp.where(jnp.arange(rows * envs) == nearest, jnp.inf, square)

    # Not `top_k`: with seeds side by side XLA sorts all of them on CPUs, three times the time.
    nearer = min(neighbours, rows * envs - 1)
    return jnp.sqrt(jax.lax.fori_loop(0, nearer, without_nearest, square).min(-1))


def reward(
    statistics: RunningStatisticsState, distances_B: jax.Array
) -> tuple[RunningStatisticsState, jax.Array]:
    """Distances over their standard deviation so far, and that with these in it."""
    statistics = running_statistics.update(statistics, distances_B)
    std: Any = statistics.std
    return statistics, distances_B / std
