"""The scripted teachers against B-Pref's formulas in numpy, and the label budget."""

import functools
import itertools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from jax.experimental import io_callback
from scipy.special import expit

from sail_jax.config import Teacher
from sail_jax.core import labellers
from sail_jax.core.types import Preferences
from sail_jax.errors import UserError


@functools.partial(jax.jit, static_argnames='teacher')
def compare(key_B, true_BxK, perceived_BxK, teacher, counted_BxK=None):
    counted_BxK = jnp.ones(true_BxK.shape, bool) if counted_BxK is None else counted_BxK
    return labellers.label(key_B, labellers.Returns(true_BxK, perceived_BxK, counted_BxK), teacher)


def keys(seed, rows):
    return jax.random.split(jax.random.key(seed), rows)


def returns(seed, rows=6, K=4):
    return np.random.default_rng(seed).normal(size=(rows, K)).astype(np.float32)


def pairs(x_BxKxK):
    """Entries above the diagonal, [B, pairs]."""
    return np.asarray(x_BxKxK)[(slice(None), *np.triu_indices(x_BxKxK.shape[-1], 1))]


def difference(x_BxK):
    return x_BxK[:, :, None] - x_BxK[:, None, :]


def within_binomial(count, n, p, sigmas=5):
    return abs(count - n * p) <= sigmas * np.sqrt(n * p * (1 - p)) + 1e-9


def test_oracle_prefers_the_larger_return():
    R = returns(0)
    R[0, 1] = R[0, 0]
    got = compare(keys(0, 6), R, R, Teacher())
    np.testing.assert_array_equal(got.prob_BxKxK, (np.sign(difference(R)) + 1) / 2)
    assert got.prob_BxKxK[0, 0, 1] == 0.5
    np.testing.assert_array_equal(pairs(got.weight_BxKxK), 1)
    np.testing.assert_array_equal(np.diagonal(got.weight_BxKxK, axis1=1, axis2=2), 0)


def test_teacher_goes_by_the_perceived_return():
    R, seen = returns(1), returns(2)
    got = compare(keys(0, 6), R, seen, Teacher())
    np.testing.assert_array_equal(got.prob_BxKxK, (np.sign(difference(seen)) + 1) / 2)


def test_stochastic_frequencies_are_bradley_terrys():
    n, rationality = 20_000, 1.7
    R = np.tile(np.array([[0.3, 0.0, -0.9]], np.float32), (n, 1))
    got = compare(keys(3, n), R, R, Teacher(rationality=rationality))
    assert set(np.unique(pairs(got.prob_BxKxK))) == {0.0, 1.0}
    wins = pairs(got.prob_BxKxK)
    for pair, (i, j) in enumerate(itertools.combinations(range(3), 2)):
        p = expit(rationality * (R[0, i] - R[0, j]))
        assert within_binomial(wins[:, pair].sum(), n, p)
    # The pairs of a group are drawn independently.
    assert np.abs(np.corrcoef(wins.T)[np.triu_indices(3, 1)]).max() < 5 / np.sqrt(n)


def test_soft_labels_are_the_probabilities():
    R, e = returns(4), 0.1
    got = compare(keys(0, 6), R, R, Teacher(rationality=0.6, soft=True, mistake=e))
    p = expit(0.6 * difference(R))
    np.testing.assert_allclose(got.prob_BxKxK, (1 - e) * p + e * (1 - p), atol=1e-6)


def test_soft_labels_are_the_mean_of_hard_ones():
    n = 20_000
    R = np.tile(np.array([[0.5, 0.1]], np.float32), (n, 1))
    teacher = Teacher(rationality=2.0, mistake=0.15)
    hard = compare(keys(5, n), R, R, teacher).prob_BxKxK[:, 0, 1]
    soft = compare(keys(5, n), R, R, teacher.model_copy(update={'soft': True})).prob_BxKxK[0, 0, 1]
    assert within_binomial(hard.sum(), n, float(soft))


