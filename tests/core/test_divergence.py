"""KL against sums and integrals, and its gradients on an enumerated tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from sail_jax.core import divergence, optimizer
from sail_jax.core.divergence import Gaussian
from tests.support import exact

gaussian_kl = jax.jit(divergence.gaussian_kl)
categorical_kl = jax.jit(divergence.categorical_kl)

coordinate = st.floats(-10, 10, allow_subnormal=False)
location, scale = st.floats(-5, 5), st.floats(0.05, 20)
logits = st.lists(st.floats(-30, 30), min_size=4, max_size=4).map(np.array)


@pytest.mark.parametrize(
    ('p', 'q'),
    [((0.0, 1.0), (1.5, 0.7)), ((-2.0, 0.3), (0.0, 4.0)), ((0.4, 2.0), (0.4, 2.0))],
)
def test_gaussian_kl_is_the_integral(x64, p, q):
    def integrand(x):
        log_p, log_q = stats.norm.logpdf(x, *p), stats.norm.logpdf(x, *q)
        return np.exp(log_p) * (log_p - log_q)

    span = (p[0] - 12 * p[1], p[0] + 12 * p[1])
    wanted, error = integrate.quad(integrand, *span, epsabs=1e-12, limit=200)
    assert error < 1e-9
    got = gaussian_kl(*(Gaussian(np.array([loc]), np.array([s])) for loc, s in (p, q)))
    np.testing.assert_allclose(got, wanted, atol=1e-9)


def test_gaussian_kl_sums_over_the_last_axis(x64):
    rng = np.random.default_rng(0)
    p, q = (Gaussian(rng.normal(size=(2, 5, 3)), rng.uniform(0.2, 3, (2, 5, 3))) for _ in range(2))
    got = gaussian_kl(p, q)
    assert got.shape == (2, 5)
    each = [
        gaussian_kl(*(Gaussian(g.loc[..., i : i + 1], g.scale[..., i : i + 1]) for g in (p, q)))
        for i in range(3)
    ]
    np.testing.assert_allclose(got, sum(each), atol=1e-12)


@given(location, scale, location, scale)
def test_gaussian_kl_is_not_negative(loc_p, scale_p, loc_q, scale_q):
    with jax.enable_x64(True):
        p, q = (
            Gaussian(np.array([a]), np.array([b])) for a, b in ((loc_p, scale_p), (loc_q, scale_q))
        )
        assert gaussian_kl(p, q) >= -1e-12
        np.testing.assert_allclose(gaussian_kl(p, p), 0, atol=1e-12)


@given(logits, logits, st.floats(-50, 50))
def test_categorical_kl_is_the_sum(p_logits, q_logits, shift):
    with jax.enable_x64(True):
        got = categorical_kl(p_logits + shift, q_logits)
        np.testing.assert_allclose(
            got, stats.entropy(np.exp(p_logits), np.exp(q_logits)), rtol=1e-9, atol=1e-11
        )
        assert got >= -1e-11


def test_actions_that_p_never_takes_cost_nothing(x64):
    p, q = np.array([0.3, -np.inf, 1.0]), np.array([0.1, 0.7, -0.4])
    left = [0, 2]
    log_q = jax.nn.log_softmax(q)[jnp.array(left)]
    probability = np.exp(p[left]) / np.exp(p[left]).sum()
    wanted = (probability * (np.log(probability) - log_q)).sum()
    np.testing.assert_allclose(categorical_kl(p, q), wanted, atol=1e-12)
    # Neither does one that both never take; and q must not forbid what p takes.
    both = categorical_kl(p, np.array([0.1, -np.inf, -0.4]))
    np.testing.assert_allclose(both, categorical_kl(p[left], q[left]), atol=1e-12)
    assert categorical_kl(q, p) == np.inf
    gradients = jax.grad(divergence.categorical_kl, argnums=(0, 1))(p, q)
    assert all(np.isfinite(g).all() for g in gradients)


def finite_difference(f, x, step=1e-6):
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        bump = np.zeros_like(x)
        bump[i] = step
        gradient[i] = (f(x + bump) - f(x - bump)) / (2 * step)
    return gradient


def test_gradients_against_finite_differences(x64):
    rng = np.random.default_rng(1)
    loc, log_scale, other = (rng.normal(size=3) for _ in range(3))
    fixed = Gaussian(rng.normal(size=3), rng.uniform(0.5, 2, 3))

    def gaussian(forward):
        def f(x):
            ours = Gaussian(x[:3], jnp.exp(x[3:]))
            return divergence.gaussian_kl(*((ours, fixed) if forward else (fixed, ours)))

        return f, np.concatenate([loc, log_scale])

    def categorical(forward):
        def f(x):
            return divergence.categorical_kl(*((x, other) if forward else (other, x)))

        return f, loc

    for f, x in (make(forward) for make in (gaussian, categorical) for forward in (True, False)):
        numeric = finite_difference(jax.jit(f), x)
        np.testing.assert_allclose(jax.jit(jax.grad(f))(x), numeric, rtol=1e-6, atol=1e-8)


# A tree of two steps. The first action is one of three; 0 ends the response, and after 1 and 2 the
# second action is one of two, from a distribution that depends on the first.
FIRST, SECOND = np.array([0, 1, 1, 2, 2]), np.array([0, 0, 1, 0, 1])
MASK = np.array([[1, 0], [1, 1], [1, 1], [1, 1], [1, 1]], float)
THETA, REFERENCE = np.array([0.4, -0.9, 0.6]), np.array([-0.5, 0.3, 0.2])
JUNK = 5.0  # At masked steps: must not matter.


def tree(theta):
    """Logits of the first step [3] and of the second, by first action, [3, 2]."""
    first = jnp.stack([theta[0], theta[1] * 0.5, -theta[0]])
    second = jnp.stack(
        [jnp.stack([a * theta[2], b * theta[1]]) for a, b in ((0, 0), (1, -1), (-2, 1))]
    )
    return jax.nn.log_softmax(first), jax.nn.log_softmax(second)


def tree_logp(theta):
    """Of the steps of each of the five responses, [5, 2]."""
    first, second = tree(theta)
    later = jnp.where(MASK[:, 1] > 0, second[FIRST, SECOND], JUNK * theta[0])
    return jnp.stack([first[FIRST], later], -1)


def tree_kl(theta, direction):
    """Exact per-step KL at the states that each of the five responses passes, [5, 2]."""
    pairs = zip(tree(REFERENCE), tree(theta), strict=True)
    if direction == 'policy_to_ref':
        pairs = ((p, q) for q, p in pairs)
    first, second = ((jnp.exp(p) * (p - q)).sum(-1) for p, q in pairs)
    later = jnp.where(MASK[:, 1] > 0, second[FIRST], JUNK * theta[1])
    return jnp.stack([jnp.broadcast_to(first, 5), later], -1)


def sequence_logp(theta):
    return (tree_logp(theta) * MASK).sum(-1)


def trajectory_kl(theta, direction):
    """KL between the distributions of whole responses."""
    p, q = sequence_logp(REFERENCE), sequence_logp(theta)
    if direction == 'policy_to_ref':
        p, q = q, p
    return (jnp.exp(p) * (p - q)).sum()


def mean_kl(theta, direction, drawn_by):
    """`E[mean over steps of the per-step KL]` of responses that `drawn_by` draws."""
    per_step = (tree_kl(theta, direction) * MASK).sum(-1) / MASK.sum(-1)
    return jnp.exp(sequence_logp(drawn_by)) @ per_step


def expectation(direction, estimator, drawn_by, *, reduction='sum', visitation=False, lanes=2):
    """Expected value and gradient of the penalty over all groups of one row's lanes."""
    samples = exact.groups(5, 1, lanes)

    def penalty(theta, index_1xL):
        take = lambda table: table[index_1xL]
        logp, mask, lane = take(tree_logp(theta)), take(jnp.asarray(MASK)), np.ones((1, lanes))
        behaviour = jax.lax.stop_gradient(logp)
        if estimator == 'sampled':
            reference = take(tree_logp(REFERENCE))
            drawn = exact.steps(logp, behaviour, reference, mask)
            got = divergence.sampled_penalty(drawn, lane, direction, reduction)
        else:
            kl = take(tree_kl(theta, direction))
            drawn = exact.steps(logp, behaviour, None, mask)
            got = divergence.penalty(kl, drawn, lane, reduction=reduction, visitation=visitation)
        return got.surrogate, got.value

    @jax.jit
    def both(theta, samples):
        p_N = jnp.exp(
            sequence_logp(theta if drawn_by == 'policy' else REFERENCE)[samples].sum((1, 2))
        )
        each = jax.vmap(jax.grad(penalty, has_aux=True), in_axes=(None, 0))
        gradients, values = each(theta, samples)
        return p_N @ values, p_N @ gradients

    return both(THETA, samples)


