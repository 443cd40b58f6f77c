"""One gradient step of soft actor-critic (arXiv 1812.05905) with the RevKL penalty (2606.31524)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
import numpy as np
import optax
from brax.training.agents.sac.networks import SACNetworks

from sail_jax.control import policy as control_policy
from sail_jax.control.sac import networks as sac_networks
from sail_jax.control.sac.config import SacRun
from sail_jax.control.sac.replay import Transition
from sail_jax.core.divergence import gaussian_kl
from sail_jax.core.types import Metrics, Policy


class SacHyper(NamedTuple):
    """Settings that are arrays, so that one program trains several values side by side."""

    coefficient: jax.Array
    """Of the KL penalty, lambda."""
    learning_rate: jax.Array
    """Of actor and critics."""

    @classmethod
    def of(cls, run: SacRun) -> 'SacHyper':
        """The configuration's values."""
        array: Any = lambda x: np.asarray(x, jax.dtypes.canonicalize_dtype(float))
        return cls(
            coefficient=array(run.divergence.coefficient),
            learning_rate=array(run.optimizer.learning_rate),
        )


class Optimizers(NamedTuple):
    """Adam's states."""

    actor: Any
    critics: Any
    temperature: Any


class SacLearner(NamedTuple):
    """What gradient steps change."""

    actor: Any
    """Parameters of the policy."""
    critics: Any
    targets: Any
    """Slow copies of the critics."""
    log_temperature: jax.Array
    optimizers: Optimizers
    gradient_steps: jax.Array
    """So far, int32."""
    skipped: jax.Array
    skipped_in_a_row: jax.Array

    @property
    def policy(self) -> Policy:
        return Policy(params={'policy': self.actor}, statistics=())


GradientStep = Callable[
    [SacLearner, Transition, Policy, SacHyper, jax.Array], tuple[SacLearner, Metrics]
]
"""`(learner, batch, reference, hyper, key) -> (learner, metrics)`."""


def init(
    run: SacRun, networks: SACNetworks, policy: Policy, hyper: SacHyper, key: jax.Array
) -> SacLearner:
    """A learner with new critics."""
    actor = policy.params['policy']
    critics = sac_networks.init_critics(key, networks)
    log_temperature = jnp.log(jnp.full((), run.temperature.initial, hyper.learning_rate.dtype))
    zero = lambda: jnp.zeros((), jnp.int32)  # Donated: no two leaves may share a buffer.
    rule = optax.adam(hyper.learning_rate)
    return SacLearner(
        actor=actor,
        critics=critics,
        targets=jax.tree.map(jnp.copy, critics),
        log_temperature=log_temperature,
        optimizers=Optimizers(
            actor=rule.init(actor),
            critics=rule.init(critics),
            temperature=rule.init(log_temperature),
        ),
        gradient_steps=zero(),
        skipped=zero(),
        skipped_in_a_row=zero(),
    )


def with_new_critics(learner: SacLearner, networks: SACNetworks, key: jax.Array) -> SacLearner:
    """The same with critics that have learned nothing."""
    critics = sac_networks.init_critics(key, networks)
    fresh = jax.tree.map(jnp.zeros_like, learner.optimizers.critics)  # As Adam begins.
    return learner._replace(
        critics=critics,
        targets=jax.tree.map(jnp.copy, critics),
        optimizers=learner.optimizers._replace(critics=fresh),
    )


def critic_target(
    networks: SACNetworks, run: SacRun, learner: SacLearner, batch: Transition, key: jax.Array
) -> jax.Array:
    """`r + discount * (min of the slow copies at (s', a') - temperature * log pi(a' | s'))`, [B].

    Of a state that the environment ended nothing comes after; an episode's limit is no such end.
    """
    dist = control_policy.actions(networks, learner.policy, batch.next_obs)
    raw_action = dist.loc + dist.scale * jax.random.normal(key, dist.loc.shape)
    q = networks.q_network.apply((), learner.targets, batch.next_obs, jnp.tanh(raw_action)).min(-1)
    soft = q - jnp.exp(learner.log_temperature) * sac_networks.log_prob(dist, raw_action)
    return batch.reward + run.critic.discount * jnp.where(batch.terminated, 0, soft)


def critic_loss(
    networks: SACNetworks, critics: Any, batch: Transition, target_B: jax.Array
) -> jax.Array:
    """Mean squared error, summed over the two critics."""
    q_Bx2 = networks.q_network.apply((), critics, batch.obs, batch.action)
    return mean_of_sound(((q_Bx2 - target_B[:, None]) ** 2).sum(-1), batch)


