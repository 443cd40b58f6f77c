"""The refreshed problem: its fixed points, and how fast they are reached."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.bandit import landscape, refresh, workload
from sail_jax.bandit import problem as exact
from sail_jax.bandit.config import Problems
from sail_jax.bandit.problem import ExactObjective

RADIUS = 2.0
OBJECTIVE = ExactObjective(0.5, ref_to_policy=0.4)

pytestmark = pytest.mark.usefixtures('x64')


@pytest.fixture(scope='module')
def problem():
    return exact.random(np.random.default_rng(1), Problems(contexts=2, responses=4, features=2))


@pytest.fixture
def limit(problem):
    return jax.jit(partial(refresh.limit, problem, radius=RADIUS))(np.zeros(2))


def test_gradient_at_the_reference_is_the_field_whatever_lambda(problem):
    theta = np.array([0.7, -0.4])
    field = jax.jit(refresh.field)(problem, theta)
    probability = np.exp(exact.log_prob(problem, theta))
    features, reward = np.asarray(problem.features_XxYxD), np.asarray(problem.reward_XxY)
    by_hand = np.zeros(2)
    for x, a, b in np.ndindex(2, 4, 4):
        wins = 1 / (1 + np.exp(reward[x, b] - reward[x, a]))
        both = probability[x, a] * probability[x, b] / 2
        by_hand += both * (wins - 0.5) * (features[x, a] - features[x, b])
    np.testing.assert_allclose(field, by_hand, rtol=1e-12)
    against = refresh.refreshed(problem, theta)
    for kl in ({}, {'ref_to_policy': 0.7}, {'policy_to_ref': 0.7}):
        _, grad = jax.jit(exact.value_and_grad)(against, ExactObjective(0.3, **kl), theta)
        np.testing.assert_allclose(grad, 0.3 * by_hand, rtol=1e-10)


@pytest.mark.parametrize('kl', ['ref_to_policy', 'policy_to_ref'])
def test_hessian_at_the_reference_is_the_closed_form(problem, kl):
    theta, beta, coefficient = np.array([0.7, -0.4]), 0.5, 0.4
    against = refresh.refreshed(problem, theta)
    hessian = jax.jit(exact.hessian)(against, ExactObjective(beta, **{kl: coefficient}), theta)
    slope = jax.jit(jax.jacfwd(partial(refresh.field, problem)))(theta)
    covariance = exact.feature_covariance(problem, theta)
    closed = -(coefficient + beta**2 / 2) * covariance + beta * (slope + slope.T)
    np.testing.assert_allclose(hessian, closed, rtol=0, atol=1e-12)


@pytest.mark.parametrize('inside', [True, False])
def test_references_reach_the_limit_at_the_rate_of_the_closed_form(problem, inside):
    """Usually it is on the surface; inside where contexts want a feature both ways."""
    if inside:
        chosen = np.array([[1.0, 0], [-2, 0], [0, 1], [0, -1.5]])
        features = np.stack([np.zeros((4, 2)), chosen], 1)
        problem = exact.Problem(features, np.array([[0.0, 1.0]] * 4), np.full((4, 2), -np.log(2)))
    radius = 20.0 if inside else RADIUS
    sequence = jax.jit(partial(refresh.sequence, radius=radius, refreshes=100))
    path = np.asarray(sequence(problem, OBJECTIVE, np.zeros(2)))
    assert (np.linalg.norm(path[-1]) < radius - 1) == inside
    contraction = jax.jit(partial(refresh.contraction, radius=radius))
    rate = float(contraction(problem, OBJECTIVE, path[-1]))
    assert 0.5 < rate < 1
    moves = np.linalg.norm(np.diff(path, axis=0), axis=1)
    phase = (moves > 1e-6) & (moves < 1e-3)
    assert phase.sum() > 3
    measured = np.exp(np.polyfit(np.flatnonzero(phase), np.log(moves[phase]), 1)[0])
    np.testing.assert_allclose(measured, rate, rtol=1e-2)


def test_neither_lambda_nor_beta_moves_the_limit(problem, limit):
    ends = [
        jax.jit(partial(refresh.sequence, radius=RADIUS, refreshes=150))(
            problem, ExactObjective(beta, **kl), np.zeros(2)
        )[-1]
        for beta, kl in ((0.3, {'ref_to_policy': 0.2}), (1.0, {'policy_to_ref': 0.5}))
    ]
    # A search does not see gains below the rounding of F.
    np.testing.assert_allclose(ends, [limit, limit], atol=1e-4)
    # Nothing near beats it: no step inside the ball gains against it, to first order.
    gain, _ = jax.jit(landscape.pl_gain)(limit, refresh.field(problem, limit), RADIUS, 1.0)
    assert gain < 1e-12
    others = landscape.ball(np.random.default_rng(0), 64, 2, RADIUS)
    gains = jax.jit(jax.vmap(lambda theta: refresh.advantage(problem, theta, limit)))(others)
    assert gains.max() <= 1e-12
    assert refresh.advantage(problem, limit, limit) == pytest.approx(0, abs=1e-15)


@pytest.mark.slow
def test_samples_lead_to_the_limit_with_refreshes_and_short_of_it_without(problem, limit):
    settings = workload.settings(0, 0.5, 0.4, 'ref_to_policy', RADIUS)

    def end(refresh_updates):
        draws = refresh.Draws(8, 2, 600, refresh_updates)
        ascend = lambda seed: refresh.ascend(
            problem, jnp.zeros(2), seed, (jnp.array(0.4), jnp.array(0.01)), draws, settings
        )[-100:].mean(0)
        return jax.jit(jax.vmap(ascend))(jnp.arange(6, dtype=jnp.uint32)).mean(0)

    beats = lambda theta: float(refresh.advantage(problem, limit, theta))
    at_start = beats(np.zeros(2))
    assert beats(end(20)) < at_start / 20
    against = refresh.refreshed(problem, np.zeros(2))
    fixed = landscape.search(against, OBJECTIVE, jnp.zeros(2), RADIUS)
    assert beats(end(None)) == pytest.approx(beats(fixed.theta), rel=0.2)
