"""Several rewards, each with a weight."""

import asyncio

import numpy as np
import pytest

import sail_jax
from sail_jax import configfile, runs
from sail_jax.errors import UserError
from sail_jax.language import scored, task
from sail_jax.language.config import check
from sail_jax.language.reward import ensemble, labels
from sail_jax.language.reward.config import RewardSource
from sail_jax.language.reward.ensemble import Combined, Part
from sail_jax.language.reward.labels import Rater
from sail_jax.language.samples import Answers
from sail_jax.training import metrics
from tests.support import small

PROMPTS, GROUPS = ['a', 'b'], [['1', '22'], ['333', '']]
LENGTHS = np.asarray([[1, 2], [3, 0]], np.float32)


def length(prompts, responses):
    return [len(response) for response in responses]


def one(prompts, responses):
    return [1.0] * len(responses)


def make(**rewards):
    return small.run('m', 'd', rewards=rewards)


def test_one_that_is_only_looked_at_need_not_answer():
    rewards = np.asarray([[2.0, np.nan], [np.nan, 1.0]], np.float32)
    parts = [Part(name, weight, 1, None) for name, weight in (('a', 0.5), ('b', 0.0))]
    reward, spread = ensemble.weighted(rewards, parts)
    np.testing.assert_array_equal(reward, [1, np.nan])
    assert spread is None


def test_the_reward_is_the_weighted_sum_and_each_is_a_metric():
    run = make(length={'weight': -0.5}, one={'weight': 3})
    rater = labels.make(run, None, {'one': one, 'length': length})
    scores = labels.scores(rater, PROMPTS, GROUPS, np.asarray([True, True]), 2)
    reward, spread = rater.combined(scores)
    np.testing.assert_array_equal(reward, 3 - LENGTHS / 2)
    assert spread is None
    parts = rater.parts_of(scores)
    np.testing.assert_array_equal(parts['length'].reward, LENGTHS)
    np.testing.assert_array_equal(parts['one'].reward, np.ones((2, 2)))
    nothing = labels.scores(rater, PROMPTS, GROUPS, np.asarray([False, False]), 2)
    assert nothing.shape == (2, 2, 2)
    zero = np.zeros((2, 2))
    rated = rater.rated(PROMPTS, GROUPS)
    answers = Answers(tokens=zero, lengths=zero, ended=zero, texts=[], **rated)
    numbers = scored.reward_numbers(answers, answers)
    assert numbers['reward'] == 3 - 1.5 / 2
    assert (numbers['reward/length'], numbers['reward/one']) == (1.5, 1)


def test_without_weights_in_a_file_each_counts_once():
    rater = labels.make(small.run('m', 'd'), None, {'alone': length})
    scores = labels.scores(rater, PROMPTS, GROUPS, np.asarray([True, True]), 2)
    np.testing.assert_array_equal(rater.combined(scores)[0], LENGTHS)
    assert [part.name for part in rater.parts] == ['alone']


def test_functions_without_names_in_a_file_have_its_limits():
    sizes = []

    def counted(prompts, responses):
        sizes.append(len(responses))
        return [0.0] * len(responses)

    run = small.run('m', 'd', reward={'batch_size': 3})
    labels.make(run, None, {'alone': counted}).score(PROMPTS, GROUPS)
    assert sizes == [3, 1]
    run = small.run('m', 'd', reward={'source': 'positivity'})
    with pytest.raises(UserError, match=r'^reward.source: positivity, and rewards from Python'):
        labels.make(run, None, {'alone': counted})


def test_an_update_that_scores_nothing_says_nothing_of_rewards():
    nobody, parts = np.asarray([False, False]), {'length': Combined(LENGTHS, None)}
    assert task.reward_metrics(LENGTHS, None, nobody, parts) == {}
    numbers = task.reward_metrics(LENGTHS, None, np.asarray([True, False]), parts)
    assert numbers['reward/length'].tolist() == [1.5]
    assert 'reward_spread/length' not in numbers


def test_each_that_is_an_ensemble_has_a_spread_of_its_own():
    """Two models and one with weight -1, between them a function: 4 numbers a response."""
    lower = lambda values: ensemble.combine(values, RewardSource(aggregate='minimum'))
    mean = lambda values: ensemble.combine(values, RewardSource(spread_penalty=1.0))
    parts = (
        Part('low', 1.0, 2, lower),
        Part('one', 2.0, 1, None),
        Part('mean', -1.0, 3, mean),
    )
    rewards = np.asarray([[[0, 4, 1, 3, 3, 6], [2, 2, 5, 1, 1, 1]], [[9] * 6, [np.nan] * 6]], float)
    each = ensemble.parts_of(rewards, parts)
    spread = np.std([3, 3, 6])
    np.testing.assert_allclose(each['mean'].reward[0], [4 - spread, 1])
    got, none = ensemble.weighted(rewards, parts)
    np.testing.assert_allclose(got[0], [0 + 2 * 1 - (4 - spread), 2 + 2 * 5 - 1])
    assert none is None
    numbers = task.reward_metrics(got, None, np.asarray([True, False]), each)
    assert numbers['reward_spread/low'] == pytest.approx((2 + 0) / 2)
    assert numbers['reward_spread/mean'] == pytest.approx(spread / 2)
    assert 'reward_spread/one' not in numbers
    zero = np.zeros((2, 2))
    answers = Answers(zero, zero, zero, [], got, parts=each)
    told = scored.reward_numbers(answers, answers)
    # Of what is no number there is no spread.
    assert told['reward_spread/low'] == pytest.approx((2 + 0 + 0) / 3)
    assert 'reward_spread/one' not in told