@jax.jit
def wanted(theta):
    return {
        direction: jax.value_and_grad(trajectory_kl)(theta, direction)
        for direction in ('ref_to_policy', 'policy_to_ref')
    }


@pytest.mark.parametrize('estimator', ['exact', 'sampled'])
def test_ref_to_policy_on_the_references_lanes_is_unbiased(x64, estimator):
    value, gradient = expectation('ref_to_policy', estimator, 'reference')
    np.testing.assert_allclose(value, wanted(THETA)['ref_to_policy'][0], atol=1e-12)
    np.testing.assert_allclose(gradient, wanted(THETA)['ref_to_policy'][1], atol=1e-9)


@pytest.mark.parametrize('lanes', [1, 2, 3])
@pytest.mark.parametrize('estimator', ['exact', 'sampled'])
def test_policy_to_ref_on_the_policys_lanes_is_unbiased(x64, estimator, lanes):
    value, gradient = expectation(
        'policy_to_ref', estimator, 'policy', visitation=True, lanes=lanes
    )
    np.testing.assert_allclose(value, wanted(THETA)['policy_to_ref'][0], atol=1e-12)
    np.testing.assert_allclose(gradient, wanted(THETA)['policy_to_ref'][1], atol=1e-9)


def test_policy_to_ref_is_biased_without_visitation(x64):
    value, gradient = expectation('policy_to_ref', 'exact', 'policy', visitation=False)
    np.testing.assert_allclose(value, wanted(THETA)['policy_to_ref'][0], atol=1e-12)
    assert np.abs(gradient - wanted(THETA)['policy_to_ref'][1]).max() > 1e-3


