"""The bandit's samples estimate the exact gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from sail_jax.bandit import problem as exact
from sail_jax.bandit import stochastic, workload
from sail_jax.bandit.config import Problems
from sail_jax.bandit.problem import ExactObjective
from sail_jax.core import update

THETA = np.array([0.8, -1.3])


pytestmark = pytest.mark.usefixtures('x64')


@pytest.fixture
def problem():
    return exact.random(np.random.default_rng(7), Problems(contexts=3, responses=4, features=2))


@pytest.mark.parametrize('group_size', [2, 3])
@pytest.mark.parametrize('direction', ['ref_to_policy', 'policy_to_ref'])
def test_a_step_is_the_exact_gradient_in_expectation(problem, direction, group_size):
    """One SGD step of `update` from theta, thousands of times: Hotelling's T^2 on its mean."""
    beta, coefficient, repeats = 0.7, 0.3, 4000
    settings = workload.settings(0, beta, coefficient, direction, None)
    task, optimizer = workload.make(problem, 4, group_size), optax.sgd(1.0)
    step = update.make_update(task, settings, optimizer)
    policies = workload.policies(problem, jnp.asarray(THETA))
    state = update.init(task, settings, policies, optimizer)

    @jax.jit
    @jax.vmap
    def move(seed):
        new, metrics = step(state._replace(seed=seed))
        return new.policy.params - THETA, metrics['objective'], new.labels

    moves, values, labels = jax.device_get(move(jnp.arange(repeats, dtype=jnp.uint32)))
    objective = ExactObjective(beta, **{direction: coefficient})
    value, grad = jax.jit(exact.value_and_grad)(problem, objective, THETA)
    error = moves.mean(0) - grad
    t2 = repeats * error @ np.linalg.solve(np.cov(moves.T), error)
    assert stats.chi2.sf(t2, 2) > 1e-4
    z = (values.mean() - value) / (values.std() / repeats**0.5)
    # J's sampled pairs have i != j as draws, not as responses, so J counts coinciding ones too.
    assert abs(z) < 4
    assert (labels == 4 * group_size * (group_size - 1) // 2).all()


def test_kl_of_the_workload_is_exact_in_both_directions(problem):
    task = workload.make(problem, 3, 2)
    policies = workload.policies(problem, jnp.asarray(THETA))
    inputs = workload.BanditInputs(context_B=np.arange(3), response_BxK=np.zeros((3, 2), int))

    @jax.jit
    def compare(theta):
        moved = policies._replace(policy=policies.policy._replace(params=theta))
        return task.compare(moved, task.predict_reference(moved, inputs), inputs)

    compared = compare(policies.policy.params)
    p, q = np.exp(jax.jit(exact.log_prob)(problem, THETA)), np.exp(problem.reference_logp_XxY)
    for kl, expected in (
        (compared.policy_to_ref, (p * np.log(p / q)).sum(1)),
        (compared.ref_to_policy, (q * np.log(q / p)).sum(1)),
    ):
        assert kl.shape == (3, 2, 1)
        np.testing.assert_allclose(kl, np.broadcast_to(expected[:, None, None], kl.shape))


def test_labels_follow_bradley_terry(problem):
    """Share of first responses that win, against the mean of the reward's own probabilities."""
    task = workload.make(problem, 5000, 2)
    policies = workload.policies(problem, jnp.asarray(THETA))
    batch = jax.jit(lambda key: task.sample(policies, (), key, 0).batch)(jax.random.key(0))
    context, response = batch.inputs
    reward = np.asarray(problem.reward_XxY)[context[:, None], response]
    apart = reward[:, 0] != reward[:, 1]
    expected = 1 / (1 + np.exp(reward[:, 1] - reward[:, 0]))[apart]
    won = np.asarray(batch.labels.prob_BxKxK)[apart, 0, 1]
    assert set(np.unique(won)) == {0.0, 1.0}
    z = (won - expected).sum() / np.sqrt((expected * (1 - expected)).sum())
    assert abs(z) < 4
    # And the responses follow the policy.
    prob = np.exp(jax.jit(exact.log_prob)(problem, THETA))
    for c in range(3):
        counts = np.bincount(np.asarray(response)[np.asarray(context) == c].ravel(), minlength=4)
        assert stats.chisquare(counts, counts.sum() * prob[c]).pvalue > 1e-4


def test_slope_of_a_known_power_is_recovered_with_its_interval():
    labels = np.geomspace(100, 1e5, 25)
    noise = np.random.default_rng(0).chisquare(4, size=(3, 8, 1)) / 4
    slope = stochastic.fit_slope(labels, noise * labels**-0.8)
    assert slope.value == pytest.approx(-0.8)
    assert slope.low <= slope.value <= slope.high
    noisy = np.random.default_rng(1).chisquare(4, size=(3, 8, 25)) / 4
    slope = stochastic.fit_slope(labels, noisy / labels)
    assert slope.low < -1 < slope.high
    assert slope.high - slope.low < 0.5
