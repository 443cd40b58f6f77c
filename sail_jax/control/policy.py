"""Brax's PPO policy as ours: network, tanh-normal actions, observation normaliser.

Parameters are Brax's own, so that `(policy.statistics, policy.params['policy'])` is what
`brax.training.agents.ppo.networks.make_inference_fn` takes, and the other way round.
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from brax.envs.base import Env
from brax.training import networks as brax_networks
from brax.training.acme import running_statistics, specs
from brax.training.agents.ppo import networks as ppo_networks
from brax.training.distribution import ParametricDistribution

from sail_jax.control.config import ControlRun
from sail_jax.core.divergence import Gaussian
from sail_jax.core.types import Policy


class ActorNetworks(Protocol):
    """What acting takes of Brax's networks, PPO's or SAC's."""

    @property
    def policy_network(self) -> brax_networks.FeedForwardNetwork: ...

    @property
    def parametric_action_distribution(self) -> ParametricDistribution: ...


NetworksT = TypeVar('NetworksT', bound=ActorNetworks)


def abstract_state(env: Env) -> Any:
    """Shapes and types of a state, without running the environment."""
    return jax.eval_shape(env.reset, jax.random.key_data(jax.random.key(0)))


def observation_shape(env: Env) -> Any:
    """Shapes of one observation's leaves."""
    return jax.tree.map(lambda x: x.shape, abstract_state(env).obs)


def observed(obs: Any) -> Any:
    """What the networks see of an observation: of several, as Brax's, the entry `state`."""
    return obs['state'] if isinstance(obs, Mapping) else obs


def network_factory(run: ControlRun) -> dict[str, Any]:
    """Keyword arguments for Brax's `make_ppo_networks`."""
    return {
        'policy_hidden_layer_sizes': run.policy.hidden,
        'value_hidden_layer_sizes': run.value.hidden,
        'activation': brax_networks.ACTIVATION[run.policy.activation],
    }


def make_networks(env: Env, run: ControlRun) -> ppo_networks.PPONetworks:
    """Brax's networks for this run, observations normalised."""
    normalize: Any = running_statistics.normalize
    return ppo_networks.make_ppo_networks(
        observation_shape(env),
        env.action_size,
        preprocess_observations_fn=normalize,
        **network_factory(run),
    )


def init(key: jax.Array, env: Env, networks: ppo_networks.PPONetworks, run: ControlRun) -> Policy:
    """A new policy; its normaliser has seen nothing yet."""
    policy_key, value_key = jax.random.split(key)
    params = {'policy': networks.policy_network.init(policy_key)}
    if run.value.terminal == 'learned':
        params['value'] = networks.value_network.init(value_key)
    spec = jax.tree.map(
        lambda shape: specs.Array(shape, jnp.dtype('float32')),
        observation_shape(env),
        is_leaf=_is_shape,
    )
    return Policy(params=params, statistics=running_statistics.init_state(spec))


def actions(networks: ActorNetworks, policy: Policy, obs: Any) -> Gaussian:
    """The normal over actions before the squash, for observations of any batch shape."""
    logits = networks.policy_network.apply(policy.statistics, policy.params['policy'], obs)
    dist: Any = networks.parametric_action_distribution.create_dist(logits)
    return Gaussian(loc=dist.loc, scale=dist.scale)


def log_prob(dist: Gaussian, raw_action: jax.Array) -> jax.Array:
    """Log-density of the action before the squash, summed over the action's entries.

    The squash's Jacobian is left out: it is the same for every policy, so it is in no ratio,
    margin or KL, and has no gradient.
    """
    z = (raw_action - dist.loc) / dist.scale
    return (-0.5 * z**2 - jnp.log(dist.scale) - 0.5 * jnp.log(2 * jnp.pi)).sum(-1)


def entropy(dist: Gaussian, raw_action: jax.Array) -> jax.Array:
    """Differential entropy of the actions after the squash, nats, from one of them before it.

    Exact of the normal; the mean of the squash's log-Jacobian stands as its value at the action, so
    that the mean over drawn actions is the entropy.
    """
    squash = 2 * (jnp.log(2) - raw_action - jax.nn.softplus(-2 * raw_action))
    return (0.5 * jnp.log(2 * jnp.pi * jnp.e) + jnp.log(dist.scale) + squash).sum(-1)


def _is_shape(x: Any) -> bool:
    return isinstance(x, tuple)