def test_myopic_weights_discount_what_is_further_from_the_end():
    # B-Pref multiplies rewards[:i + 1] by gamma for each i below the last step.
    gamma, reward = 0.8, np.random.default_rng(0).normal(size=(2, 3, 5))
    discounted = reward.copy()
    for i in range(4):
        discounted[..., : i + 1] *= gamma
    weights = labellers.myopic_weights(jnp.ones((2, 3, 5)), gamma)
    np.testing.assert_allclose(weights * reward, discounted, atol=1e-6)


def test_myopic_weights_end_where_the_segment_ends():
    mask = np.array([[[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]], np.float32)
    wanted = [[0.25, 0.5, 1, 0, 0], [1, 0, 0, 0, 0], [0.0625, 0.125, 0.25, 0.5, 1]]
    np.testing.assert_allclose(labellers.myopic_weights(mask, 0.5), [wanted])
    np.testing.assert_array_equal(labellers.myopic_weights(mask, 1.0), mask)


def test_mistake_turns_labels_round_at_its_rate():
    n, e = 5_000, 0.2
    R = returns(6, n, 3)
    right = (np.sign(difference(R)) + 1) / 2
    turned = pairs(compare(keys(7, n), R, R, Teacher(mistake=e)).prob_BxKxK) != pairs(right)
    for pair in range(3):
        assert within_binomial(turned[:, pair].sum(), n, e)
    assert np.abs(np.corrcoef(turned.T)[np.triu_indices(3, 1)]).max() < 5 / np.sqrt(n)


def test_skip_drops_pairs_of_two_low_returns():
    R, perceived = 2 + returns(8), returns(9)
    got = compare(keys(0, 6), R, perceived, Teacher(skip=0.9))
    kept = np.maximum(R[:, :, None], R[:, None, :]) > 0.9 * R.mean()
    np.testing.assert_array_equal(pairs(got.weight_BxKxK), pairs(kept))
    assert 0 < pairs(kept).mean() < 1
    np.testing.assert_array_equal(got.prob_BxKxK, (np.sign(difference(perceived)) + 1) / 2)


@pytest.mark.parametrize('low', [-1.0, -5.0])
def test_nothing_is_skipped_where_the_mean_return_is_not_positive(low):
    # A cost of each step; and returns of both signs whose mean is below 0.
    R = low + 2 * returns(8)
    assert R.mean() < 0
    got = compare(keys(0, 6), R, R, Teacher(skip=0.9))
    np.testing.assert_array_equal(pairs(got.weight_BxKxK), 1)
    zero = compare(keys(0, 6), 0 * R, 0 * R, Teacher(skip=0.9))
    np.testing.assert_array_equal(pairs(zero.weight_BxKxK), 1)


def bpref(first, second, margin, skip, equal):
    """A query's label by the text of B-Pref's `get_label`: None is skipped, -1 is equal."""
    if skip * margin > 0 and not max(first, second) > skip * margin:
        return None
    return -1 if abs(first - second) < equal * margin else float(first > second)


@given(hnp.arrays(np.float32, (2, 3), elements=st.floats(0, 8, width=16)))
def test_labels_are_b_prefs_with_the_batch_as_its_last_episodes(R):
    got, margin = compare(keys(0, 2), R, R, Teacher(skip=0.75, equal=0.125)), R.mean()
    assume(np.abs(R - 0.75 * margin).min() > 1e-4 or margin == 0)
    for row, (i, j) in itertools.product(range(2), itertools.combinations(range(3), 2)):
        assume(abs(abs(R[row, i] - R[row, j]) - 0.125 * margin) > 1e-4 or margin == 0)
        wanted = bpref(R[row, i], R[row, j], margin, 0.75, 0.125)
        assert (got.weight_BxKxK[row, i, j] == 0) == (wanted is None)
        if wanted is not None:
            same = (
                wanted == -1 or R[row, i] == R[row, j]
            )  # Of equal ones B-Pref prefers the second.
            assert got.prob_BxKxK[row, i, j] == (0.5 if same else wanted)


def test_equal_goes_by_the_size_of_negative_returns():
    R, teacher = 2 + returns(8), Teacher(equal=0.3)
    up, down = (compare(keys(0, 6), sign * R, sign * R, teacher).prob_BxKxK for sign in (1, -1))
    np.testing.assert_array_equal(up == 0.5, down == 0.5)
    assert 0 < pairs(up == 0.5).mean() < 1


def test_returns_that_are_not_known_have_no_part_in_a_typical_one():
    R, counted = 2 + returns(8), np.ones((6, 4), bool)
    counted[3:] = False
    alone = compare(keys(0, 3), R[:3], R[:3], Teacher(skip=0.9, equal=0.3))
    mixed = np.where(counted, R, 0)
    got = compare(keys(0, 6), mixed, mixed, Teacher(skip=0.9, equal=0.3), counted)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:3], b), got, alone)
    assert 0 < pairs(alone.weight_BxKxK).mean() < 1