# parameters: what is differentiated stands beside the learner that has it
def actor_loss(
    networks: SACNetworks,
    learner: SacLearner,
    actor: Any,
    batch: Transition,
    reference: Policy,
    coefficient: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """`temperature * log pi(a | s) - min Q(s, a) + coefficient * KL(pi_ref || pi)`, a drawn.

    The states are replayed ones: the KL is the mean over them, and not that of trajectories.
    """
    policy = Policy(params={'policy': actor}, statistics=())
    dist = control_policy.actions(networks, policy, batch.obs)
    raw_action = dist.loc + dist.scale * jax.random.normal(key, dist.loc.shape)
    logp = sac_networks.log_prob(dist, raw_action)
    q = networks.q_network.apply((), learner.critics, batch.obs, jnp.tanh(raw_action)).min(-1)
    kl = gaussian_kl(control_policy.actions(networks, reference, batch.obs), dist)
    temperature = jnp.exp(learner.log_temperature)
    mean = lambda x: mean_of_sound(x, batch)
    loss = mean(temperature * logp - q) + coefficient * mean(kl)
    return loss, {'entropy': mean(-logp), 'q': mean(q), 'kl': mean(kl)}


def temperature_loss(log_temperature: jax.Array, entropy: jax.Array, target: float) -> jax.Array:
    """Rises with the temperature where the policy has more entropy than the target."""
    return jnp.exp(log_temperature) * jax.lax.stop_gradient(entropy - target)


def mean_of_sound(x_B: jax.Array, batch: Transition) -> jax.Array:
    """The mean over the sound steps of a batch; 0 of none."""
    return (x_B * batch.sound).sum() / jnp.maximum(batch.sound.sum(), 1)


def make_gradient_step(networks: SACNetworks, run: SacRun, action_size: int) -> GradientStep:
    """One gradient step of critics, actor and temperature, in this order.

    What is not finite is skipped as a whole, and counted.
    """
    entropy = run.temperature.target_entropy
    target_entropy = -float(action_size) if entropy is None else entropy

    def gradient_step(
        learner: SacLearner, batch: Transition, reference: Policy, hyper: SacHyper, key: jax.Array
    ) -> tuple[SacLearner, Metrics]:
        before = learner
        target_key, actor_key = jax.random.split(key)
        rule = optax.adam(hyper.learning_rate)
        target_B = critic_target(networks, run, learner, batch, target_key)
        of_critics, critic_grads = jax.value_and_grad(
            lambda critics: critic_loss(networks, critics, batch, target_B)
        )(learner.critics)
        critics, of_rule = _applied(rule, critic_grads, learner.optimizers.critics, learner.critics)
        learner = learner._replace(
            critics=critics, optimizers=learner.optimizers._replace(critics=of_rule)
        )
        (of_actor, numbers), actor_grads = jax.value_and_grad(
            lambda actor: actor_loss(
                networks, learner, actor, batch, reference, hyper.coefficient, actor_key
            ),
            has_aux=True,
        )(learner.actor)
        actor, actor_rule = _applied(rule, actor_grads, learner.optimizers.actor, learner.actor)
        temperature_grad = jax.grad(temperature_loss)(
            learner.log_temperature, numbers['entropy'], target_entropy
        )
        log_temperature, temperature_rule = _applied(
            optax.adam(run.temperature.learning_rate),
            temperature_grad,
            learner.optimizers.temperature,
            learner.log_temperature,
        )
        steps = learner.gradient_steps + 1
        learner = learner._replace(
            actor=actor,
            log_temperature=log_temperature,
            targets=_moved(learner, steps % run.critic.target_every == 0, run.critic.tau),
            optimizers=learner.optimizers._replace(actor=actor_rule, temperature=temperature_rule),
            gradient_steps=steps,
        )
        norm = optax.tree.norm((critic_grads, actor_grads))
        finite = jnp.isfinite(norm) & jnp.isfinite(of_critics) & jnp.isfinite(of_actor)
        return _kept(learner, before, finite), {
            'critic_loss': of_critics,
            'actor_loss': of_actor,
            **numbers,
            'temperature': jnp.exp(before.log_temperature),
            'grad_norm': norm,
        }

    return gradient_step


def _applied(
    rule: optax.GradientTransformation, grads: Any, state: Any, params: Any
) -> tuple[Any, Any]:
    updates, state = rule.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def _moved(learner: SacLearner, due: jax.Array, tau: float) -> Any:
    """The slow copies, a step nearer to the critics where that is due."""
    share = jnp.where(due, tau, 0.0)
    return optax.incremental_update(learner.critics, learner.targets, share)


def _kept(learner: SacLearner, before: SacLearner, finite: jax.Array) -> SacLearner:
    """The learner after a gradient step, or where that was not finite as it was before."""
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), learner, before)
    return kept._replace(
        skipped=before.skipped + ~finite,
        skipped_in_a_row=jnp.where(finite, 0, before.skipped_in_a_row + 1),
    )