def test_mean_is_the_average_per_step(x64):
    for direction in ('ref_to_policy', 'policy_to_ref'):
        value, gradient = expectation(direction, 'exact', 'reference', reduction='mean')
        exact_value, exact_gradient = jax.jit(
            jax.value_and_grad(lambda theta: mean_kl(theta, direction, REFERENCE))  # noqa: B023
        )(THETA)
        np.testing.assert_allclose(value, exact_value, atol=1e-12)
        np.testing.assert_allclose(gradient, exact_gradient, atol=1e-9)


def test_sampled_policy_to_ref_mean_has_the_gradient_of_its_value(x64):
    value, gradient = expectation('policy_to_ref', 'sampled', 'policy', reduction='mean')

    def average(theta):
        log_ratio = ((tree_logp(theta) - tree_logp(REFERENCE)) * MASK).sum(-1) / MASK.sum(-1)
        return jnp.exp(sequence_logp(theta)) @ log_ratio

    exact_value, exact_gradient = jax.jit(jax.value_and_grad(average))(THETA)
    np.testing.assert_allclose(value, exact_value, atol=1e-12)
    np.testing.assert_allclose(gradient, exact_gradient, atol=1e-9)


def test_only_the_lanes_that_count_have_influence(x64):
    rng = np.random.default_rng(0)
    kl, logp, reference = (rng.normal(size=(2, 3, 4)) for _ in range(3))
    lane = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    mask = np.ones_like(kl)
    changed = np.where(lane[..., None] > 0, 0, 7.0)

    @jax.jit
    def results(kl, logp):
        def surrogate(kl, logp):
            drawn = exact.steps(logp, logp, reference, mask)
            return (
                divergence.penalty(kl, drawn, lane, visitation=True).surrogate
                + divergence.sampled_penalty(drawn, lane, 'policy_to_ref').surrogate
            )

        return jax.grad(surrogate, argnums=(0, 1))(kl, logp)

    one, other = results(kl, logp), results(kl + changed, logp + changed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), one, other)
    assert all((np.asarray(g)[lane == 0] == 0).all() for g in one)
    value = divergence.penalty(kl, exact.steps(logp, logp, None, mask), lane).value
    np.testing.assert_allclose(value, kl.sum(-1)[lane > 0].mean(), atol=1e-12)


NOTHING = [np.nan, np.inf, -np.inf, 1e4]


