"""Runs that people label: what is asked, when the answers are learned, and going on with a run."""

import jax
import numpy as np
import pytest

import sail_jax
from sail_jax.control import task
from sail_jax.control.config import ControlRun, check
from sail_jax.control.reward import asking, people
from sail_jax.control.reward.ensemble import Comparisons
from sail_jax.errors import Interrupted, UserError
from sail_jax.labels import payloads
from sail_jax.labels.store import NAME, Answer, Store
from sail_jax.sweep import Members
from sail_jax.training import checkpoint, setup
from tests.support.answering import (
    Person,
    StoppedWhenWaiting,
    answer,
    choice,
    killed_and_set_back,
    require_exported,
)
from tests.support.checkpoints import same
from tests.support.refused import message
from tests.support.toy import Point

B, K, T = 4, 3, 5
ROUND = {'candidates': 6, 'per_round': 3, 'budget': 7, 'every_env_steps': B * K * T}
SETTINGS = {
    'env': {'name': 'inverted_pendulum', 'episode_length': 50},
    'policy': {'hidden': [8]},
    'rollout': {'contexts': B, 'group_size': K, 'segment_length': T},
    'total_env_steps': 8 * B * K * T,
    'updates_per_dispatch': 1,
    'labeller': {'source': 'people', 'instruction': 'Which one stands?', 'repeat_every': 0},
    'reward': {'hidden': [8], 'members': 2, 'passes': 3, 'questions': ROUND},
    'evaluation': {'episodes': 2, 'every_updates': 1000},
    'checkpoints': {'every_updates': 1000},
    'logging': {'tensorboard': False},
}
TRAINS = 'import sail_jax, sys; sail_jax.train(sys.argv[1], sys.argv[2], quiet=True)'


def run(**labeller):
    return ControlRun.model_validate(SETTINGS | {'labeller': SETTINGS['labeller'] | labeller})


def reward_of(run_dir):
    """The newest checkpoint's reward and what is asked."""
    settings = sail_jax.load(run_dir / 'config.yaml')
    layout = setup.Layout.of(Members.of(settings), task.make(settings))
    rest = checkpoint.restore_rest(run_dir / 'checkpoints', layout.state)
    return jax.device_get((rest['sampler'].reward, rest['sampler'].asked))


@pytest.mark.parametrize(
    ('labeller', 'said'),
    [
        ({'mistake': 0.1}, 'labeller.mistake: not used by labeller.source: people'),
        ({'max_labels': 9}, 'labeller.max_labels: not used by labeller.source: people'),
        ({'source': 'reward'}, 'labeller.instruction: not used by labeller.source: reward'),
    ],
)
def test_settings_of_people_and_of_teachers_do_not_mix(labeller, said):
    assert message(check, run(**labeller)) == said


def test_people_are_asked_for_one_run_of_an_environment_that_can_be_drawn(tmp_path):
    seeds = run().model_copy(update={'seeds': 2})
    assert 'without seeds and sweep' in message(check, seeds)
    with pytest.raises(UserError, match='only environments of Brax and MuJoCo Playground can be'):
        sail_jax.train(run(), tmp_path / 'a', env=Point(), quiet=True)
    with pytest.raises(UserError, match='segment_reward: not used by'):
        sail_jax.train(run(), tmp_path / 'b', segment_reward=lambda s: s.reward, quiet=True)


