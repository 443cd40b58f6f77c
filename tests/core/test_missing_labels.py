"""Labels that depend on the responses: the estimator against the exact gradient of
`J = E[wf] / E[w]`, by enumeration in float64."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.core import labellers, objective, score
from sail_jax.core.objective import Coefficients
from sail_jax.core.types import Preferences
from tests.support import exact

pytestmark = pytest.mark.usefixtures('x64')

BETA = 0.7
RETURN_Y = np.array([0.0, 0.05, 1.0, 2.0])
TIMES_Y = {'uniform': np.array([1, 1, 1, 1]), 'uneven': np.array([1, 3, 2, 2])}
"""Policies as numbers of rows in which a response stands."""


class Table(NamedTuple):
    """What a labeller says of each pair of the Y responses."""

    prob_YxY: np.ndarray
    weight_YxY: np.ndarray


def table(kind: str) -> Table:
    difference = RETURN_Y[:, None] - RETURN_Y
    best = np.maximum(RETURN_Y[:, None], RETURN_Y)
    prob, weight = (1 + np.sign(difference)) / 2, np.ones((4, 4))
    if 'equal' in kind:
        prob = np.where(np.abs(difference) < 0.5, 0.5, prob)
    if 'skip' in kind:
        weight = np.where(best <= 0.5, 0.0, 1.0)
    return Table(prob, weight)


def preference(theta_Y, behaviour_Y, index_BxK, labels, axis=None, count=None):
    """The estimate for softmax policies over Y responses; the reference is uniform."""
    route = exact.route(len(index_BxK), True, False)
    step = lambda logp_Y: logp_Y[index_BxK][..., None]
    one = jnp.ones((*index_BxK.shape, 1))
    return objective.preference(
        exact.steps(
            step(jax.nn.log_softmax(theta_Y)),
            step(behaviour_Y),
            step(jnp.full(4, -np.log(4))),
            one,
        ),
        labels,
        route,
        Coefficients(BETA, 1.0, 1.0),
        whole=objective.Whole(pairs=count, axis=axis),
    )


def looked_up(table: Table, index_BxK) -> Preferences:
    i, j = index_BxK[:, :, None], index_BxK[:, None, :]
    return Preferences(jnp.asarray(table.prob_YxY)[i, j], jnp.asarray(table.weight_YxY)[i, j])


@jax.jit
def sums(theta_Y, table):
    """`E[wf]` and `E[w]` of a pair, with the policy in all places."""
    logp = jax.nn.log_softmax(theta_Y)
    D = BETA * (logp[:, None] - logp)
    f = table.prob_YxY * jax.nn.log_sigmoid(D) + (1 - table.prob_YxY) * jax.nn.log_sigmoid(-D)
    pi = jnp.exp(logp)
    return pi @ (table.weight_YxY * f) @ pi, pi @ table.weight_YxY @ pi


@jax.jit
def exact_gradient(theta_Y, table):
    return jax.grad(lambda theta: jnp.divide(*sums(theta, table)))(theta_Y)


def every_group(times_Y, K):
    """A batch in which each group stands as often as the policy draws it, [B, K]."""
    one = np.repeat(np.arange(4), times_Y)
    return one[exact.groups(len(one), 1, K)[:, 0]]


@functools.cache
def gradient_of_batches(copies):
    @jax.jit
    def gradient(theta_Y, index_BxK, table):
        index = jnp.tile(index_BxK, (copies, 1))
        behaviour = jax.nn.log_softmax(theta_Y)

        def surrogate(theta):
            return preference(theta, behaviour, index, looked_up(table, index)).surrogate

        return jax.grad(surrogate)(theta_Y)

    return gradient


@pytest.mark.parametrize('K', [2, 3, 4])
@pytest.mark.parametrize('policy', TIMES_Y)
@pytest.mark.parametrize('kind', ['all', 'equal', 'skip', 'skip and equal'])
def test_a_large_batch_has_the_gradient_of_the_ratio(kind, policy, K):
    times_Y = TIMES_Y[policy]
    theta_Y = np.log(times_Y / times_Y.sum())
    index, said = every_group(times_Y, K), table(kind)
    wanted = exact_gradient(theta_Y, said)
    assert np.abs(wanted).max() > 1e-3
    one, two = (gradient_of_batches(copies)(theta_Y, index, said) for copies in (1, 2))
    # A baseline that leaves one of B rows out is off by O(1/B), and this goes to the limit.
    np.testing.assert_allclose(2 * two - one, wanted, atol=2e-4)
    np.testing.assert_allclose(two, wanted, atol=1 / len(index))
    if K > 2 and 'skip' not in kind:  # No baseline, no limit.
        np.testing.assert_allclose(one, wanted, atol=1e-12)


def test_the_gradient_in_numbers():
    # Where policy and reference are equal only the pathwise part is there, which is linear in beta.
    wanted = BETA * np.array([-1 / 6, -1 / 6, 1 / 12, 1 / 4])
    np.testing.assert_allclose(exact_gradient(np.zeros(4), table('skip')), wanted, atol=1e-12)


@pytest.mark.parametrize('K', [2, 3])
@pytest.mark.parametrize('kind', ['equal', 'skip'])
def test_a_rows_part_is_exact_for_the_baseline_that_it_meets(kind, K):
    # What the estimator is before it is divided by the number of labelled pairs, over all draws of
    # two rows: grad E[wf] - E[b] grad E[w] a pair.
    said, theta_Y = table(kind), np.log(np.array([0.1, 0.4, 0.3, 0.2]))
    pairs, logp = K * (K - 1) / 2, jax.nn.log_softmax(theta_Y)
    samples = exact.groups(4, 2, K)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=0)
    def each(index):
        labels = looked_up(said, index)

        def surrogate(theta):
            return preference(theta, logp, index, labels, count=jnp.ones(())).surrogate

        return jnp.exp(logp[index].sum()), jax.grad(surrogate)(theta_Y)

    p_N, gradients = each(samples)
    np.testing.assert_allclose(p_N.sum(), 1, atol=1e-12)

    groups = exact.groups(4, 1, K)[:, 0]
    labels = looked_up(said, groups)
    D = BETA * exact.difference(logp[groups])
    f = labels.prob_BxKxK * jax.nn.log_sigmoid(D)
    f += (1 - labels.prob_BxKxK) * jax.nn.log_sigmoid(-D)
    weight = labels.weight_BxKxK * (1 - np.eye(K))
    total, count = (f * weight).sum((1, 2)), weight.sum((1, 2))
    baseline = np.where(count > 0, total / np.maximum(count, 1), -np.log(2))
    b = np.exp(logp[groups].sum(1)) @ baseline

    of_wf, of_w = jax.jit(jax.jacobian(sums))(theta_Y, said)
    np.testing.assert_allclose(p_N @ gradients, 2 * pairs * (of_wf - b * of_w), atol=1e-9)
    assert bool(np.abs(of_w).max() > 1e-2) == (kind == 'skip')


@pytest.mark.parametrize('K', [2, 3, 4])
def test_a_budget_that_ends_within_the_batch_moves_no_expectation(K):
    # Of two rows' pairs it covers all but one; what is left counts in full.
    pairs = K * (K - 1) // 2
    said, theta_Y = table('all'), np.log(np.array([0.2, 0.3, 0.1, 0.4]))
    logp = jax.nn.log_softmax(theta_Y)
    samples = exact.groups(3 if K == 4 else 4, 2, K)
    if K == 4:  # Fewer draws: three of the responses.
        theta_Y = np.array([*np.log([0.2, 0.3, 0.5]), -60.0])
        logp = jax.nn.log_softmax(theta_Y)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=0)
    def each(index):
        labels = looked_up(said, index)
        covered = labellers.within_budget(
            labels, jnp.ones(2, bool), jnp.zeros((), jnp.int32), 2 * pairs - 1
        ).preferences
        surrogate = lambda theta: preference(theta, logp, index, covered).surrogate
        return jnp.exp(logp[index].sum()), jax.grad(surrogate)(theta_Y)

    p_N, gradients = each(samples)
    np.testing.assert_allclose(p_N.sum(), 1, atol=1e-12)
    np.testing.assert_allclose(p_N @ gradients, exact_gradient(theta_Y, said), atol=1e-9)


@pytest.mark.parametrize('K', [2, 3])
def test_ascent_does_not_end_on_what_is_skipped(K):
    said, theta_Y = table('skip'), np.zeros(4)
    index = every_group(TIMES_Y['uniform'], K)
    # The batch is drawn once: a step of it, along the gradient of the policy that drew it.
    gradient = gradient_of_batches(2)(theta_Y, index, said)
    before, after = (jnp.divide(*sums(x, said)) for x in (theta_Y, theta_Y + 0.1 * gradient))
    assert after > before


@pytest.mark.parametrize('K', [2, 3])
def test_rows_of_several_devices_have_one_baseline(K):
    # vmap's axis stands for the mesh's.
    index, said = every_group(TIMES_Y['uneven'], K), table('skip')
    f, weight = np.random.default_rng(0).normal(size=(2, len(index), K, K))
    f, weight = f + f.swapaxes(1, 2), np.asarray(looked_up(said, index).weight_BxKxK)
    weight = weight * (1 - np.eye(K))
    whole = jax.jit(score.advantages)(f, weight, -np.log(2))
    cut = lambda x: x.reshape(8, -1, *x.shape[1:])
    of_part = lambda axis: jax.jit(
        jax.vmap(
            functools.partial(score.advantages, indifferent=-np.log(2), axis=axis), axis_name='data'
        )
    )(cut(f), cut(weight))
    np.testing.assert_allclose(of_part('data').reshape(whole.shape), whole, atol=1e-12)
    assert np.abs(of_part(None).reshape(whole.shape) - whole).max() > 1e-3
