"""The reward ensemble: its fit on labelled pairs, and which questions it asks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sail_jax.control.reward import ensemble, questions
from sail_jax.control.reward.config import Questions, RewardEnsemble
from sail_jax.control.reward.ensemble import Comparisons
from sail_jax.core import bradley_terry

N, T, WIDTH, A, M = 96, 4, 2, 1, 2
SETTINGS = RewardEnsemble(
    hidden=(16,), learning_rate=1e-2, minibatch=32, passes=60, members=M, stop_accuracy=0.9
)


OURS = ensemble.make(SETTINGS, (WIDTH,), A)
FIT = jax.jit(OURS.fit)


def pairs(seed=0, count=N):
    """Whose better segment is the one further to the right; some end early."""
    rng = np.random.default_rng(seed)
    obs, action = rng.normal(size=(count, 2, T, WIDTH)), rng.normal(size=(count, 2, T, A))
    mask = np.arange(T) < rng.integers(2, T + 1, (count, 2, 1))
    better = (obs[..., 0] * mask).sum(-1)
    return Comparisons(
        obs=jnp.asarray(obs, jnp.float32),
        action=jnp.asarray(action, jnp.float32),
        mask=jnp.asarray(mask, jnp.float32),
        prob=jnp.asarray(better[:, 0] > better[:, 1], jnp.float32),
        weight=jnp.ones(count),
    )


@pytest.fixture(scope='module')
def fitted():
    start = jax.jit(OURS.init)(jax.random.key(0))
    return start, FIT(start, pairs(), jax.random.key(1), 60)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_fit_finds_the_reward_behind_the_answers(fitted):
    start, fit = fitted
    unseen = pairs(seed=1)
    for params, low, high in ((start.params, 0, 0.75), (fit.fitted.params, 0.85, 1)):
        margin_N = ensemble.margins(OURS, params, unseen).mean(0)
        assert low <= bradley_terry.accuracy(margin_N, unseen.prob, unseen.weight) <= high
    reward_MxN = OURS.predict(fit.fitted.params, unseen.obs, unseen.action)
    assert reward_MxN.shape == (M, N, 2, T)
    assert np.abs(reward_MxN).max() <= 1
    assert np.corrcoef(reward_MxN.mean(0).ravel(), np.ravel(unseen.obs[..., 0]))[0, 1] > 0.85
    assert np.asarray(reward_MxN).std(0).min() > 0  # Members differ.


def test_a_margin_is_the_difference_of_what_happened(fitted):
    _, fit = fitted
    reward = np.asarray(OURS.predict(fit.fitted.params, pairs().obs, pairs().action))
    returns = (reward * pairs().mask).sum(-1)
    margin_MxN = ensemble.margins(OURS, fit.fitted.params, pairs())
    np.testing.assert_allclose(margin_MxN, returns[..., 0] - returns[..., 1], atol=1e-5)
    unlike = pairs()._replace(obs=jnp.where(pairs().mask[..., None] > 0, pairs().obs, 1e3))
    same(margin_MxN, ensemble.margins(OURS, fit.fitted.params, unlike))


def test_what_has_no_answer_is_not_learned_from(fitted):
    start, _ = fitted
    answered = jnp.arange(N) % 3 > 0
    few = pairs()._replace(weight=answered.astype(jnp.float32))
    junk = few._replace(
        obs=jnp.where(answered[:, None, None, None], few.obs, 1e3),
        prob=jnp.where(answered, few.prob, 1 - few.prob),
    )
    key = jax.random.key(2)
    same(FIT(start, few, key, 5), FIT(start, junk, key, 5))
    nothing = FIT(start, pairs()._replace(weight=jnp.zeros(N)), key, 5)
    same(nothing.fitted, start)
    assert nothing.passes == 0


def test_soft_labels_and_ties_are_probabilities(fitted):
    start, _ = fitted
    # Of which the last two are one pair with opposite labels: no fit has enough of them right.
    prob = jnp.asarray([0.5, 0.8, 1.0, 0.0])
    some = jax.tree.map(lambda x: x.at[3].set(x[2]), pairs())
    some = some._replace(prob=some.prob.at[:4].set(prob), weight=1.0 * (jnp.arange(N) < 4))
    fit = FIT(start, some, jax.random.key(4), 300)
    assert fit.passes == 300
    got = ensemble.margins(OURS, fit.fitted.params, some)[:, :4]
    np.testing.assert_allclose(got, np.broadcast_to([0, np.log(4), 0, 0], (M, 4)), atol=0.03)


def test_a_pass_over_one_minibatch_is_an_adam_step_of_each_member(fitted):
    start, _ = fitted
    one = jnp.arange(N) < SETTINGS.minibatch

    def loss(params):
        reward = OURS.predict(params, pairs().obs, pairs().action) * pairs().mask
        margin = reward[..., 0, :].sum(-1) - reward[..., 1, :].sum(-1)
        chosen = jnp.where(pairs().prob > 0.5, margin, -margin)
        return jnp.log1p(jnp.exp(-chosen[:, one])).mean(-1).sum()

    rule = optax.adam(SETTINGS.learning_rate)
    updates, _ = rule.update(jax.grad(loss)(start.params), rule.init(start.params))
    fit = FIT(start, pairs()._replace(weight=1.0 * one), jax.random.key(5), 1)
    expected = optax.apply_updates(start.params, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), fit.fitted.params, expected
    )


def test_a_fit_stops_once_it_is_right_often_enough(fitted):
    start, fit = fitted
    assert 1 < fit.passes < 60
    assert fit.accuracy > SETTINGS.stop_accuracy
    before = FIT(start, pairs(), jax.random.key(1), fit.passes - 1)
    assert before.passes == fit.passes - 1
    assert before.accuracy <= SETTINGS.stop_accuracy


def test_seeds_side_by_side_are_as_alone():
    keys = jax.random.split(jax.random.key(6), 2)
    starts, passes = jax.jit(jax.vmap(OURS.init))(keys), jnp.asarray([3, 0])
    both = jax.jit(jax.vmap(OURS.fit, (0, None, 0, 0)))(starts, pairs(), keys, passes)
    first, second = (jax.tree.map(lambda x, i=i: x[i], both) for i in range(2))
    alone = FIT(jax.tree.map(lambda x: x[0], starts), pairs(), keys[0], 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), first, alone)
    same(second.fitted, jax.tree.map(lambda x: x[1], starts))


def test_of_several_observations_the_reward_sees_the_policys():
    ours = ensemble.make(SETTINGS, {'state': (WIDTH,), 'privileged_state': (7,)}, A)
    params = ours.init(jax.random.key(0)).params
    obs = {'state': pairs().obs, 'privileged_state': jnp.full((7,), jnp.nan)}
    same(
        ours.predict(params, obs, pairs().action),
        ours.predict(params, pairs().obs, pairs().action),
    )


PROB = np.asarray([[0.5, 0.9, 0.1, 0.4], [0.5, 0.9, 0.9, 0.6]])
MARGIN = jnp.log(PROB / (1 - PROB))


@pytest.mark.parametrize(('choice', 'wanted'), [('disagreement', [2, 3]), ('entropy', [0, 3])])
def test_the_questions_are_where_the_members_disagree_or_are_not_sure(choice, wanted):
    settings, key = Questions(choice=choice, per_round=2), jax.random.key(0)
    np.testing.assert_array_equal(questions.pick(settings, key, MARGIN, first=False), wanted)


def test_scores_of_questions_by_hand():
    np.testing.assert_allclose(questions.disagreement(PROB), [0, 0, 0.4, 0.1], atol=1e-7)
    bits = lambda p: -p * np.log(p) - (1 - p) * np.log(1 - p)
    np.testing.assert_allclose(questions.entropy(PROB), bits(PROB).mean(0), rtol=1e-5)


@pytest.mark.parametrize(('choice', 'first'), [('disagreement', True), ('uniform', False)])
def test_any_pair_is_as_likely_where_nothing_is_known(choice, first):
    settings = Questions(choice=choice, per_round=2)
    keys = jax.random.split(jax.random.key(0), 400)
    pick = lambda key: questions.pick(settings, key, MARGIN, first=first)
    picked = jax.jit(jax.vmap(pick))(keys)
    assert (picked[:, 0] != picked[:, 1]).all()
    # Each of four in a half of all: a standard deviation of 0.025.
    shares = [(picked == candidate).any(1).mean() for candidate in range(4)]
    np.testing.assert_allclose(shares, 0.5, atol=0.1)


def test_the_schedule_spends_the_budget_and_no_more():
    settings = Questions(per_round=4, candidates=4, budget=10, every_env_steps=250)
    asked, rounds = 0, []
    for updates in range(20):
        number = int(questions.due(settings, jnp.int32(updates), jnp.int32(asked), 100))
        asked += number
        rounds += [(updates, number)] if number else []
    assert rounds == [(0, 4), (3, 4), (6, 2)]
