"""N environments that go on side by side, one step at a time, with new episodes where one ended."""

from collections.abc import Callable
from typing import Any, NamedTuple

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from brax.envs.base import Env, State

from sail_jax.control import rollout
from sail_jax.control.lanes import select
from sail_jax.control.policy import observed
from sail_jax.control.sac.replay import PosedTransition, Transition
from sail_jax.core.keys import split_rows


class Envs(NamedTuple):
    """Where each environment is; leaves lead with [N].

    A reset can take as long as hundreds of steps (Playground's cheetah settles first), so the start
    of the next episode is made before it is needed: `renew` does so between updates for those that
    were used. Of several episodes that one environment ends within an update all begin alike.
    """

    state: State
    obs: jax.Array
    """What the networks see, finite, [N, O]."""
    clock: jax.Array
    """Env steps since the reset."""
    collected: jax.Array
    """True reward since the reset."""
    fresh: State
    """The starts of the next episodes."""
    used: jax.Array
    """Whether `fresh` is that of the episode which is under way."""


class Finished(NamedTuple):
    """Episodes that ended in a step, [N]."""

    ended: jax.Array
    broken: jax.Array
    """Among them, by a number of the simulator that is not finite."""
    episode_return: jax.Array
    """Anything where none ended."""


def begin(env: Env, key_N: jax.Array) -> Envs:
    """New episodes, and the starts of those after them."""
    N = len(key_N)
    both = jnp.concatenate(split_rows(key_N, 2))
    both = rollout.reset(env, both)  # At once, so that it is compiled once.
    now, fresh = (jax.tree.map(lambda x, at=at: x[at : at + N], both) for at in (0, N))
    return Envs(
        state=now,
        obs=_finite(observed(now.obs))[0],
        clock=jnp.zeros(N, jnp.int32),
        collected=jnp.zeros(N),
        fresh=fresh,
        used=jnp.zeros(N, bool),
    )


def renew(env: Env, envs: Envs, key_N: jax.Array) -> Envs:
    """Other starts in the place of those that were used."""
    fresh = select(envs.used, rollout.reset(env, key_N), envs.fresh)
    return envs._replace(fresh=fresh, used=jnp.zeros_like(envs.used))


def step(
    env: Env,
    episode_length: int,
    envs: Envs,
    action: jax.Array,
    pose: Callable[[State], jax.Array] | None = None,
) -> tuple[Envs, Transition | PosedTransition, Finished]:
    """One step of every environment, by actions [N, A].

    The reward of the transition is the environment's. A step in which the simulator returns NaN or
    infinity stands as one that changed nothing, is not `sound`, and ends its episode.

    Args:
      pose: of the links in a state, where poses are wanted.
    """
    state: Any = jax.vmap(env.step)(envs.state, action)
    obs, finite = _finite(observed(state.obs))
    sound = _finite(observed(envs.state.obs))[1] & finite
    sound &= jnp.isfinite(state.reward) & jnp.isfinite(state.done)
    reward = jnp.where(sound, state.reward, 0).astype(jnp.float32)
    next_obs = jnp.where(sound[:, None], obs, envs.obs)
    terminated = sound & (state.done > 0)
    clock = envs.clock + 1
    ended = terminated | ~sound | (clock >= episode_length)
    collected = envs.collected + reward
    transition = Transition(
        obs=envs.obs,
        action=action,
        reward=reward,
        true_reward=reward,
        next_obs=next_obs,
        terminated=terminated,
        ended=ended,
        sound=sound,
    )
    if pose is not None:
        seen_N = jax.vmap(pose)(envs.state), jax.vmap(pose)(state)
        transition = PosedTransition(*transition, pose=jnp.stack(seen_N, 1))
    after = Envs(
        state=select(ended, envs.fresh, state),
        obs=jnp.where(ended[:, None], _finite(observed(envs.fresh.obs))[0], next_obs),
        clock=jnp.where(ended, 0, clock),
        collected=jnp.where(ended, 0, collected),
        fresh=envs.fresh,
        used=envs.used | ended,
    )
    return after, transition, Finished(ended=ended, broken=~sound, episode_return=collected)


def _finite(obs_NxO: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Observations with zeros where one is not finite, and whether it is, [N]: a NaN that is
    weighted by 0 is still NaN."""
    finite = jnp.isfinite(obs_NxO).all(range(1, obs_NxO.ndim))
    return jnp.where(finite[:, None], obs_NxO, 0).astype(jnp.float32), finite
