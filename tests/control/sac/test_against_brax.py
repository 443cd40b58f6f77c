"""Losses and gradients are those of Brax's soft actor-critic, on the same numbers and noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.training.agents.sac import losses as brax_losses
from brax.training.types import Transition as BraxTransition

from sail_jax.control.sac import learn, networks
from sail_jax.control.sac.learn import SacHyper
from tests.support import sac
from tests.support.toy import Point

B, ENV, KEY = 7, Point(), jax.random.key(9)
RUN = sac.run(**{'critic.discount': 0.9, 'temperature.initial': 0.3})
NETS = networks.make(ENV, RUN)
# Brax's target entropy is minus half the size that it is told.
TEMPERATURE, CRITIC, ACTOR = brax_losses.make_losses(NETS, 1.0, 0.9, 2 * ENV.action_size)


@pytest.fixture(scope='module')
def there():
    """A learner whose slow copies are others than its critics, a batch, and Brax's of it."""
    policy = networks.init_policy(jax.random.key(0), NETS)
    learner = learn.init(RUN, NETS, policy, SacHyper.of(RUN), jax.random.key(2))
    learner = learner._replace(targets=NETS.q_network.init(jax.random.key(3)))
    batch = sac.batch(terminated_B=jnp.arange(B) % 3 == 1)
    theirs = BraxTransition(
        observation=batch.obs,
        action=batch.action,
        reward=batch.reward,
        discount=1.0 - batch.terminated,
        next_observation=batch.next_obs,
        extras={'state_extras': {'truncation': jnp.zeros(B)}, 'policy_extras': {}},
    )
    return learner, batch, theirs


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)


def test_critics(there):
    learner, batch, theirs = there

    def ours(critics):
        target_B = learn.critic_target(NETS, RUN, learner, batch, KEY)
        return learn.critic_loss(NETS, critics, batch, target_B)

    def brax(critics):
        alpha = jnp.exp(learner.log_temperature)
        return CRITIC(critics, learner.actor, (), learner.targets, alpha, theirs, KEY)

    # Ours is summed over the critics, Brax's is half the mean over them; Adam does not mind.
    four = lambda tree: jax.tree.map(lambda x: 4 * x, tree)
    close(
        *(
            jax.value_and_grad(ours)(learner.critics),
            four(jax.value_and_grad(brax)(learner.critics)),
        )
    )


def test_actor(there):
    learner, batch, theirs = there

    def ours(actor):
        return learn.actor_loss(NETS, learner, actor, batch, learner.policy, jnp.float32(0), KEY)[0]

    def brax(actor):
        return ACTOR(actor, (), learner.critics, jnp.exp(learner.log_temperature), theirs, KEY)

    close(jax.value_and_grad(ours)(learner.actor), jax.value_and_grad(brax)(learner.actor))


def test_temperature(there):
    learner, batch, theirs = there

    def ours(log_temperature):
        entropy = learn.actor_loss(
            NETS, learner, learner.actor, batch, learner.policy, jnp.float32(0), KEY
        )[1]['entropy']
        return learn.temperature_loss(log_temperature, entropy, -float(ENV.action_size))

    def brax(log_temperature):
        return TEMPERATURE(log_temperature, learner.actor, (), theirs, KEY)

    at = learner.log_temperature
    close(jax.value_and_grad(ours)(at), jax.value_and_grad(brax)(at))
