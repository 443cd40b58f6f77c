"""The estimator's expectation by enumeration, float64, against the exact gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax import config
from sail_jax.core import divergence, objective
from sail_jax.core.objective import Coefficients, Form
from sail_jax.core.pair_losses import PAIR_LOSSES, MeanReward
from sail_jax.core.types import Route
from tests.support import exact
from tests.support.exact import THEORY, all_labelled, members, take

pytestmark = pytest.mark.usefixtures('x64')


def expected(problem, K, route, coefficients, form=objective.DPO):
    """Mean value and gradient over all joint draws of the batch's groups."""
    rows, responses = problem.reward_XxY.shape
    samples = exact.groups(responses, rows, K)
    p_N = np.asarray(exact.probabilities(problem, samples, route))
    np.testing.assert_allclose(p_N.sum(), 1, atol=1e-12)
    values, gradients = exact.estimates(problem, samples, route, coefficients, form)
    return p_N @ values.value, p_N @ gradients


def check(problem, K, route, coefficients, form=objective.DPO):
    value, gradient = expected(problem, K, route, coefficients, form)
    (loss,) = [name for name, pair_loss in PAIR_LOSSES.items() if pair_loss is form.pair_loss]
    setting = exact.Setting(loss, form.target_margin, form.label_smoothing)
    wanted = exact.exact(problem, coefficients.beta, route, setting)
    parts = wanted.pathwise + coefficients.response * wanted.score
    parts += coefficients.label * wanted.label
    assert np.linalg.norm(parts) > 1e-3
    np.testing.assert_allclose(gradient, parts, rtol=0, atol=1e-9)
    np.testing.assert_allclose(value, wanted.value, rtol=0, atol=1e-9)
    return gradient, wanted


@members
@pytest.mark.parametrize('K', [2, 3, 4])
def test_expected_gradient_is_that_of_the_exact_objective(K, on_policy, policy_label):
    route = exact.route(2, on_policy, policy_label)
    gradient, wanted = check(exact.problem(), K, route, THEORY)
    np.testing.assert_allclose(gradient, wanted.gradient, rtol=0, atol=1e-9)
    # Each part stands where it should and nowhere else.
    assert bool(np.abs(wanted.score).max() > 1e-3) == on_policy
    assert bool(np.abs(wanted.label).max() > 1e-3) == policy_label


@members
@pytest.mark.parametrize('K', [2, 3])
def test_coefficients_weigh_their_own_part_alone(K, on_policy, policy_label):
    route = exact.route(2, on_policy, policy_label)
    check(exact.problem(seed=1), K, route, Coefficients(0.4, response=0.3, label=0.2))


@members
@pytest.mark.parametrize('loss', ['ipo', 'hinge', 'simpo'])
def test_every_pair_loss_has_the_gradient_of_its_own_objective(loss, on_policy, policy_label):
    route, form = exact.route(2, on_policy, policy_label), Form(PAIR_LOSSES[loss])
    for K in (2, 3):
        check(exact.problem(seed=4), K, route, Coefficients(0.4, response=0.6, label=0.7), form)


@pytest.mark.parametrize('on_policy', [True, False])
def test_regression_on_rewards_has_the_gradient_of_its_own_objective(on_policy):
    route, form = exact.route(2, on_policy, False), Form(PAIR_LOSSES['rebel'])
    for K in (2, 3):
        check(exact.problem(seed=4), K, route, Coefficients(0.4, response=0.6, label=0.7), form)


def test_regression_on_rewards_needs_them():
    problem, index = exact.problem(), np.array([[0, 1], [1, 2]])
    labels = exact.reward_labels(take(problem.reward_XxY, index))
    route, form = exact.route(2, True, False), Form(PAIR_LOSSES['rebel'])
    with pytest.raises(ValueError, match='the labeller gave preferences alone'):
        exact.estimate(problem, problem.theta_F, index, labels, route, THEORY, form)


@pytest.mark.parametrize('K', [2, 3])
def test_mean_rewards_have_the_gradient_of_the_expected_reward(K):
    problem = exact.problem(seed=4)
    route, form = exact.route(2, True, False), Form(MeanReward())
    value, gradient = expected(problem, K, route, Coefficients(0.4, response=0.6, label=0), form)
    policy = lambda theta: jnp.exp(exact.policy_logp(problem, theta))
    reward = lambda theta: (policy(theta) * problem.reward_XxY).sum(-1).mean()
    wanted, slope = jax.value_and_grad(reward)(problem.theta_F)
    assert np.linalg.norm(slope) > 1e-2
    np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-9)
    np.testing.assert_allclose(gradient, 0.6 * slope, rtol=0, atol=1e-9)


