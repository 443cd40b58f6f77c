"""Actor and critics: Brax's networks, and the authors' map to the standard deviation."""

from typing import Any

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from brax.envs.base import Env
from brax.training import networks as brax_networks
from brax.training.agents.sac.networks import SACNetworks
from brax.training.distribution import NormalTanhDistribution, TanhBijector

from sail_jax.control import policy as control_policy
from sail_jax.control.sac.config import Mlp, SacRun
from sail_jax.core.divergence import Gaussian
from sail_jax.core.types import Policy


class BoundedTanhNormal(NormalTanhDistribution):
    """A tanh-squashed normal whose log standard deviation lies between bounds (SAC of
    https://github.com/denisyarats/pytorch_sac)."""

    def __init__(self, event_size: int, log_std_min: float, log_std_max: float):
        super().__init__(event_size)
        self._low, self._high = log_std_min, log_std_max

    def create_dist(self, parameters: jax.Array) -> Any:
        dist: Any = super().create_dist(parameters)
        raw = jnp.split(parameters, 2, axis=-1)[1]
        dist.scale = jnp.exp(self._low + (self._high - self._low) / 2 * (jnp.tanh(raw) + 1))
        return dist


def make(env: Env, run: SacRun) -> SACNetworks:
    """Networks of a run; observations are taken as they are, of a dict its `state`."""
    shape: Any = control_policy.observation_shape(env)
    size = control_policy.observed(shape)[-1]
    distribution = BoundedTanhNormal(env.action_size, run.actor.log_std_min, run.actor.log_std_max)
    networks: Any = SACNetworks  # A dataclass of flax's.
    actor = brax_networks.make_policy_network(
        distribution.param_size, size, **_arguments(run.actor)
    )
    # Of a dict Brax's own also wants the `state` of the normaliser, which there is none of.
    act = lambda statistics, params, obs: actor.apply(
        statistics, params, control_policy.observed(obs)
    )
    return networks(
        policy_network=brax_networks.FeedForwardNetwork(init=actor.init, apply=act),
        q_network=brax_networks.make_q_network(size, env.action_size, **_arguments(run.critic)),
        parametric_action_distribution=distribution,
    )


def _arguments(settings: Mlp) -> dict[str, Any]:
    """Of Brax's constructors."""
    return {
        'hidden_layer_sizes': settings.hidden,
        'activation': brax_networks.ACTIVATION[settings.activation],
        'kernel_init': getattr(jax.nn.initializers, settings.init)(),
    }


def init_policy(key: jax.Array, networks: SACNetworks) -> Policy:
    """A new actor; there is no observation normaliser."""
    return Policy(params={'policy': networks.policy_network.init(key)}, statistics=())


def init_critics(key: jax.Array, networks: SACNetworks) -> Any:
    """New critics; members of a sweep one after the other.

    Of a batch, the QR of orthogonal matrices holds a thread of XLA's pool while it waits for others
    of the same pool (`ParallelBatchMap` of jaxlib 0.10): several at once, as many as there are
    cores, wait for ever.
    """
    return jax.custom_batching.sequential_vmap(networks.q_network.init)(key)


def log_prob(dist: Gaussian, raw_action: jax.Array) -> jax.Array:
    """Log-density of the squashed action, by what it was before the squash."""
    change = TanhBijector().forward_log_det_jacobian(raw_action).sum(-1)
    return control_policy.log_prob(dist, raw_action) - change
