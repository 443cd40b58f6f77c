"""Rounds of questions about the replay: when, about what, and what becomes of the answers."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.control.reward import answers, beginning
from sail_jax.control.reward.ensemble import OF_ANSWERS
from sail_jax.control.reward.weights import FittedReward
from sail_jax.control.sac import replay, session
from sail_jax.control.sac.config import check
from tests.support import sac
from tests.support.checkpoints import same
from tests.support.refused import message
from tests.support.toy import Point

LEARNED = {
    'reward': {
        'source': 'learned',
        'segment_length': 3,
        'newest_env_steps': 24,
        'hidden': (8,),
        'learning_rate': 1e-2,
        'passes': 200,
        'questions': {'candidates': 6, 'per_round': 4, 'budget': 10, 'every_env_steps': 30},
    }
}
RUN = sac.run(**LEARNED)
TEACH = session.make_teaching(Point(), RUN)


@pytest.fixture(scope='module')
def there():
    """A ring of 16 rows after 20; step 17 ended the episodes of both environments."""
    ring = replay.init(16, sac.row(0, width=2, actions=2))
    add = jax.jit(replay.add)
    for t in range(20):
        ring = add(ring, sac.row(t, ended=t == 17, width=2, actions=2))
    return ring


@pytest.fixture(scope='module')
def shown(there):
    return jax.jit(partial(session.shown, RUN))(there, jax.random.key(2))


def test_rounds_come_after_the_random_steps_until_the_budget_is_spent():
    # Two random updates; 30 env steps are two updates; ten answers are three rounds of four.
    assert [t for t in range(20) if TEACH.due(jnp.int32(t))] == [2, 4, 6]


def test_pairs_within_one_episode_come_first(there, shown):
    drawn = 2 * session.SPARE * 6
    draw = jax.jit(replay.segments, static_argnums=(2, 3, 4))
    whole = draw(there, jax.random.key(2), drawn, 3, 12)[1].reshape(-1, 2).all(1)
    assert not whole[:6].all()
    assert (shown.mask.sum((1, 2)) == 6).sum() == min(whole.sum(), 6) > whole[:6].sum()


def test_candidates_are_of_the_newest_steps_and_whole_where_there_are_such(shown):
    assert shown.obs.shape == (6, 2, 3, 2)
    first = np.asarray(shown.obs[:, :, 0, 0])
    assert first.min() >= 800  # The newest twelve rows are steps 8 to 19.
    steps = first[..., None] + 100 * np.arange(3)
    np.testing.assert_array_equal(shown.obs[..., 0], steps)
    # A segment that begins in step 16 or 17 would go on into another episode.
    begins = first // 100
    cut = np.where(begins == 16, 2, np.where(begins == 17, 1, 3))
    np.testing.assert_array_equal(shown.mask.sum(-1), cut)
    np.testing.assert_array_equal(shown.true_reward, steps * np.asarray(shown.mask))
    assert not shown.not_finite.any()


def test_answers_are_the_oracles_and_have_places_up_to_the_budget(shown):
    taught = jax.jit(TEACH.init)(jax.random.key(1))
    ensemble = beginning.make_ensemble(RUN.reward, Point())
    told = jax.jit(partial(session.answered, RUN, ensemble))
    for asked, number in ((4, 4), (8, 4), (10, 2), (10, 0)):
        taught = told(taught, shown, session.round_keys(jax.random.key(asked)), number)
        assert int(taught.asked) == asked
        np.testing.assert_array_equal(taught.answers.weight, np.arange(10) < asked)
    answers = taught.answers
    true = (answers.obs[..., 0] * answers.mask).sum(-1)  # Rewards are the observations.
    wanted = (1 + np.sign(true[:, 0] - true[:, 1])) / 2
    np.testing.assert_array_equal(answers.prob, wanted)


def test_a_session_learns_what_the_teacher_said(there):
    # Numbers of the size that networks take: later steps have larger observations and returns.
    small = jax.tree.map(lambda x: x / 2000 if x.dtype == jnp.float32 else x, there.steps)
    taught, fits = jax.jit(TEACH.init)(jax.random.key(1)), []
    talk = jax.jit(TEACH.session)
    for i in range(3):
        asked = talk(taught, there._replace(steps=small), jax.random.key(i), 2 + 2 * i)
        taught = asked.taught
        fits.append(int(asked.labels))
    assert fits == [4, 4, 2]
    assert set(asked.metrics) == set(session.SESSION_METRICS)
    assert asked.metrics['reward_correlation'] > 0.8
    of_answers = {name: asked.metrics[name] for name in OF_ANSWERS}
    same(of_answers, jax.jit(partial(beginning.known_before, RUN.reward))(taught))
    assert of_answers['answer_loss'] > 0
    reward = TEACH.predict(taught, small.obs, small.action)
    assert reward.shape == small.reward.shape
    assert np.corrcoef(reward.ravel(), small.true_reward.ravel())[0, 1] > 0.8


def test_a_run_begins_with_a_reward_of_a_file(tmp_path):
    path, of_run = tmp_path / 'reward.safetensors', jax.jit(TEACH.init)(jax.random.key(9))
    FittedReward(of_run.fitted.params, RUN.reward, RUN.env.subject, path).write(path)
    run = sac.run(**LEARNED, **{'reward.path': path, 'reward.questions.budget': 0})
    check(run)
    teaching = session.make_teaching(Point(), run)
    begun = jax.jit(teaching.init)(jax.random.key(1))
    same(begun.fitted.params, of_run.fitted.params)
    assert begun.answers.weight.shape == (0,)
    assert not any(teaching.due(jnp.int32(t)) for t in range(8))
    other = sac.run(**LEARNED, **{'reward.path': path, 'reward.hidden': (9,)})
    assert 'reward.members and reward.hidden need' in message(session.make, Point(), other)
    gone = sac.run(**LEARNED, **{'reward.path': tmp_path / 'none'})
    assert message(session.make, Point(), gone).startswith(f'{tmp_path / "none"}: No such')


def test_a_run_begins_with_answers_of_a_file(tmp_path):
    path = tmp_path / 'answers.jsonl'
    answers.write(path, sac.answers(12))
    settings = {'reward.answers': path, 'reward.questions.budget': 3}
    teaching = session.make_teaching(Point(), sac.run(**LEARNED, **settings))
    begun = jax.jit(teaching.init)(jax.random.key(1))
    assert begun.answers.obs.shape == (15, 2, 4, 2)
    np.testing.assert_array_equal(begun.answers.weight, [1] * 12 + [0] * 3)
    # Before the first update, then as always.
    assert [t for t in range(9) if teaching.due(jnp.int32(t))] == [0, 2]
    alone = sac.run(**LEARNED, **{**settings, 'reward.questions.budget': 0})
    check(alone)
    alone = session.make_teaching(Point(), alone)
    assert [t for t in range(9) if alone.due(jnp.int32(t))] == [0]
    path.write_text(path.read_text().replace('"action": [[[0.0,', '"action": [[['))
    said = message(session.make, Point(), sac.run(**LEARNED, **settings))
    assert said.startswith(f'{path}:1: action: ')


@pytest.mark.slow
def test_answers_of_a_file_are_learned_before_anything_is_asked(there, tmp_path):
    path = tmp_path / 'answers.jsonl'
    answers.write(path, sac.answers(12))
    run = sac.run(**LEARNED, **{'reward.answers': path, 'reward.questions.budget': 3})
    teaching = session.make_teaching(Point(), run)
    empty = replay.init(16, sac.row(0, width=2, actions=2))
    talk, start = jax.jit(teaching.session), jax.jit(teaching.init)(jax.random.key(1))
    first = talk(start, empty, jax.random.key(0), 0)
    assert (int(first.labels), int(first.taught.asked)) == (0, 0)
    assert first.metrics['fit_passes'] > 0
    assert first.metrics['answer_loss'] > 0  # Of the tenth.
    assert np.isnan([first.metrics[f'reward_{name}'] for name in ('spread', 'correlation')]).all()
    near, far = teaching.predict(first.taught, jnp.asarray([[0.0, 0], [0.6, 0]]), jnp.zeros((2, 2)))
    assert near < far
    second = talk(first.taught, there, jax.random.key(1), 2)
    assert (int(second.labels), int(second.taught.asked)) == (3, 3)
    same(second.taught.margin_N[:12], first.taught.margin_N[:12])
    assert second.taught.answers.weight.all()
    assert np.isfinite(list(second.metrics.values())).all()


UNUSED = {
    'reward.path': 'r.safetensors',
    'reward.answers': 'a.jsonl',
    'reward.members': 9,
    'reward.questions.budget': 500,
    'reward.segment_length': 3,
    'reward.newest_env_steps': 24,
}
"""By the true reward, which is a run's by default."""
CONTRADICTIONS = [
    ({'labeller.rationality': 1.0}, 'labeller: not used by reward.source: true'),
    *(
        ({key: value}, rf'{key.replace(".budget", "")}: not used by reward.source: true; did you')
        for key, value in UNUSED.items()
    ),
    ({**LEARNED, 'labeller.max_labels': 9}, 'labeller.max_labels: ends a run; .*questions.budget'),
    ({**LEARNED, 'reward.segment_length': 16}, 'reward.segment_length: 16 is longer than the ep'),
    ({**LEARNED, 'rollout.random_env_steps': 2, 'rollout.steps': 2}, '.*before the first round'),
    ({**LEARNED, 'reward.questions.per_round': 7}, 'reward.questions.per_round: 7 is more than'),
    ({**LEARNED, 'reward.questions.budget': 0}, 'reward.questions.budget: 0, without reward.path'),
]


@pytest.mark.parametrize(('settings', 'said'), CONTRADICTIONS)
def test_settings_of_rewards_that_do_not_go_together(settings, said):
    assert re.match(said, message(check, sac.run(**settings)))