def test_all_that_have_to_be_awaited_are_awaited_together():
    """Each answers once the other is there too."""
    here = []

    def meeting(name):
        async def reward(prompts, responses):
            here.append(name)
            while len(set(here)) < 2:
                await asyncio.sleep(0)
            return [float(len(here))] * len(responses)

        return reward

    run = make(**{name: {'timeout_s': 60} for name in ('first', 'second', 'third')})
    functions = {'first': meeting('first'), 'second': meeting('second'), 'third': one}
    rater = labels.make(run, None, functions)
    assert rater.score(PROMPTS, GROUPS).shape == (2, 2, 3)
    assert sorted(here) == ['first', 'second']


@pytest.mark.parametrize(
    ('rewards', 'handed', 'message'),
    [
        ({'a': {}}, length, r'reward: there are several, a; give functions by their names'),
        ({'a': {}}, {'b': length}, r"reward: 'b' is none of rewards: a"),
        ({'a': {}}, {'a': 3}, r'rewards.a: 3; expected a function'),
        ({'a': {'source': 'positivity'}}, {'a': one}, 'rewards.a.source: positivity, and a reward'),
    ],
)
def test_functions_that_do_not_belong_are_refused(rewards, handed, message):
    with pytest.raises(UserError, match=f'^{message}'):
        labels.make(make(**rewards), None, handed)


def test_nobody_labels_where_one_of_them_is_missing():
    run = make(a={'source': 'positivity'}, b={})
    rater = labels.make(run, None)
    assert rater == Rater()
    assert run.needs_function
    with pytest.raises(UserError, match=r"^rewards.b.source: none; give .* reward=\{'b': f\}"):
        labels.check(run, rater)


@pytest.mark.parametrize(
    ('rewards', 'message'),
    [
        ({'a': {'source': 'model'}}, 'rewards.a.path: needed for rewards.a.source: model'),
        ({'a': {'missing_eos_penalty': 1}}, 'rewards.a.missing_eos_penalty: of the sum'),
        ({'a': {'aggregate': 'minimum'}}, 'rewards.a.aggregate, .*rewards.a.source: none'),
    ],
)
def test_settings_that_do_not_go_together_are_refused(rewards, message):
    with pytest.raises(UserError, match=f'^{message}'):
        check(make(**rewards))
    with pytest.raises(UserError, match=r'rewards: in the place of reward\.source: positivity'):
        check(small.run('m', 'd', reward={'source': 'positivity'}, rewards={'a': {}}))
    of_all = {'missing_eos_penalty': 1.0, 'batch_size': 8, 'timeout_s': 9.0, 'max_tokens': 8}
    check(small.run('m', 'd', reward=of_all, rewards={'a': {}}))
    for name, value in {'spread_penalty': 1.0, 'aggregate': 'minimum', 'path': 'p'}.items():
        with pytest.raises(UserError, match=f'^reward.{name}: not used beside rewards'):
            check(small.run('m', 'd', reward={name: value}, rewards={'a': {}}))


def test_names_and_weights_are_kept_and_told_apart(tmp_path):
    run = make(a={'source': 'positivity', 'weight': 2.0}, b={})
    configfile.write(run, tmp_path / 'config.yaml')
    assert runs.load(tmp_path / 'config.yaml') == run
    heavier = configfile.override(run, ['--rewards.b.weight', '3'], 'sail-jax', '')
    assert heavier.rewards['b'].weight == 3
    theirs, ours = (x.model_dump(mode='json') for x in (heavier, run))
    assert configfile.another_runs(theirs, ours).startswith('rewards ')
    (tmp_path / 'bad.yaml').write_text(
        'workload: language\nmodel: {path: m}\ndata: {path: d}\nrewards: {no name: {}}\n'
    )
    with pytest.raises(UserError, match=r'bad.yaml:4: rewards') as caught:
        runs.load(tmp_path / 'bad.yaml')
    assert '\n' not in str(caught.value)


@pytest.mark.slow
def test_a_run_tells_the_mean_of_each(tmp_path):
    small.checkpoint(tmp_path / 'm')
    run = small.run(
        tmp_path / 'm',
        small.data(tmp_path / 'prompts.jsonl'),
        rewards={'letters': {'weight': 2.0}, 'length': {'weight': -0.25}},
        reward={'missing_eos_penalty': 0.5},
        total_prompts=8,
    )
    handed = {'letters': small.letters, 'length': length}
    result = sail_jax.train(run, tmp_path / 'run', reward=handed, quiet=True)
    for row in metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')[1:]:
        total = 2 * row['train/reward/letters'] - 0.25 * row['train/reward/length']
        total -= 0.5 * (1 - row['train/ended'])
        assert row['train/reward'] == pytest.approx(total, abs=1e-5)
    after = result.after
    total = 2 * after['eval/reward/letters'] - 0.25 * after['eval/reward/length']
    assert after['eval/reward'] == pytest.approx(total, abs=1e-5)
    _, again = runs.evaluate(tmp_path / 'run', reward=handed)
    assert again['reward'] == pytest.approx(after['eval/reward'], abs=1e-5)
    assert 'reward' not in runs.evaluate(tmp_path / 'run')[1]
