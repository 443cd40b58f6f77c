"""The replay: a ring of env steps on the device, of N environments side by side.

Its rows are [C, N]: row t % C has step t of every environment, so that what an environment did lies
in order and segments can be cut out of it. Brax's `replay_buffers` does not fit: it flattens a step
to one vector, whose rewards could not be written anew, and moves the whole buffer at every
insertion once it is full. Flashbax has such rings; it would save `add` and `sample`, twenty lines.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

RELABEL_STEPS = 2**13
"""Env steps whose rewards are computed at once, which bounds the memory that it takes."""


class Transition(NamedTuple):
    """Env steps; leaves lead with the same axes."""

    obs: jax.Array
    """Before the step, [..., O]."""
    action: jax.Array
    """What the environment was given, [..., A]."""
    reward: jax.Array
    """What the critics learn."""
    true_reward: jax.Array
    """The environment's."""
    next_obs: jax.Array
    """After the step, and before a new episode."""
    terminated: jax.Array
    """The environment said `done`: nothing comes after. Not at the episode's limit, bool."""
    ended: jax.Array
    """The step was the last of its episode, for whatever reason, bool."""
    sound: jax.Array
    """The simulator returned finite numbers; nothing is learned from other steps, bool."""


class PosedTransition(NamedTuple):
    """The same, with what people see of it. A class of its own: checkpoints without poses are no
    checkpoints of one whose `pose` is None, says Orbax."""

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    true_reward: jax.Array
    next_obs: jax.Array
    terminated: jax.Array
    ended: jax.Array
    sound: jax.Array
    pose: jax.Array
    """Of the links before the step and after it, [..., 2, L, 7]."""


class Replay(NamedTuple):
    """The newest env steps."""

    steps: Transition | PosedTransition
    """Leaves [C, N, ...]."""
    written: jax.Array
    """Rows written so far, of which the last C are kept, int32."""

    @property
    def rows(self) -> int:
        """C."""
        return self.steps.reward.shape[0]

    @property
    def filled(self) -> jax.Array:
        """Rows that have been written; they are the first."""
        return jnp.minimum(self.written, self.rows)


def init(rows: int, one: Transition | PosedTransition) -> Replay:
    """An empty replay.

    Args:
      rows: C.
      one: shapes and types of a row, [N, ...].
    """
    steps = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), one)
    return Replay(steps, jnp.zeros((), jnp.int32))


def add(replay: Replay, row: Transition | PosedTransition) -> Replay:
    """One step of every environment, [N, ...], in the place of the oldest."""
    place = replay.written % replay.rows
    steps = jax.tree.map(lambda x, new: x.at[place].set(new), replay.steps, row)
    return Replay(steps, replay.written + 1)


def sample(replay: Replay, key: jax.Array, batch: int) -> Transition:
    """Env steps drawn evenly of those there are, with replacement, [batch, ...]; without poses,
    which nothing is learned from."""
    row_key, env_key = jax.random.split(key)
    envs = replay.steps.reward.shape[1]
    rows_B = jax.random.randint(row_key, (batch,), 0, replay.filled)
    envs_B = jax.random.randint(env_key, (batch,), 0, envs)
    learned_from = Transition(*replay.steps[: len(Transition._fields)])
    return jax.tree.map(lambda x: x[rows_B, envs_B], learned_from)


def relabelled(
    replay: Replay, reward: Callable[[jax.Array, jax.Array], jax.Array], filled: jax.Array
) -> jax.Array:
    """`reward(obs, action)` of every env step, [C, N].

    Args:
      reward: of observations [..., O] and actions [..., A].
      filled: rows that have something; not a member's own, of which each goes round its loop for as
        long as the slowest.
    """
    steps, rows = replay.steps, replay.rows
    size = min(rows, max(RELABEL_STEPS // steps.reward.shape[1], 1))

    def part(i: jax.Array, rewards: jax.Array) -> jax.Array:
        # The last part begins early where the parts do not divide the rows.
        start = jnp.minimum(i * size, rows - size)
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, size)
        new = reward(cut(steps.obs), cut(steps.action))
        return jax.lax.dynamic_update_slice_in_dim(rewards, new, start, 0)

    parts = (jnp.minimum(filled, rows) + size - 1) // size
    return jax.lax.fori_loop(0, parts, part, steps.reward)


def with_rewards(replay: Replay, reward: jax.Array) -> Replay:
    """The replay with other rewards, [C, N]."""
    return replay._replace(steps=replay.steps._replace(reward=reward))


def segments(
    replay: Replay, key: jax.Array, count: int, length: int, newest: int
) -> tuple[Transition | PosedTransition, jax.Array]:
    """Segments of one environment each, drawn evenly, with replacement, [count, length, ...].

    Args:
      newest: rows that they may lie in, counted from the last.

    Returns:
      The segments, and which of them are whole: within one episode, of sound steps only. Others
      are drawn where there is no room for whole ones, and by chance.
    """
    rows = replay.rows
    row_key, env_key = jax.random.split(key)
    span = jnp.minimum(replay.filled, newest)
    starts = jax.random.randint(row_key, (count,), 0, jnp.maximum(span - length + 1, 1))
    row_SxT = replay.written - span + starts[:, None] + jnp.arange(length)
    env_S = jax.random.randint(env_key, (count,), 0, replay.steps.reward.shape[1])
    cut = jax.tree.map(lambda x: x[row_SxT % rows, env_S[:, None]], replay.steps)
    whole = ~cut.ended[:, :-1].any(1) & cut.sound.all(1) & (span >= length)
    return cut, whole
