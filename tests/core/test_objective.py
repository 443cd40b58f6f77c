"""Parts and identities of the objective; `test_enumeration` has the expectations."""

import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_expit

from sail_jax.core import objective, score
from sail_jax.core.objective import Coefficients, Form
from sail_jax.core.types import Preferences
from tests.support import exact
from tests.support.exact import THEORY, all_labelled, estimate_and_gradient, members

B, K = 2, 3
INDEX = np.array([[0, 1, 2], [2, 2, 0]])


def labels_of(problem, index_BxK):
    """The reward's soft labels, in numpy."""
    reward = np.take_along_axis(problem.reward_XxY, index_BxK, 1)
    return all_labelled(expit(exact.difference(reward)))


def log_ratio(problem, index_BxK):
    """`log pi - log pi_ref` at the problem's theta."""
    ratio = exact.policy_logp(problem, problem.theta_F) - problem.reference_logp_XxY
    return np.take_along_axis(np.asarray(ratio), index_BxK, 1)


@members
def test_policy_equal_to_reference_gives_minus_log_2(x64, on_policy, policy_label):
    problem = exact.problem()
    reference = np.asarray(exact.policy_logp(problem, problem.theta_F))
    problem = problem._replace(reference_logp_XxY=reference)
    route = exact.route(B, on_policy, policy_label)
    got, _ = estimate_and_gradient(problem, INDEX, labels_of(problem, INDEX), route, THEORY)
    np.testing.assert_allclose(got.value, -np.log(2), atol=1e-15)
    if policy_label:  # The label itself is 1/2, and no pair is decided: these are of nothing.
        assert np.isnan([got.margin.value(), got.accuracy.value()]).all()
    else:
        np.testing.assert_allclose(got.margin.value(), 0, atol=1e-15)
        np.testing.assert_allclose(got.accuracy.value(), 0.5, atol=1e-15)


def test_response_0_is_online_dpo(x64):
    problem, index, beta = exact.problem(seed=8), np.array([[0, 2], [2, 1]]), 0.5
    chosen, rejected = np.array([0, 1]), np.array([2, 2])
    hard = np.full((B, 2, 2), 0.5)
    hard[0], hard[1] = [[0.5, 1], [0, 0.5]], [[0.5, 0], [1, 0.5]]

    @jax.jit
    @jax.value_and_grad
    def dpo_loss(theta):
        ratio = exact.policy_logp(problem, theta) - problem.reference_logp_XxY
        row = np.arange(B)
        margin = ratio[row, chosen] - ratio[row, rejected]
        return jnp.log1p(jnp.exp(-beta * margin)).mean()

    loss, gradient = dpo_loss(problem.theta_F)
    route, online = exact.route(B, True, False), Coefficients(beta, 0.0, 1.0)
    got, ours = estimate_and_gradient(problem, index, all_labelled(hard), route, online)
    np.testing.assert_allclose(ours, -gradient, atol=1e-12)
    np.testing.assert_allclose(got.value, -loss, atol=1e-12)


def test_margin_and_accuracy_follow_the_labels():
    # Margins D_01 = 1, D_02 = 3, D_12 = 2; labels agree on 01, disagree on 02, leave 12 open.
    logp = np.array([[[3.0], [2.0], [0.0]]], np.float32)
    prob = np.array([[[0.5, 1, 0], [0, 0.5, 0.5], [1, 0.5, 0.5]]], np.float32)
    zero, one = np.zeros_like(logp), np.ones_like(logp)
    got = jax.jit(objective.preference)(
        exact.steps(logp, logp, zero, one),
        all_labelled(prob),
        exact.route(1, True, False),
        Coefficients(1, 1, 1),
    )
    np.testing.assert_allclose(got.margin.value(), (1 - 3) / 2, atol=1e-6)
    np.testing.assert_allclose(got.accuracy.value(), 0.5, atol=1e-6)
    by_hand = [log_expit(1), log_expit(-3), (log_expit(2) + log_expit(-2)) / 2]
    np.testing.assert_allclose(got.value, np.mean(by_hand), atol=1e-6)


