"""Lanes of an environment that go on side by side, some from each of B states.

A lane ends at its first `done`, or where the simulator returns something that is not finite; what
comes after it is simulated all the same, and not looked at.
"""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from brax.envs.base import Env, State

from sail_jax.control.policy import NetworksT
from sail_jax.core.divergence import Gaussian


class World(NamedTuple, Generic[NetworksT]):
    """Where policies act; the same for a whole run."""

    env: Env
    """Bare: without episode limit, batching or automatic reset."""
    networks: NetworksT
    episode_length: int
    """Env steps after which an episode is cut off."""
    succeeded: Callable[[State], jax.Array] | None = None
    """Whether a state makes its episode a success, bool [B * L] of leaves that lead with it; None
    where nobody says what that is."""


class Lanes(NamedTuple):
    """Where each lane is; B * L of them."""

    state: State
    """Leaves lead with [B * L]."""
    obs: Any
    """Its last one that is finite, [B, L, ...]."""
    alive_BxL: jax.Array


class StepOutcome(NamedTuple):
    """What one step was in each lane, [B, L]."""

    reward_BxL: jax.Array
    """Anything where it did not happen."""
    happened_BxL: jax.Array
    """The lane was alive, and the simulator returned numbers."""
    done_BxL: jax.Array
    """The environment said so; anything where the step did not happen."""
    broken_BxL: jax.Array
    """The lane was alive, and the simulator returned NaN or infinity."""


def begin(state: State, lanes: int) -> Lanes:
    """So many lanes from each state, whose leaves lead with [B].

    Where the first observation is not finite the lane never lives, and it stands as zeros: a masked
    NaN would still reach whatever multiplies by the mask.
    """
    state = jax.tree.map(lambda x: jnp.repeat(x, lanes, axis=0), state)
    obs = grouped(state.obs, lanes)
    alive_BxL = all_finite(obs)
    obs = select(alive_BxL, obs, jax.tree.map(jnp.zeros_like, obs))
    return Lanes(state=state, obs=obs, alive_BxL=alive_BxL)


def sampled_action(dist: Gaussian, key_B: jax.Array, t: jax.Array) -> jax.Array:
    """A sample of each lane's normal at step t, before the squash, [B, L, A]."""
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), dist.loc.shape[1:]))(
        key_B
    )
    return dist.loc + dist.scale * noise


def advance(world: World, lanes: Lanes, raw_action: jax.Array) -> tuple[Lanes, StepOutcome]:
    """One step of all lanes, by actions [B, L, A] before the squash."""
    B, L = lanes.alive_BxL.shape
    action = world.networks.parametric_action_distribution.postprocess(raw_action)
    state = jax.vmap(world.env.step)(lanes.state, action.reshape(B * L, -1))
    obs, reward_BxL, done = grouped((state.obs, state.reward, state.done), L)
    finite_BxL = jnp.isfinite(reward_BxL) & jnp.isfinite(done) & all_finite(obs)
    done_BxL = done > 0
    happened_BxL = lanes.alive_BxL & finite_BxL
    after = Lanes(
        state=state,
        obs=select(happened_BxL, obs, lanes.obs),
        alive_BxL=happened_BxL & ~done_BxL,
    )
    return after, StepOutcome(
        reward_BxL=reward_BxL,
        happened_BxL=happened_BxL,
        done_BxL=done_BxL,
        broken_BxL=lanes.alive_BxL & ~finite_BxL,
    )


def grouped(tree: Any, lanes: int) -> Any:
    """Leaves that lead with [B * L] as leaves that lead with [B, L]."""
    return jax.tree.map(lambda x: x.reshape(len(x) // lanes, lanes, *x.shape[1:]), tree)


def select(condition: jax.Array, a: Any, b: Any) -> Any:
    """`where` over two pytrees whose leaves lead with the condition's axes."""

    def leaf(x, y):
        return jnp.where(
            condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim)), x, y
        )

    return jax.tree.map(leaf, a, b)


def all_finite(obs: Any) -> jax.Array:
    """Whether every entry of an observation is finite, [B, L]."""
    leaves = [jnp.isfinite(x).all(range(2, x.ndim)) for x in jax.tree.leaves(obs)]
    return jnp.stack(leaves).all(0)