def test_answers_that_a_store_gives_once_more_are_not_counted_again():
    said = [
        Answer(n, choice, 'Ann', 0.0) for n, choice in enumerate(('left', 'right', 'skip', 'equal'))
    ]
    nothing = np.zeros(6, np.float32)
    there = Comparisons(nothing, nothing, nothing, prob=nothing, weight=nothing)
    assert people.unknown(said, 2, there) == said
    told = asking.with_told(there, asking.in_places(said[:3], prior=2, places=6))
    assert people.unknown(said, 2, told) == said[3:]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run that is answered as it goes."""
    run_dir = tmp_path_factory.mktemp('people') / 'whole'
    with Person(run_dir):
        result = sail_jax.train(run(), run_dir, quiet=True)
    return run_dir, result


@pytest.mark.slow
def test_a_run_asks_waits_and_learns(whole):
    run_dir, result = whole
    reward, asked = reward_of(run_dir)
    store = Store(run_dir / NAME)
    assert result.labels == int(reward.asked) == store.progress().answered == 7
    assert int(asked.waiting) == 0
    assert reward.update_N.tolist() == [1, 1, 1, 2, 2, 2, 3]
    prob = {'left': 1, 'right': 0, 'equal': 0.5, 'skip': 0.5}
    np.testing.assert_array_equal(reward.answers.prob, [prob[choice(n)] for n in range(7)])
    np.testing.assert_array_equal(reward.answers.weight, [choice(n) != 'skip' for n in range(7)])
    for number in range(7):
        pair = payloads.unpack_segments(store.payload(number))
        np.testing.assert_array_equal(pair.obs, reward.answers.obs[number])
        np.testing.assert_array_equal(pair.pose[0, 0], pair.pose[1, 0])  # From one state.
        assert np.abs(pair.pose[0, -1] - pair.pose[1, -1]).max() > 0
        # The pendulum's observation is the cart's position first, which the pose has too.
        np.testing.assert_allclose(pair.pose[:, :-1, 0, 0], pair.obs[..., 0], atol=1e-4)
    about = store.about()
    assert about['instruction'] == 'Which one stands?'
    assert about['task'] == 'inverted_pendulum (spring)'
    assert about['world']['links'] == pair.pose.shape[2]


@pytest.mark.slow
def test_the_same_answers_give_the_same_run_however_it_is_stopped(whole, tmp_path, monkeypatch):
    run_dir = tmp_path / 'stopped'
    # Ctrl-C while it waits, labelled overnight, gone on with; thrice.
    for begun in range(4):
        resumed = {'resume': True} if begun else {}
        if begun == 3:
            with Person(run_dir):
                result = sail_jax.train(run(), run_dir, quiet=True, **resumed)
            break
        with StoppedWhenWaiting(run_dir), pytest.raises(Interrupted):
            sail_jax.train(run(), run_dir, quiet=True, **resumed)
        store = Store(run_dir / NAME)
        assert store.progress().waiting == (3, 3, 1)[begun]
        answer(store)
        if begun:  # As a copy of the file is from before training learned of any answer.
            with store._writing() as db:
                db.execute('update answers set taken = null')
        # No checkpoint knows of the newest answers yet.
        asked_at = [B * K * T * update for update in (1, 1, 1, 2, 2, 2, 3)]
        require_exported(run_dir, tmp_path / 'answers.jsonl', asked_at[: (3, 6, 7)[begun]])
    same(result.policy, whole[1].policy)
    same(reward_of(run_dir), reward_of(whole[0]))
    require_exported(run_dir, tmp_path / 'answers.jsonl', asked_at)


@pytest.mark.slow
def test_a_run_that_does_not_wait_goes_on_and_takes_what_comes(tmp_path):
    result = sail_jax.train(run(wait=False), tmp_path, quiet=True)
    store = Store(tmp_path / NAME)
    assert (result.labels, store.progress().waiting) == (3, 3)
    reward, asked = reward_of(tmp_path)
    assert (int(asked.waiting), int(reward.passes)) == (3, 0)
    # Nobody has answered: nothing was learned.
    same(result.policy.params['policy'], result.start.params['policy'])


@pytest.mark.slow
def test_a_run_that_is_killed_and_goes_on_from_before_learns_the_same(whole, tmp_path):
    run_dir = tmp_path / 'killed'
    # Not by the command, which trains on all cores: later rounds are the same on as many devices.
    # Two rounds have been learned of since the first checkpoint, and one is not asked yet.
    killed_and_set_back(TRAINS, whole[0] / 'config.yaml', run_dir, questions=7)
    with Person(run_dir):
        result = sail_jax.train(run(), run_dir, quiet=True, resume=True)
    same(result.policy, whole[1].policy)
    same(reward_of(run_dir), reward_of(whole[0]))


@pytest.mark.slow
def test_a_store_of_another_run_is_refused(whole, tmp_path):
    settings = run().model_copy(update={'seed': 1})
    with StoppedWhenWaiting(tmp_path), pytest.raises(Interrupted):
        sail_jax.train(settings, tmp_path, quiet=True)
    (tmp_path / NAME).write_bytes((whole[0] / NAME).read_bytes())
    with pytest.raises(UserError, match='question 0 is another one than this run asks'):
        sail_jax.train(settings, tmp_path, quiet=True, resume=True)