@pytest.mark.parametrize('judged', [None, np.nan])
def test_what_broke_loses_to_everything_sound(judged):
    # Rewards of -1 a step: two steps until the simulator broke are more than twelve sound ones.
    R = np.array([[-2, -12, -11], [-2, -1, -12], [-2, -2, -2]], np.float32)
    broken = np.array([[True, False, False], [True, True, False], [True, True, True]])
    seen = R if judged is None else np.where(broken, judged, R).astype(np.float32)
    said = compare(keys(0, 3), seen, seen, Teacher(mistake=0.5, equal=0.9), ~broken)
    got = labellers.broken_loses(said, broken)
    prob, weight = np.asarray(got.prob_BxKxK), np.asarray(got.weight_BxKxK)
    np.testing.assert_array_equal(weight[0], 1 - np.eye(3))
    np.testing.assert_array_equal(prob[0, 0, 1:], 0)
    np.testing.assert_array_equal(prob[0, 1:, 0], 1)
    np.testing.assert_array_equal(weight[1], [[0, 0, 1], [0, 0, 1], [1, 1, 0]])
    np.testing.assert_array_equal(prob[1, :2, 2], 0)
    np.testing.assert_array_equal(weight[2], 0)
    assert np.isfinite(prob).all()
    # What is sound is compared as ever.
    np.testing.assert_array_equal(prob[0, 1:, 1:], said.prob_BxKxK[0, 1:, 1:])


def test_equal_comes_after_mistakes_and_goes_by_true_returns():
    R, perceived = returns(10), returns(11)
    got = compare(keys(0, 6), R, perceived, Teacher(equal=0.8, mistake=0.5))
    close = np.abs(difference(R)) < 0.8 * np.abs(R).mean()
    np.testing.assert_array_equal(pairs(got.prob_BxKxK == 0.5), pairs(close))
    assert 0 < pairs(close).mean() < 1
    np.testing.assert_array_equal(pairs(got.weight_BxKxK), 1)


TEACHERS = [
    Teacher(),
    Teacher(rationality=0.7),
    Teacher(rationality=0.7, soft=True, mistake=0.1),
    Teacher(mistake=0.3),
    Teacher(rationality=2.0, skip=0.5, equal=0.3, mistake=0.2),
]


@pytest.mark.parametrize('teacher', TEACHERS)
@given(
    R=hnp.arrays(np.float32, (2, 3), elements=st.floats(-100, 100, width=32)),
    seed=st.integers(0, 2**31 - 1),
)
@example(R=np.asarray([[6e-8, 0, 0], [0, 0, 0]], np.float32), seed=0)
def test_labels_are_antisymmetric(teacher, R, seed):
    got = compare(keys(seed, 2), R, R, teacher)
    prob, weight = np.asarray(got.prob_BxKxK), np.asarray(got.weight_BxKxK)
    np.testing.assert_allclose(pairs(prob + prob.swapaxes(1, 2)), 1, atol=1e-6)
    np.testing.assert_array_equal(weight, weight.swapaxes(1, 2))
    assert ((prob >= 0) & (prob <= 1)).all()
    assert set(np.unique(weight)) <= {0.0, 1.0}


