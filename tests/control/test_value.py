"""The learned value: what is added after a segment, what labels go by, and how it is fitted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.control import judgement, workload
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun
from sail_jax.core import update
from sail_jax.core.types import Policies, Policy
from sail_jax.training import devices
from tests.support.toy import SETTINGS, Point

B, K, T, DISCOUNT, DRIFT = 12, 3, 4, 0.9, 0.12
SETTINGS_OF_VALUE = {
    'value': {'terminal': 'learned', 'discount': DISCOUNT, 'hidden': [6]},
    'rollout': {'contexts': B, 'group_size': K, 'segment_length': T},
    'optimizer': {'param_bound': 0.5, 'max_grad_norm': None},
    'divergence': {'coefficient': 0.0},
}


def reward_of(obs):
    return 3 * np.sin(60 * obs)


def reward(segment):
    return 3 * jnp.sin(60 * segment.obs[:, 0])


@pytest.fixture(scope='module')
def made():
    """The workload, a policy whose value is far from 0, and contexts close to their limit."""
    run = ControlRun.model_validate(SETTINGS | SETTINGS_OF_VALUE)
    env = Point(drift=DRIFT, spread=0.7)
    networks = control_policy.make_networks(env, run)
    made = workload.make(env, networks, run, devices.make_mesh(B), reward)
    policy = control_policy.init(jax.random.key(2), env, networks, run)
    value = jax.tree.map(lambda x: 2 * x + 0.1, policy.params['value'])
    policy = policy._replace(params={**policy.params, 'value': value})
    contexts = made.init(jax.random.key(1))
    clock_B = jnp.where(jnp.arange(B) % 3 == 0, run.env.episode_length - 2, contexts.clock_B)
    return run, networks, made, policy, contexts._replace(clock_B=clock_B)


@pytest.fixture(scope='module')
def sampled(made):
    _, _, made, policy, contexts = made
    policies, zero = Policies(policy, policy), jnp.zeros((), jnp.int32)
    return jax.device_get(jax.jit(made.sample)(policies, contexts, jax.random.key(7), zero))


def value_of(networks, policy, obs):
    average = networks.value_network.apply(policy.statistics, policy.params['value'], obs)
    return np.asarray(average / (1 - DISCOUNT))


def test_labels_and_targets_are_discounted_returns_and_the_value_of_what_follows(made, sampled):
    _, networks, _, policy, _ = made
    obs, raw_action, target, mask = sampled.batch.inputs
    first, kinds = np.zeros((B, K)), set()
    for row, lane in np.ndindex(B, K):
        n = int(mask[row, lane].sum())
        last = obs[row, lane, n - 1] + 0.1 * np.tanh(raw_action[row, lane, n - 1]) + DRIFT
        terminated = np.linalg.norm(last) > 1
        kinds.add((bool(terminated), n < T))
        to_come = 0 if terminated else value_of(networks, policy, last)
        for t in reversed(range(n)):
            to_come = reward_of(obs[row, lane, t, 0]) + DISCOUNT * to_come
            np.testing.assert_allclose(target[row, lane, t], to_come, rtol=1e-4, atol=1e-4)
        first[row, lane] = to_come
    # Terminated, cut off by the episode's limit, and neither.
    assert kinds >= {(True, True), (False, True), (False, False)}
    order = lambda x: (1 + np.sign(x[:, :, None] - x[:, None, :])) / 2
    np.testing.assert_array_equal(sampled.batch.labels.prob_BxKxK, order(first))
    # Not what is to come after some steps (the first is the same in all lanes), nor the segment's
    # own reward.
    own = (reward_of(obs[:, :K, :, 0]) * mask[:, :K]).sum(-1)
    for other in (target[:, :, -1], target[:, :, 2], own):
        assert (order(other) != order(first)).any()


def test_value_loss_is_over_the_steps_that_happened(made, sampled):
    _, networks, made, policy, _ = made
    inputs, steps = sampled.batch.inputs, 17.0
    happened = np.asarray(inputs.mask, bool)
    assert not happened.all()
    error = (value_of(networks, policy, inputs.obs) - inputs.value_target) * (1 - DISCOUNT)
    junk = inputs._replace(value_target=np.where(happened, inputs.value_target, 1e4))
    for given in (inputs, junk):
        loss, metrics = made.auxiliary_loss(Policies(policy, policy), given, steps)
        np.testing.assert_allclose(loss, 0.5 * (error[happened] ** 2).sum() / steps, rtol=1e-4)
        assert metrics['value_loss'] == loss


def gradient_of_value(made, policy, batch):
    def loss(params):
        policies = Policies(policy._replace(params=params), policy)
        return made.auxiliary_loss(policies, batch.inputs, batch.mask_BxLxT.sum())[0]

    return jax.jit(jax.grad(loss))(policy.params)


def test_an_update_fits_the_value_and_bounds_the_policy_alone(made):
    run, _, made, policy, contexts = made
    state = jax.jit(lambda policy: update.init(made, run, Policies(policy, policy)))(policy)
    state = state._replace(sampler=jax.tree.map(jnp.copy, contexts))
    draw = jax.jit(lambda state: update.draw(made, state))(state)
    gradient = gradient_of_value(made, policy, draw.batch)
    assert not any(np.any(x) for x in jax.tree.leaves(gradient['policy']))
    after, _ = update.make_dispatch(made, run, 1)(state)

    # Adam's first step is of the learning rate's size, against the gradient.
    def check(before, now, slope):
        clear = np.abs(slope) > 1e-4
        assert clear.any()
        step = -run.optimizer.learning_rate * np.sign(slope)
        np.testing.assert_allclose((now - before)[clear], step[clear], rtol=0.01, atol=2e-7)

    jax.tree.map(check, policy.params['value'], after.policy.params['value'], gradient['value'])
    norm = lambda tree: np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree)))
    np.testing.assert_allclose(norm(after.policy.params['policy']), 0.5, rtol=1e-5)
    assert norm(policy.params['value']) > 1

    # The policy normalises by what it has seen by now, its reference by what it had seen then.
    seen = jax.device_get(draw.batch.mask_BxLxT)
    assert int(after.policy.statistics.count) == seen.sum()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        after.policy.statistics,
        draw.statistics,
    )
    assert int(after.reference.statistics.count) == 0


def test_where_the_value_is_right_the_target_is_the_value():
    # A reward of 1 for ever is worth 10: V = 10 is the one fixed point, and the target lies
    # between any other value and it.
    mask = jnp.ones((1, T))
    for value in (0.0, 10.0, 25.0):
        target = judgement.returns_to_go(mask, mask, jnp.full(1, value), DISCOUNT)
        left = DISCOUNT ** np.arange(T, 0, -1)
        np.testing.assert_allclose(target[0], 10 + left * (value - 10), rtol=1e-5)


def test_without_a_value_labels_go_by_the_segment_alone():
    run = ControlRun.model_validate(SETTINGS)
    env = Point()
    networks = control_policy.make_networks(env, run)
    plain = workload.make(env, networks, run, devices.make_mesh(4))
    loss, metrics = plain.auxiliary_loss(Policies(Policy({}, ()), Policy({}, ())), None, 1.0)
    assert (float(loss), metrics) == (0, {})
