"""A trained policy as a function, for a loop of one's own."""

from collections.abc import Callable
from typing import Any, Protocol

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from brax.envs.base import Env

from sail_jax.control import envs
from sail_jax.control import policy as control_policy
from sail_jax.control.policy import ActorNetworks
from sail_jax.core import precision
from sail_jax.core.types import Policy
from sail_jax.errors import UserError


class Act(Protocol):
    """What `sail_jax.load_policy` gives of a control run."""

    def __call__(self, obs: Any, key: jax.Array | None = None, /) -> jax.Array:
        """Actions [..., A] in (-1, 1); compiled, and can be within `jit`, `vmap` and `scan`.

        Args:
          obs: observations [..., O], as the environment gives them; normalised within.
          key: of the noise, where actions are sampled.

        Raises:
          UserError: other shapes; no key where one is needed.
        """
        ...


def make(
    run: Any,
    policy: Policy,
    deterministic: bool,
    env: Env | None = None,
    make_networks: Callable[[Env, Any], ActorNetworks] = control_policy.make_networks,
) -> Act:
    """The policy as a function from observations to actions.

    Args:
      run: says the environment and the networks.
      deterministic: the mode of the distribution, instead of a sample of it.
      env: the environment that `train` was given, if it was.
      make_networks: of the environment and the run.
    """
    env = envs.make(run.env, env)
    networks = make_networks(env, run)
    shapes = control_policy.observation_shape(env)

    @jax.jit
    @precision.traced_at(precision.resolved(run))
    def actions(policy: Policy, obs: Any, key: jax.Array | None) -> jax.Array:
        dist = control_policy.actions(networks, policy, obs)
        raw_action = dist.loc
        if not deterministic:
            if key is None:
                raise UserError('key: a sampled action needs one, act(obs, jax.random.key(0))')
            raw_action += dist.scale * jax.random.normal(key, dist.loc.shape)
        return networks.parametric_action_distribution.postprocess(raw_action)

    def act(obs: Any, key: jax.Array | None = None, /) -> jax.Array:
        obs = obs if isinstance(obs, dict) else jnp.asarray(obs)
        _require_shapes(obs, shapes)
        return actions(policy, obs, key)

    return act


def _require_shapes(obs: Any, shapes: Any) -> None:
    """Refuses observations of another environment."""
    sizes = jax.tree.map(lambda x: jnp.shape(x)[-1:], obs)
    if sizes != jax.tree.map(lambda x: x[-1:], shapes, is_leaf=lambda x: isinstance(x, tuple)):
        shown = jax.tree.map(jnp.shape, obs)
        raise UserError(f'obs: expected shape {shapes}, or a batch of these, got {shown}')