@pytest.mark.parametrize('teacher', TEACHERS[:4])
def test_a_groups_labels_are_its_own(teacher):
    R, key_B = returns(12), keys(13, 6)
    changed = R.copy()
    changed[3:] *= 50
    one, other = (compare(key_B, x, x, teacher) for x in (R, changed))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:3], b[:3]), one, other)
    alone = compare(key_B[1:2], R[1:2], R[1:2], teacher)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[1:2]), alone, one)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('teacher', TEACHERS[:4])
def test_a_return_that_is_not_finite_is_never_quietly_labelled(teacher, value):
    # A segment so judged is neither better nor worse: no label, or one that makes the loss NaN
    # so that the update is skipped and counted.
    R = returns(14, rows=3, K=3)
    R[1, 2] = value
    got = compare(keys(15, 3), R, R, teacher)
    bad = ~np.isfinite(difference(R))
    quiet = np.isfinite(got.prob_BxKxK) & (np.asarray(got.weight_BxKxK) > 0)
    assert not pairs(quiet & bad).any()


def naive_budget(weight_BxKxK, asks_B, left):
    """Hands labels out pair by pair."""
    weight, asked = np.array(weight_BxKxK), 0
    for row, asks in enumerate(asks_B):
        for i, j in itertools.combinations(range(weight.shape[1]), 2):
            if not asks:
                continue
            if asked < left:
                asked += 1
            else:
                weight[row, i, j] = weight[row, j, i] = 0
    return weight, asked


within_budget = functools.partial(jax.jit, static_argnames='max_labels')(labellers.within_budget)


@given(
    K=st.sampled_from([2, 4]),
    asks=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5),
    budget=st.sampled_from([1, 5, 17]),
    seed=st.integers(0, 99),
)
def test_budget_is_never_overrun(K, asks, budget, seed):
    rng, spent, handed_out = np.random.default_rng(seed), 0, 0
    for asks_B in asks:
        weight = np.triu(rng.integers(0, 2, (4, K, K)), 1).astype(np.float32)
        weight += weight.swapaxes(1, 2)  # Some are skipped; those cost too.
        got = within_budget(
            Preferences(np.full((4, K, K), 0.5, np.float32), weight),
            np.array(asks_B),
            np.int32(spent),
            budget,
        )
        wanted, asked = naive_budget(weight, asks_B, budget - spent)
        np.testing.assert_array_equal(got.preferences.weight_BxKxK, wanted)
        assert got.asked == asked
        assert got.asked.dtype == jnp.int32
        spent += int(got.asked)
        handed_out += int(pairs(got.preferences.weight_BxKxK)[np.array(asks_B)].sum())
    assert handed_out <= spent <= budget


def test_without_a_budget_labels_are_only_counted():
    preferences = Preferences(np.full((3, 4, 4), 0.5), np.ones((3, 4, 4)))
    got = labellers.within_budget(
        preferences, np.array([True, False, True]), jnp.int32(10**9), None
    )
    assert got.asked == 2 * 6
    jax.tree.map(np.testing.assert_array_equal, got.preferences, preferences)


@pytest.mark.parametrize(
    ('labeller', 'wrong'),
    [
        (lambda key_B, returns, settings: difference(returns.true_BxK), 'expected .*Preferences'),
        (
            lambda key_B, returns, settings: Preferences(difference(returns.true_BxK), None),
            r'weight_BxKxK of shape \(2, 3, 3\), .* got None',
        ),
        (lambda key_B, returns: None, 'raised TypeError'),
        (lambda key_B, returns, settings: float(returns.true_BxK[0, 0]), 'use jnp.where'),
    ],
)
def test_a_labeller_that_no_update_can_use_is_one_line(labeller, wrong, monkeypatch):
    monkeypatch.setitem(labellers.LABELLERS, 'mine', labeller)
    with pytest.raises(UserError, match=f'^labeller.kind: mine: .*{wrong}') as error:
        labellers.check(Teacher(kind='mine'), 3)
    assert '\n' not in str(error.value)