def naive_advantages(f_BxKxK):
    """`2/K (mean_{j != k} f_kj - b_k)` with loops, all pairs labelled."""
    rows, size, _ = f_BxKxK.shape
    A = np.zeros((rows, size))
    for row, k in itertools.product(range(rows), range(size)):
        if size > 2:
            pairs = itertools.combinations([i for i in range(size) if i != k], 2)
            others = [f_BxKxK[row, i, j] for i, j in pairs]
        else:
            others = [f_BxKxK[other, 0, 1] for other in range(rows) if other != row]
        own = np.mean([f_BxKxK[row, k, j] for j in range(size) if j != k])
        A[row, k] = 2 / size * (own - np.mean(others))
    return A


def symmetric(seed, size):
    f = np.random.default_rng(seed).normal(size=(3, size, size))
    return f + f.swapaxes(1, 2), np.ones((3, size, size)) - np.eye(size)


@pytest.mark.parametrize('size', [2, 3, 5])
def test_advantages_by_the_formula(x64, size):
    f, weight = symmetric(size, size)
    got = jax.jit(score.advantages)(f, weight, -np.log(2))
    np.testing.assert_allclose(got, naive_advantages(f), atol=1e-12)


@pytest.mark.parametrize('size', [2, 3, 4])
def test_baseline_does_not_see_its_own_response(x64, size):
    f, weight = symmetric(0, size)
    changed = f.copy()  # All pairs of response 0 of row 0.
    changed[0, 0, :] += 10
    changed[0, 1:, 0] += 10

    def baseline(f):
        own = (f * weight).sum(-1) / (size - 1)
        return own - np.asarray(jax.jit(score.advantages)(f, weight, -np.log(2))) * size / 2

    before, after = baseline(f), baseline(changed)
    np.testing.assert_allclose(after[0, 0], before[0, 0], atol=1e-12)
    if size == 2:  # The row has this one pair: its own baseline may hold nothing of the row.
        np.testing.assert_allclose(after[0], before[0], atol=1e-12)
        np.testing.assert_allclose(after[1:], before[1:] + 5, atol=1e-12)
    else:
        np.testing.assert_allclose(after[1:], before[1:], atol=1e-12)


def test_pairs_without_a_label_have_no_influence(x64):
    problem, route = exact.problem(seed=9), exact.route(B, True, False)
    labels = labels_of(problem, INDEX)
    weight = np.ones((B, K, K))
    weight[0, 0, 1] = weight[0, 1, 0] = 0
    weight[1] = 0
    changed = np.array(labels.prob_BxKxK)
    changed[0, 0, 1], changed[0, 1, 0], changed[1] = 0.99, 0.01, 0.3
    one, other = (
        estimate_and_gradient(problem, INDEX, Preferences(prob, weight), route, THEORY)
        for prob in (np.asarray(labels.prob_BxKxK), changed)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)
    # What is left counts in full: the mean is over two pairs, not six.
    D = np.asarray(exact.difference(THEORY.beta * log_ratio(problem, INDEX)))[0]
    P = labels.prob_BxKxK[0]
    f = P * log_expit(D) + (1 - P) * log_expit(-D)
    np.testing.assert_allclose(one[0].value, (f[0, 2] + f[1, 2]) / 2, atol=1e-12)


def test_a_row_without_labels_counts_for_nothing(x64):
    problem, route = exact.problem(seed=9), exact.route(B, True, False)
    labels = labels_of(problem, INDEX)
    weight = np.ones((B, K, K))
    weight[1] = 0
    _, ours = estimate_and_gradient(
        problem, INDEX, labels._replace(weight_BxKxK=weight), route, THEORY
    )
    alone = exact.Problem(problem.theta_F, *(leaf[:1] for leaf in problem[1:]))
    _, wanted = estimate_and_gradient(
        alone, INDEX[:1], labels_of(alone, INDEX[:1]), exact.route(1, True, False), THEORY
    )
    np.testing.assert_allclose(ours, wanted, atol=1e-12)


