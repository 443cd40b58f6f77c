"""A trained policy as a function, for a loop of one's own."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from brax.envs.base import Env

from sail_jax.control import contract, envs
from sail_jax.control import policy as control_policy
from sail_jax.control.policy import ActorNetworks
from sail_jax.core import precision
from sail_jax.core.types import Policy
from sail_jax.errors import UserError, one_line


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
    given = envs.bare(env)
    networks = make_networks(env, run)
    observed = control_policy.abstract_state(env).obs

    @jax.jit
    @precision.traced_at(precision.resolved(run))
    def actions(policy: Policy, obs: Any, key: jax.Array | None) -> jax.Array:
        dist = control_policy.actions(networks, policy, obs)
        raw_action = dist.loc
        if not deterministic:
            if key is None:
                raise UserError('key: a sampled action needs one, act(obs, jax.random.key(0))')
            try:
                noise = jax.random.normal(key, dist.loc.shape)
            except (TypeError, ValueError) as error:
                raise UserError(
                    f'key: expected one, jax.random.key(0): {one_line(error)}'
                ) from None
            raw_action += dist.scale * noise
        return networks.parametric_action_distribution.postprocess(raw_action)

    def act(obs: Any, key: jax.Array | None = None, /) -> jax.Array:
        obs = _arrays(obs)
        if isinstance(given, contract.Sound) and contract.batch_of(obs, observed) is None:
            obs = given.observed(obs)
        return actions(policy, _checked(obs, observed), key)

    return act


def _arrays(obs: Any) -> Any:
    try:
        return jax.tree.map(jnp.asarray, obs) if isinstance(obs, Mapping) else jnp.asarray(obs)
    except (TypeError, ValueError) as error:
        kind = type(obs).__name__
        raise UserError(f'obs: expected an array, got a {kind}: {one_line(error)}') from None


def _checked(obs: Any, observed: Any) -> Any:
    """In the types that the policy was trained on, since Brax's networks normalise floats alone;
    refuses what is no observation, and those of another environment.

    Args:
      observed: shapes and types of an observation's leaves.
    """
    if contract.batch_of(obs, observed) is None:
        shapes, shown = (jax.tree.map(jnp.shape, x) for x in (observed, obs))
        raise UserError(f'obs: expected shape {shapes}, or a batch of these, got {shown}')
    if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(obs)):
        raise UserError('obs: expected real numbers, got complex ones')
    return jax.tree.map(lambda leaf, of: leaf.astype(of.dtype), obs, observed)
