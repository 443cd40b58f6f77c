"""Several rewards of a response as one."""

import numpy as np
import pytest

from sail_jax.errors import UserError
from sail_jax.language import task
from sail_jax.language.config import check
from sail_jax.language.reward import ensemble, labels, rewards
from sail_jax.language.reward.config import RewardSource
from sail_jax.language.reward.labels import Rater
from sail_jax.language.samples import Answers
from sail_jax.language.scored import reward_numbers
from tests.support import small

MEMBERS = np.asarray([[[1.0, 3.0], [2.0, 2.0]], [[0.0, -4.0], [np.nan, 1.0]]])  # [B, K, members]


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        ({}, [[2, 2], [-2, np.nan]]),
        ({'aggregate': 'minimum'}, [[1, 2], [-4, np.nan]]),
        ({'spread_penalty': 0.5}, [[1.5, 2], [-3, np.nan]]),
    ],
)
def test_one_reward_of_several(settings, expected):
    got = ensemble.combine(MEMBERS, RewardSource.model_validate(settings))
    np.testing.assert_array_equal(got.reward, expected)
    np.testing.assert_array_equal(got.spread, [[1, 0], [2, np.nan]])


def brief(prompts, responses):
    return np.asarray([-len(response) for response in responses], np.float32)


def two(prompts, responses):
    return np.stack([brief(prompts, responses), np.ones(len(responses))], 1)


def test_members_of_all_models_are_asked_together():
    together = ensemble.together([brief, two])
    assert together.__qualname__ == 'brief, two'
    got = rewards.score(together, ['a', 'b'], [['1', '22'], ['333', '']], batch_size=3, members=3)
    expected = [[[-1, -1, 1], [-2, -2, 1]], [[-3, -3, 1], [0, 0, 1]]]
    np.testing.assert_array_equal(got, expected)


def rater(members: int = 3) -> Rater:
    """Of rewards that are the response's length, once and more."""
    score = lambda prompts, groups: np.asarray(
        [[[len(text) * member for member in range(members)] for text in group] for group in groups]
    )
    combine = lambda values: ensemble.combine(values, RewardSource())
    return Rater(score=score, members=members, combine=combine)


@pytest.mark.parametrize('asked', [(True, False), (False, False)])
def test_rows_that_are_not_asked_have_as_many_members(asked):
    asked_B = np.asarray(asked)
    got = labels.scores(rater(), ['a', 'b'], [['1', '22'], ['3', '4']], asked_B, 2)
    assert got.shape == (2, 2, 3)
    expected = asked_B[:, None, None] * [[[0, 1, 2], [0, 2, 4]], [[0, 1, 2], [0, 1, 2]]]
    np.testing.assert_array_equal(got, expected)


def test_the_spread_is_a_metric():
    asked_B = np.asarray([True, False])
    got, spread = rater().combined(
        labels.scores(rater(), ['a', 'b'], [['1', '22'], ['3', '4']], asked_B, 2)
    )
    numbers = task.reward_metrics(got, spread, asked_B, {})
    assert numbers['reward'].tolist() == [1.5]
    assert numbers['reward_spread'] == pytest.approx(np.std([0, 1, 2]) * 1.5, rel=1e-6)
    assert 'reward_spread' not in task.reward_metrics(got, None, asked_B, {})
    rated = rater().rated(['a', 'b'], [['1', '22'], ['3', '4']])
    zero = np.zeros((2, 2))
    answers = Answers(tokens=zero, lengths=zero, ended=zero, texts=[], **rated)
    numbers = reward_numbers(answers, answers)
    assert numbers['reward_spread'] == pytest.approx(np.std([0, 1, 2]) * 1.25)


@pytest.mark.parametrize(
    ('reward', 'message'),
    [
        ({'aggregate': 'minimum'}, 'of an ensemble of models; not used by reward.source: none'),
        (
            {'source': 'model', 'path': ['a', 'b'], 'aggregate': 'minimum', 'spread_penalty': 1},
            'reward.spread_penalty: of the mean; not used by reward.aggregate: minimum',
        ),
    ],
)
def test_what_only_an_ensemble_has_is_refused_elsewhere(tmp_path, reward, message):
    with pytest.raises(UserError, match=message):
        check(small.run(tmp_path, tmp_path, reward=reward))