@pytest.mark.parametrize('size', [2, 3])
def test_a_batch_without_labels_has_no_gradient(x64, size):
    nothing = Preferences(np.full((B, size, size), 0.5), np.zeros((B, size, size)))
    got, gradient = estimate_and_gradient(
        exact.problem(), INDEX[:, :size], nothing, exact.route(B, True, False), THEORY
    )
    np.testing.assert_array_equal(gradient, 0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))


def test_labeller_is_ignored_where_the_policy_labels(x64):
    problem, route = exact.problem(), exact.route(B, True, True)
    sure = all_labelled(np.triu(np.ones((B, K, K))))
    nothing = Preferences(np.full((B, K, K), np.nan), np.zeros((B, K, K)))
    one, other = (
        estimate_and_gradient(problem, INDEX, labels, route, THEORY) for labels in (sure, nothing)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_group_of_one_is_refused():
    one = jnp.zeros((2, 1, 1))
    with pytest.raises(ValueError, match='at least 2 responses'):
        objective.preference(
            exact.steps(one, one, one, one),
            all_labelled(one),
            exact.route(2, True, False),
            THEORY,
        )


@pytest.mark.parametrize('junk', [np.nan, np.inf, 1e4])
@pytest.mark.parametrize('clip', [None, 0.2])
def test_steps_and_rows_without_weight_may_hold_anything(x64, clip, junk):
    # Masked steps, and the log-probabilities of data's responses under who drew them.
    rng = np.random.default_rng(3)
    logp, behaviour, reference = rng.normal(size=(3, 2, 3, 4))
    mask, weight = np.ones((2, 3, 4)), np.ones((2, 3, 3))
    mask[0, :, 2:] = 0
    labels = Preferences(np.triu(np.ones((2, 3, 3)), 1) + np.eye(3) / 2, weight)
    route = exact.route(2, True, False)._replace(on_policy_B=np.array([True, False]))

    @jax.jit
    def gradient(logp, behaviour, reference):
        def surrogate(logp):
            drawn = exact.steps(logp, behaviour, reference, mask)
            return objective.preference(drawn, labels, route, THEORY, Form(clip=clip)).surrogate

        return jax.grad(surrogate)(logp)

    wanted = gradient(logp, behaviour, reference)
    off = np.where(np.array([False, True])[:, None, None], -abs(junk), behaviour)
    np.testing.assert_array_equal(gradient(logp, off, reference), wanted)
    spoilt = [np.where(mask > 0, x, junk) for x in (logp, behaviour, reference)]
    np.testing.assert_array_equal(gradient(*spoilt), wanted)
    assert np.abs(wanted).max() > 1e-2


@pytest.mark.parametrize('clip', [None, 0.2])
def test_score_term_at_the_behaviour_policy_is_the_weighted_log_prob(x64, clip):
    rng = np.random.default_rng(0)
    weight, logp = (jnp.asarray(rng.normal(size=(2, 3, 4))) for _ in range(2))
    gradient = jax.grad(lambda x: score.score_term(weight, x, logp, clip).sum())(logp)
    np.testing.assert_allclose(gradient, weight, atol=1e-15)
    # Neither the weight nor the behaviour policy is differentiated.
    for argument in (0, 2):
        gradient = jax.grad(
            lambda *xs: score.score_term(*xs, clip).sum(),
            argnums=argument,
        )(weight, logp, logp + 0.1)
        np.testing.assert_array_equal(gradient, 0)


def test_without_a_clip_the_score_term_is_the_importance_weighted_one(x64):
    logp, old = jnp.array([[[-1.0]]]), jnp.array([[[-2.5]]])
    gradient = jax.grad(lambda x: score.score_term(jnp.full((1, 1, 1), 3.0), x, old).sum())
    np.testing.assert_allclose(gradient(logp), 3 * np.exp(1.5), atol=1e-12)


@pytest.mark.parametrize(
    ('weight', 'log_ratio', 'flows'),
    [
        (1.0, 0.5, False),  # good, and already much likelier: no more
        (1.0, -0.5, True),  # good, but became rarer: back up
        (-1.0, 0.5, True),  # bad, but became likelier: back down
        (-1.0, -0.5, False),  # bad, and already much rarer: no more
        (1.0, 0.1, True),
        (-1.0, -0.1, True),
    ],
)
def test_the_clip_is_ppos(x64, weight, log_ratio, flows):
    one = jnp.ones((1, 1, 1))
    gradient = jax.grad(lambda x: score.score_term(weight * one, x, 0 * one, 0.2).sum())(
        log_ratio * one
    )
    wanted = weight * np.exp(log_ratio) if flows else 0.0
    np.testing.assert_allclose(gradient, wanted * np.ones((1, 1, 1)), atol=1e-12)


def test_route_frequencies():
    ddp, dpp, dpr = 0.1, 0.25, 0.4
    keys = jax.random.split(jax.random.key(0), 20_000)
    on_policy, own = objective.route(keys, ddp, dpp, dpr)
    shares = {
        (True, False): dpr,
        (True, True): dpp,
        (False, True): ddp,
        (False, False): 1 - ddp - dpp - dpr,
    }
    for (on, label), share in shares.items():
        count = int(((on_policy == on) & (own == label)).sum())
        assert abs(count - 20_000 * share) < 5 * np.sqrt(20_000 * share * (1 - share))


@pytest.mark.parametrize(
    ('mixture', 'on_policy', 'policy_label'),
    [
        ((0, 0, 1), True, False),
        ((0, 1, 0), True, True),
        ((1, 0, 0), False, True),
        ((0, 0, 0), False, False),
    ],
)
def test_a_pure_route_is_pure(mixture, on_policy, policy_label):
    got = objective.route(jax.random.split(jax.random.key(1), 1000), *mixture)
    assert (got.on_policy_B == on_policy).all()
    assert (got.policy_label_B == policy_label).all()


def test_a_rows_route_is_its_own():
    keys = jax.random.split(jax.random.key(2), 8)
    few, many = (objective.route(k, 0.2, 0.3, 0.4) for k in (keys[3:5], keys))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[3:5]), few, many)


