"""Whose responses a language run puts to the labeller, and whose pairs its budget pays for."""

import itertools
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail_jax import configfile
from sail_jax.core.types import Batch, Preferences, Route, Sampled
from sail_jax.errors import UserError
from sail_jax.language import task, workload
from sail_jax.language.config import LanguageRun, check
from sail_jax.language.reward import labels
from sail_jax.language.reward.labels import Rater

# Two rows of each member of the family: dpr, dpp, ddp, offline DPO.
ON_POLICY = np.array([1, 1, 0, 0, 1, 1, 0, 0], bool)
POLICY_LABEL = np.array([0, 1, 1, 0, 0, 1, 1, 0], bool)
B = len(ON_POLICY)


def make_run(**settings):
    return LanguageRun.model_validate(
        {
            'workload': 'language',
            'model': {'path': 'unread'},
            'data': {'path': 'unread'},
            'objective': {'mixture': {'dpr': 0.25, 'dpp': 0.25, 'ddp': 0.25}},
        }
        | settings
    )


@pytest.mark.parametrize('spent', [0, 1, 2, 3])
def test_rows_that_the_policy_does_not_label_cost_labels(spent):
    run = make_run(labeller={'max_labels': 3})
    route = Route(jnp.asarray(ON_POLICY), jnp.asarray(POLICY_LABEL))
    batch = Batch(None, None, None, route, None)
    state = SimpleNamespace(seed=0, step=0, labels=jnp.int32(spent))
    scores = jnp.asarray(np.tile([[1.0, 2.0]], (B, 1)), jnp.float32)
    got = workload.labelled(run, state, Sampled(batch, None, None, None, {}), scores)
    paid = np.cumsum(~POLICY_LABEL) <= 3 - spent
    np.testing.assert_array_equal(
        got.batch.labels.weight_BxKxK[:, 0, 1], np.where(POLICY_LABEL, 1, paid)
    )
    assert got.labels_asked == 3 - spent
    # The labeller prefers the second of the policy's responses, the data have the first chosen.
    np.testing.assert_array_equal(got.batch.labels.prob_BxKxK[:, 0, 1], ~ON_POLICY)


@given(
    asks=st.lists(st.booleans(), min_size=1, max_size=8),
    K=st.sampled_from([2, 3, 4]),
    budget=st.integers(1, 30),
    spent=st.integers(0, 30),
)
def test_nobody_is_asked_about_rows_that_the_budget_does_not_cover(asks, K, budget, spent):
    run = make_run(
        group_size=K, labeller={'max_labels': budget}, objective={'mixture': {'dpr': 1.0}}
    )
    left, wanted = budget - spent, []
    for ask in asks:
        wanted.append(ask and left > 0)
        left -= ask * K * (K - 1) // 2
    state = SimpleNamespace(labels=np.int32(spent))
    got = task.affordable(run, np.asarray(asks), state)
    np.testing.assert_array_equal(got, wanted)


ASKED = np.array([0, 1, 0, 1, 1], bool)
PROMPTS = [f'prompt {i}' for i in range(5)]
GROUPS = [[f'{i}', f'{i}' * 2, f'{i}' * 3] for i in range(5)]


def test_scores_are_of_the_rows_that_were_asked_and_stand_there():
    def reward(prompts, groups):
        assert prompts == [PROMPTS[i] for i in (1, 3, 4)]
        return np.asarray([[10 * int(text) for text in group] for group in groups], float)

    got = labels.scores(Rater(score=reward), PROMPTS, GROUPS, ASKED, 3)
    wanted = [[10 * int(text) if ask else 0 for text in g] for g, ask in zip(GROUPS, ASKED)]  # noqa: B905
    np.testing.assert_array_equal(got, wanted)
    assert got.dtype == np.float32

    def judge(prompts, groups):
        assert groups == [GROUPS[i] for i in (1, 3, 4)]
        prob = np.full((3, 3, 3), 0.5)
        for row, (i, j) in itertools.product(range(3), itertools.combinations(range(3), 2)):
            prob[row, i, j], prob[row, j, i] = 0.1 * row + 0.05, 0.95 - 0.1 * row
        return Preferences(prob, np.ones((3, 3, 3)) - np.eye(3))

    got = labels.scores(Rater(compare=judge), PROMPTS, GROUPS, ASKED, 3)
    np.testing.assert_array_equal(got.weight_BxKxK[:, 0, 1], ASKED)
    np.testing.assert_allclose(got.prob_BxKxK[:, 0, 1], [0, 0.05, 0, 0.15, 0.25], atol=1e-6)


def test_the_labeller_is_not_called_for_nothing():
    none = np.zeros(5, bool)
    fail = lambda *args: pytest.fail('asked')
    assert not labels.scores(Rater(score=fail), PROMPTS, GROUPS, none, 3).any()
    judged = labels.scores(Rater(compare=fail), PROMPTS, GROUPS, none, 3)
    assert not judged.weight_BxKxK.any()


def test_a_response_has_ended_if_its_last_token_says_so():
    tokens = np.array([[[5, 9, 2, 2], [5, 2, 7, 0]], [[3, 0, 0, 0], [1, 1, 1, 1]]])
    lengths = np.array([[3, 3], [1, 4]])
    np.testing.assert_array_equal(
        task.ended(tokens, lengths, (2, 3)), [[True, False], [True, False]]
    )


@pytest.mark.parametrize(
    ('settings', 'handed', 'message'),
    [
        ({'mixture': {'dpr': 0.0}}, {}, 'and objective.mixture.dpr is 0'),
        ({}, {'judge': lambda prompts, pairs: [1.0]}, 'of rewards, and a judge gives none'),
    ],
)
def test_a_penalty_for_a_missing_end_needs_rewards(settings, handed, message):
    run = make_run(reward={'missing_eos_penalty': 1.0}, objective={'mixture': {'dpr': 1.0}})
    run = configfile.update(run, {'objective': settings, 'divergence.states': 'reference'})
    refuse = (lambda run: labels.make(run, None, **handed)) if handed else check
    with pytest.raises(UserError, match=f'^reward.missing_eos_penalty: .*{message}'):
        refuse(run)