@pytest.mark.parametrize('junk', NOTHING)
@pytest.mark.parametrize('where', ['masked steps', 'lanes that do not count'])
@pytest.mark.parametrize('reduction', ['sum', 'mean'])
@pytest.mark.parametrize('estimator', ['exact', 'policy_to_ref', 'ref_to_policy'])
def test_what_does_not_count_may_hold_anything(x64, estimator, reduction, where, junk):
    # 1e4: a finite log-ratio whose ratio is infinite.
    rng = np.random.default_rng(0)
    kl, logp, reference, behaviour = rng.normal(size=(4, 2, 3, 4))
    mask, lane = np.ones((2, 3, 4)), np.ones((2, 3))
    if where == 'masked steps':
        mask[0, :, 2:] = mask[1, 1, 1:] = 0
        counts = mask > 0
    else:
        lane[0, 1] = lane[1, 2] = 0
        counts = np.broadcast_to(lane[..., None] > 0, mask.shape)

    def surrogate(kl, logp, reference, behaviour):
        drawn = exact.steps(logp, behaviour, reference, mask)
        if estimator == 'exact':
            return divergence.penalty(
                kl, drawn, lane, reduction=reduction, visitation=reduction == 'sum'
            ).surrogate
        return divergence.sampled_penalty(drawn, lane, estimator, reduction).surrogate

    results = jax.jit(jax.value_and_grad(surrogate, argnums=(0, 1)))
    clean = [np.where(counts, x, 0.5) for x in (kl, logp, reference, behaviour)]
    wanted = results(*clean)
    for index in range(4):
        spoilt = list(clean)
        spoilt[index] = np.where(counts, clean[index], junk)
        got = results(*spoilt)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), got, wanted)
    assert np.abs(wanted[1][1]).max() > 1e-2 or estimator == 'exact'


@pytest.mark.parametrize('estimator', ['exact', 'sampled'])
@pytest.mark.parametrize(
    ('log_ratio', 'flows'),
    [
        # Of one lane with a cost above the other's: it is made rarer, to the bound.
        (-0.1, True),
        (-0.5, False),
        (0.5, True),
    ],
)
def test_the_score_part_is_clipped_where_it_lowers_the_kl(x64, estimator, log_ratio, flows):
    kl, mask = np.array([[[0.0, 3.0], [0.0, 1.0]]]), np.ones((1, 2, 2))
    lane, behaviour = np.ones((1, 2)), np.zeros((1, 2, 2))
    reference = np.array([[[-3.0, 0.0], [0.0, 0.0]]])

    def first_step(x, clip):
        logp = jnp.zeros((1, 2, 2)).at[0, 0, 0].set(x)
        drawn = exact.steps(logp, behaviour, reference, mask)
        if estimator == 'exact':
            return divergence.penalty(kl, drawn, lane, visitation=True, clip=clip).surrogate
        return divergence.sampled_penalty(drawn, lane, 'policy_to_ref', clip=clip).surrogate

    clipped, free = (jax.grad(first_step)(log_ratio, clip) for clip in (0.2, None))
    assert free > 0.1
    np.testing.assert_allclose(clipped, free if flows else 0, atol=1e-12)


def test_no_lane_is_no_penalty():
    zero = np.zeros((2, 3, 4), np.float32)
    drawn = exact.steps(zero, zero, zero + 3, zero + 1)
    got = divergence.penalty(zero + 3, drawn, zero[..., 0], visitation=True)
    assert got == (0, 0)
    assert divergence.sampled_penalty(drawn, zero[..., 0], 'ref_to_policy') == (0, 0)


@given(st.lists(coordinate, min_size=5, max_size=5), st.floats(0.1, 20))
def test_projection_on_the_ball(x, radius):
    with jax.enable_x64(True):
        params = {'a': np.array(x[:2]), 'b': [np.array(x[2:])]}
        got = optimizer.project(params, radius)
        flat = np.concatenate([got['a'], *got['b']])
        norm = np.linalg.norm(x)
        wanted = np.array(x) * min(1, radius / norm) if norm > 0 else np.array(x)
        np.testing.assert_allclose(flat, wanted, rtol=1e-9, atol=1e-12)
        if norm < radius:
            np.testing.assert_array_equal(flat, x)


def test_no_radius_leaves_the_parameters_free():
    params = {'a': np.full(3, 1e6)}
    assert optimizer.project(params, None) is params