def drawn(key_B, returns):
    """Labels of which ij and ji are drawn apart."""
    prob = (1 + jnp.sign(difference(returns.true_BxK))) / 2
    draw = jax.vmap(lambda key, prob: jax.random.bernoulli(key, 0.2 + 0.6 * prob))
    return 1.0 * draw(key_B, prob)


OFF = 1 - jnp.eye(4)[None] + jnp.zeros((2, 1, 1))
NO_PREFERENCES = {
    'from -1 to 1': (lambda key_B, returns: jnp.sign(difference(returns.true_BxK)), OFF),
    'differences': (lambda key_B, returns: difference(returns.true_BxK), OFF),
    'the same for both': (lambda key_B, returns: OFF, OFF),
    'drawn apart': (drawn, OFF),
    'for one of both': (lambda key_B, returns: OFF / 2, jnp.triu(OFF)),
    'a negative weight': (lambda key_B, returns: OFF / 2, -OFF),
    'a large weight': (lambda key_B, returns: OFF / 2, 5 * OFF),
    'no number for a weight': (lambda key_B, returns: OFF / 2, jnp.nan * OFF),
}


@pytest.mark.parametrize(('prob', 'weight'), NO_PREFERENCES.values(), ids=NO_PREFERENCES)
def test_numbers_that_are_no_preferences_are_one_line(prob, weight, monkeypatch):
    labeller = lambda key_B, returns, settings: Preferences(prob(key_B, returns), weight)
    monkeypatch.setitem(labellers.LABELLERS, 'mine', labeller)
    with pytest.raises(UserError, match=r'^labeller.kind: mine: gave a pair .*; expected') as error:
        labellers.check(Teacher(kind='mine'), 4)
    assert '\n' not in str(error.value)


def test_labels_that_are_missing_soft_or_rounded_are_preferences(monkeypatch):
    def labeller(key_B, returns, settings):
        prob = jax.nn.sigmoid(difference(returns.true_BxK)).astype(jnp.bfloat16)
        low = returns.true_BxK[:, :, None] + returns.true_BxK[:, None] < 0
        return Preferences(jnp.where(low, 3, prob).at[:, 0].set(jnp.nan), OFF * ~low)

    monkeypatch.setitem(labellers.LABELLERS, 'mine', labeller)
    labellers.check(Teacher(kind='mine'), 4)


@pytest.mark.parametrize('dtype', [bool, jnp.int8, jnp.float16, jnp.bfloat16])
def test_what_a_labeller_says_is_counted_in_float32(dtype, monkeypatch):
    said = Preferences(jnp.asarray(OFF, dtype), jnp.asarray(OFF, dtype))
    monkeypatch.setitem(labellers.LABELLERS, 'mine', lambda key_B, returns, settings: said)
    heard = labellers.label(None, None, Teacher(kind='mine'))
    assert {x.dtype for x in jax.tree.leaves(heard)} == {jnp.dtype('float32')}


def test_who_is_asked_out_loud_is_not_asked_before_a_run(monkeypatch):
    def labeller(key_B, returns, settings):
        half = returns.true_BxK[:, :, None] * 0 + jnp.full(4, 0.5)
        return Preferences(io_callback(lambda x: 1 / 0, half, half, ordered=True), OFF)

    monkeypatch.setitem(labellers.LABELLERS, 'mine', labeller)
    labellers.check(Teacher(kind='mine'), 4)
    # Nor can he answer for the members of a sweep, that train side by side.
    with pytest.raises(UserError, match=r'^labeller.kind: mine: raised ValueError: .*vmap'):
        labellers.check(Teacher(kind='mine'), 4, side_by_side=True)


def test_the_teacher_passes_its_own_check():
    labellers.check(Teacher(rationality=1.0, mistake=0.1, skip=0.1, equal=0.1), 2)