ACROSS_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sail_jax.core import objective, score
from sail_jax.core.types import Preferences, Route, Steps

B, K, T = 8, 2, 3
assert len(jax.devices()) == 4
rng = np.random.default_rng(0)
logp, reference = (-rng.exponential(size=(B, K, T)).astype(np.float32) for _ in range(2))
p = rng.uniform(size=(B,)).astype(np.float32)
prob = np.zeros((B, K, K), np.float32)
prob[:, 0, 1], prob[:, 1, 0] = p, 1 - p
labels = Preferences(prob, np.ones((B, K, K), np.float32))
route = Route(np.arange(B) % 4 != 0, np.arange(B) % 3 == 0)

@jax.jit
def results(logp, reference, labels, route):
    def f(logp_now):
        got = objective.preference(
            Steps(logp_now, logp, reference, jnp.ones_like(logp)), labels, route,
            objective.Coefficients(0.5, 1.0, 1.0),
        )
        return got.surrogate, got
    return jax.grad(f, has_aux=True)(logp)

mesh = Mesh(np.asarray(jax.devices()), ('data',))
rows = NamedSharding(mesh, PartitionSpec('data'))
arguments = (logp, reference, labels, route)
grads, values = results(*jax.device_put(arguments, rows))
one_grads, one_values = results(*jax.device_put(arguments, jax.devices()[0]))
assert len(grads.sharding.device_set) == 4
np.testing.assert_allclose(grads, one_grads, atol=1e-6)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), values, one_values)

# The baseline is global: it takes in rows of other devices.
f = np.zeros((B, K, K), np.float32)
f[:, 0, 1] = f[:, 1, 0] = np.arange(B)
weight = np.ones((B, K, K), np.float32) - np.eye(K, dtype=np.float32)
A = jax.jit(score.advantages)(*jax.device_put((f, weight), rows), -np.log(2))
mean_of_others = (28 - np.arange(B)) / 7
np.testing.assert_allclose(A, np.repeat((np.arange(B) - mean_of_others)[:, None], 2, 1), rtol=1e-6)
print('same')
"""


def test_baseline_of_k2_is_global_across_devices():
    flags = '--xla_force_host_platform_device_count=4'
    done = subprocess.run(
        [sys.executable, '-c', ACROSS_DEVICES],
        env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == 'same'