@pytest.mark.parametrize('kind', ['xpo', 'selm'])
def test_exploration_is_that_of_the_references_responses(kind):
    problem, beta, alpha = exact.problem(seed=8), 0.4, 0.3
    settings = config.Objective(exploration=kind, alpha=alpha)
    reference = problem.reference_logp_XxY

    def estimate(theta, index_Xx1):
        logp = take(exact.policy_logp(problem, theta), index_Xx1)[..., None]
        drawn = exact.steps(
            # What stands behind the end must not matter.
            jnp.concatenate([logp, jnp.full_like(logp, jnp.inf)], -1),
            jnp.zeros((2, 1, 2)),
            jnp.concatenate([take(reference, index_Xx1)[..., None], jnp.ones((2, 1, 1))], -1),
            jnp.broadcast_to(jnp.array([1.0, 0.0]), (2, 1, 2)),
        )
        return objective.exploration(settings, drawn, beta, jnp.asarray(2))

    def exactly(theta):
        logp = exact.policy_logp(problem, theta)
        if kind == 'selm':
            logp = beta * (logp - reference)
        return -alpha * (jnp.exp(reference) * logp).sum(-1).mean()

    samples = exact.groups(3, 2, 1)
    p_N = np.exp(jax.vmap(lambda index: take(reference, index).sum())(samples))
    each = jax.vmap(jax.value_and_grad(estimate), in_axes=(None, 0))
    values, gradients = each(problem.theta_F, samples)
    wanted, gradient = jax.value_and_grad(exactly)(problem.theta_F)
    np.testing.assert_allclose(p_N @ values, wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(p_N @ gradients, gradient, rtol=0, atol=1e-12)
    assert np.linalg.norm(gradient) > 1e-2


@pytest.mark.parametrize('K', [2, 3])
def test_a_response_of_the_references_has_no_score(K):
    """The last of a group is drawn from the reference, the others from the policy."""
    problem, route, form = exact.problem(seed=9), exact.route(2, True, False), Form(opponents=1)
    coefficients = Coefficients(0.4, response=0.6, label=1.0)
    theirs = problem.reference_logp_XxY

    def exactly(theta_sample, theta_margin):
        p, q = jnp.exp(exact.policy_logp(problem, theta_sample)), jnp.exp(theirs)
        D = coefficients.beta * exact.difference(exact.policy_logp(problem, theta_margin) - theirs)
        P = jax.nn.sigmoid(exact.difference(problem.reward_XxY))
        f = P * jax.nn.log_sigmoid(D) + (1 - P) * jax.nn.log_sigmoid(-D)
        pairs = [(p, p)] * ((K - 1) * (K - 2) // 2) + [(p, q)] * (K - 1)
        of = lambda a, b: jnp.einsum('xi,xj,xij->x', a, b, f).mean()
        return sum(of(a, b) for a, b in pairs) / len(pairs)

    samples = exact.groups(3, 2, K)
    ours = exact.policy_logp(problem, problem.theta_F)
    logp = lambda index: take(ours, index[:, :-1]).sum() + take(theirs, index[:, -1:]).sum()
    p_N = np.exp(jax.vmap(logp)(samples))
    got, gradients = exact.estimates(problem, samples, route, coefficients, form)
    theta = problem.theta_F
    wanted, (score, pathwise) = jax.value_and_grad(exactly, (0, 1))(theta, theta)
    np.testing.assert_allclose(p_N @ got.value, wanted, rtol=0, atol=1e-9)
    np.testing.assert_allclose(p_N @ gradients, pathwise + 0.6 * score, rtol=0, atol=1e-9)
    assert np.linalg.norm(score) > 1e-2


@members
def test_target_margin_and_smoothed_labels_are_part_of_the_objective(on_policy, policy_label):
    route = exact.route(2, on_policy, policy_label)
    form = Form(PAIR_LOSSES['simpo'], target_margin=0.3, label_smoothing=0.15)
    for K in (2, 3):
        check(exact.problem(seed=7), K, route, Coefficients(1.4, response=0.6, label=0.7), form)


def test_clip_leaves_the_first_gradient_step_alone():
    check(exact.problem(seed=2), 3, exact.route(2, True, False), THEORY, Form(clip=0.2))


def test_three_rows_share_the_baseline_of_k2():
    check(exact.problem(seed=3, contexts=3, responses=2), 2, exact.route(3, True, True), THEORY)


@pytest.mark.parametrize('K', [2, 3])
def test_a_mixed_batch_is_the_mean_of_its_members(K):
    # Online DPR beside offline DPO: for K = 2 the baseline of one row comes from the other.
    route = Route(np.array([True, False]), np.array([False, False]))
    check(exact.problem(seed=6), K, route, THEORY)


def test_hard_labels_drawn_by_bradley_terry_are_unbiased():
    problem, rows = exact.problem(seed=5), 2
    route = exact.route(rows, True, False)
    every = [(index, wins) for index in exact.groups(3, rows, 2) for wins in np.ndindex(2, 2)]
    index_NxXxK = np.stack([index for index, _ in every])
    wins_NxX = np.array([wins for _, wins in every], float)
    hard = np.full((len(every), rows, 2, 2), 0.5)
    hard[:, :, 0, 1], hard[:, :, 1, 0] = wins_NxX, 1 - wins_NxX

    reward = np.stack([problem.reward_XxY[[0, 1], index_NxXxK[:, :, k]] for k in (0, 1)], -1)
    win = 1 / (1 + np.exp(reward[..., 1] - reward[..., 0]))
    p_N = np.where(wins_NxX == 1, win, 1 - win).prod(-1)
    p_N *= np.asarray(exact.probabilities(problem, index_NxXxK, route))
    np.testing.assert_allclose(p_N.sum(), 1, atol=1e-12)

    each = lambda index, labels: exact.estimate_and_gradient(problem, index, labels, route, THEORY)
    _, gradients = jax.jit(jax.vmap(each))(index_NxXxK, all_labelled(hard))
    wanted = exact.exact(problem, THEORY.beta, route).gradient
    np.testing.assert_allclose(p_N @ gradients, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize('loss', ['dpo', 'simpo'])
def test_responses_of_several_steps(loss):
    # The response ends after its first step where that is 0; what stands at the masked step
    # must not matter. Responses: (0), (1, 0), (1, 1).
    first, second = np.array([0, 1, 1]), np.array([0, 0, 1])
    mask_YxT = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    reward_Y = np.array([0.3, -1.0, 0.8])
    reference_YxT = np.array([[-0.4, 33.0], [-1.2, -0.9], [-1.2, -0.5]])
    theta = np.array([0.3, -0.8])

    def logp(theta):
        start = jax.nn.log_softmax(jnp.stack([theta[0], -theta[1]]))
        later = jax.nn.log_softmax(jnp.stack([theta[0] * theta[1], 0.5 * theta[1]]))
        return jnp.stack([start[first], jnp.where(mask_YxT[:, 1] > 0, later[second], 5.0)], -1)

    def total(theta):
        return (logp(theta) * mask_YxT).sum(-1)

    def J(theta):
        h = total(theta) - (reference_YxT * mask_YxT).sum(-1)
        if loss == 'simpo':
            h = total(theta) / mask_YxT.sum(-1)
        D = exact.difference(THEORY.beta * h)
        P = jax.nn.sigmoid(exact.difference(reward_Y))
        f = P * jax.nn.log_sigmoid(D) + (1 - P) * jax.nn.log_sigmoid(-D)
        return jnp.exp(total(theta)) @ f @ jnp.exp(total(theta))

    def surrogate(theta_now, index_1xK):
        return objective.preference(
            exact.steps(
                logp(theta_now)[index_1xK],
                logp(theta)[index_1xK],
                jnp.asarray(reference_YxT)[index_1xK],
                jnp.asarray(mask_YxT)[index_1xK],
            ),
            exact.reward_labels(jnp.asarray(reward_Y)[index_1xK]),
            exact.route(1, True, False),
            THEORY,
            Form(PAIR_LOSSES[loss]),
        ).surrogate

    @jax.jit
    def both(theta, samples):
        p_N = jnp.exp(total(theta)[samples].sum((1, 2)))
        gradients = jax.vmap(jax.grad(surrogate), in_axes=(None, 0))(theta, samples)
        return p_N.sum(), p_N @ gradients, jax.grad(J)(theta)

    one, mean, wanted = both(theta, exact.groups(3, 1, 3))
    np.testing.assert_allclose(one, 1, atol=1e-12)
    np.testing.assert_allclose(mean, wanted, rtol=0, atol=1e-9)


LAMBDA = 0.37


@pytest.mark.parametrize('estimator', ['exact', 'sampled'])
@pytest.mark.parametrize('direction', ['ref_to_policy', 'policy_to_ref'])
@pytest.mark.parametrize('K', [2, 3])
def test_revkl_sum_is_unbiased(K, direction, estimator):
    problem, route = exact.problem(seed=7), exact.route(2, True, False)
    # Only the sampled ref_to_policy needs a response that the reference drew.
    by_reference = estimator == 'sampled' and direction == 'ref_to_policy'
    lanes = K + by_reference
    lane_BxL = np.ones((2, lanes))
    if by_reference:
        lane_BxL[:, :K] = 0
    samples = exact.groups(3, 2, lanes)

    def kl(theta):
        p, q = problem.reference_logp_XxY, exact.policy_logp(problem, theta)
        return (p, q) if direction == 'ref_to_policy' else (q, p)

    def surrogate(theta, index):
        J = exact.estimate(problem, theta, index[:, :K], None, route, THEORY).surrogate
        logp = take(exact.policy_logp(problem, theta), index)[..., None]
        behaviour, mask = jax.lax.stop_gradient(logp), jnp.ones_like(logp)
        if estimator == 'sampled':
            reference = take(problem.reference_logp_XxY, index)[..., None]
            drawn = exact.steps(logp, behaviour, reference, mask)
            got = divergence.sampled_penalty(drawn, lane_BxL, direction)
        else:
            kl_X = divergence.categorical_kl(*kl(theta))
            kl_XxLx1 = jnp.broadcast_to(kl_X[:, None, None], logp.shape)
            drawn = exact.steps(logp, behaviour, None, mask)
            got = divergence.penalty(kl_XxLx1, drawn, lane_BxL)
        return J - LAMBDA * got.surrogate

    def exact_sum(theta):
        p, q = kl(theta)
        J = exact.exact_objective(problem, theta, theta, theta, THEORY.beta, route)
        return J - LAMBDA * (jnp.exp(p) * (p - q)).sum(-1).mean()

    @jax.jit
    def both(theta, samples):
        ours, theirs = exact.policy_logp(problem, theta), problem.reference_logp_XxY
        drawn = lambda i: take(ours, i[:, :K]).sum() + take(theirs, i[:, K:]).sum()
        gradients = jax.vmap(jax.grad(surrogate), in_axes=(None, 0))(theta, samples)
        return jnp.exp(jax.vmap(drawn)(samples)) @ gradients, jax.grad(exact_sum)(theta)

    mean, wanted = both(problem.theta_F, samples)
    np.testing.assert_allclose(mean, wanted, rtol=0, atol=1e-9)


def test_baseline_lowers_the_variance():
    problem, route = exact.problem(contexts=1), exact.route(1, True, False)
    samples = exact.groups(3, 1, 3)

    def without_baseline(theta, index):
        pathwise = exact.estimate(
            problem, theta, index, None, route, THEORY._replace(response=0.0)
        ).surrogate
        fixed = exact.policy_logp(problem, problem.theta_F)
        h = THEORY.beta * take(fixed - problem.reference_logp_XxY, index)[0]
        D = exact.difference(h)
        P = jax.nn.sigmoid(exact.difference(take(problem.reward_XxY, index)[0]))
        f = P * jax.nn.log_sigmoid(D) + (1 - P) * jax.nn.log_sigmoid(-D)
        mean_K = (f.sum(-1) - jnp.diag(f)) / 2
        return pathwise + (2 / 3 * mean_K * take(exact.policy_logp(problem, theta), index)[0]).sum()

    p_N = np.asarray(exact.probabilities(problem, samples, route))
    _, ours = exact.estimates(problem, samples, route, THEORY)
    naive = jax.jit(jax.vmap(jax.grad(without_baseline), in_axes=(None, 0)))(
        problem.theta_F, samples
    )
    np.testing.assert_allclose(p_N @ ours, p_N @ naive, atol=1e-12)
    small, large = (p_N @ ((g - p_N @ g) ** 2).sum(-1) for g in (ours, naive))
    assert small < 0.5 * large
