"""Runs that people label: what is asked about the replay, what becomes of answers, going on."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.control.reward import answers
from sail_jax.control.reward.asking import People, in_places
from sail_jax.control.sac import people, replay, session, task, update
from sail_jax.control.sac.config import check
from sail_jax.control.sac.replay import PosedTransition
from sail_jax.control.sac.update import Experience
from sail_jax.core.types import Policy, State
from sail_jax.errors import UserError
from sail_jax.labels import payloads
from sail_jax.labels.store import NAME, Answer, Store
from tests.support import sac
from tests.support.answering import answer, choice
from tests.support.checkpoints import same
from tests.support.refused import message
from tests.support.toy import Point

T = sac.REWARD['segment_length']
RUN, TEACHER = sac.by_people(), sac.run(reward=sac.REWARD)


def posed(t, ended=False):
    """`sac.row` with a link at the number of each observation; far below where an episode ended."""
    row = sac.row(t, ended=ended, width=2, actions=2)
    before, after = row.obs[:, :1], row.next_obs[:, :1] if not ended else -row.next_obs[:, :1]
    pose = jnp.stack([before, after], 1)[:, :, None]
    return PosedTransition(*row, pose=jnp.tile(pose, (1, 1, 1, 7)))


def ring(ended):
    """A ring of 50 rows after 55, of which some ended the episodes of both environments."""
    there, add = replay.init(50, posed(0)), jax.jit(replay.add)
    for t in range(55):
        there = add(there, posed(t, ended=ended(t)))
    # Numbers of the size that networks take.
    small = jax.tree.map(lambda x: x / 5000 if x.dtype == jnp.float32 else x, there.steps)
    return there._replace(steps=small)


@pytest.fixture(scope='module')
def there():
    return ring(lambda t: t == 47)


PROGRAMS = people.between_dispatches(Point(), RUN, task.make_mesh(RUN))


def begun(there, step, reward=None):
    """A state after so many updates, as far as people are concerned."""
    nothing = Policy((), ())
    asked = people.make(Point(), RUN).init(jax.random.key(1)) if reward is None else reward
    rest = dict.fromkeys(set(Experience._fields) - {'replay', 'reward'}, ())
    return State(
        policy=nothing,
        reference=nothing,
        reference_step=jnp.int32(0),
        shared=(),
        optimizer=(),
        sampler=Experience(**rest, replay=there, reward=asked),
        seed=jnp.uint32(7),
        hyper=(),
        step=jnp.int32(step),
        labels=jnp.int32(0),
        skipped=jnp.int32(0),
        skipped_in_a_row=jnp.int32(0),
    )


class Desk:
    """A store, and the run that asks by it."""

    def __init__(self, path, settings=None, programs=PROGRAMS):
        self.store = Store.of_run(path / NAME, {'repeat_every': 0})
        run = settings or RUN
        asker = people.AskingReplay(run, programs)
        self.people = People(self.store, asker, run.reward.questions.budget)

    def exchanged(self, state):
        """After what the loop does between two dispatches, but for waiting."""
        self.people.publish(state)
        return self.people.take(state)


@pytest.mark.parametrize(('every', 'shortest'), [(3, 2), (100, 3)])
def test_candidates_have_the_frames_of_their_steps(every, shortest):
    """Up to an episode's end, and not that of the next one."""
    there = ring(lambda t: t % every == 0)
    pairs = jax.jit(partial(session.shown, RUN))(there, jax.random.key(0))
    assert pairs.pose.shape == (6, 2, T + 1, 1, 7)
    frames, steps = np.asarray(pairs.pose[..., 0, 0]), np.asarray(pairs.mask.sum(-1)).astype(int)
    assert steps.min() == shortest
    happened = np.asarray(pairs.mask) > 0
    np.testing.assert_array_equal(frames[..., :T][happened], pairs.obs[happened][:, 0])
    last = np.take_along_axis(np.asarray(pairs.obs[..., 0]), steps[..., None] - 1, -1)
    after = np.take_along_axis(frames, steps[..., None], -1)
    np.testing.assert_allclose(after, (-1 if every == 3 else 1) * (last + 100 / 5000), rtol=1e-6)


def test_people_who_say_what_the_teacher_says_teach_the_same(there):
    teaching = session.make_teaching(Point(), TEACHER)
    plain = there._replace(steps=replay.Transition(*there.steps[:8]))
    taught, talk = teaching.init(jax.random.key(1)), jax.jit(teaching.session)
    reward = people.make(Point(), RUN).init(jax.random.key(1))
    for number, step in ((4, 2), (8, 4), (10, 6)):
        key = jax.random.key(step)
        asked = talk(taught, plain, key, step)
        taught = asked.taught
        proposal = PROGRAMS.propose(reward, there, key)
        reward, labels = PROGRAMS.place(reward, proposal, jnp.int32(step), jnp.int32(0))
        assert int(labels) == int(asked.labels)
        new_N = np.arange(10) < number
        told = in_places([], 0, 10)._replace(new_N=new_N)
        told = told._replace(prob_N=taught.answers.prob, weight_N=taught.answers.weight)
        reward, rewards = PROGRAMS.learn(reward, there, told, key)
        same(reward.taught, taught)
        same(reward.numbers, {name: asked.metrics[name] for name in people.KEPT})
        relabelled = teaching.predict(taught, plain.steps.obs, plain.steps.action)
        np.testing.assert_allclose(rewards, relabelled, rtol=1e-5, atol=1e-6)
    assert reward.update_N.tolist() == [2] * 4 + [4] * 4 + [6] * 2
    assert reward.told_N.all()


@pytest.mark.slow
def test_people_go_on_from_answers_of_a_file_as_the_teacher_does(there, tmp_path):
    path = tmp_path / 'answers.jsonl'
    answers.write(path, sac.answers(12))
    reward = sac.REWARD | {'answers': path}
    run, mesh = sac.by_people(reward=reward), task.make_mesh(RUN)
    programs = people.between_dispatches(Point(), run, mesh)
    desk = Desk(tmp_path, run, programs)
    state = begun(replay.init(50, posed(0)), 0, people.make(Point(), run).init(jax.random.key(1)))
    state = desk.exchanged(state)
    teaching = session.make_teaching(Point(), sac.run(reward=reward))
    plain = replay.init(50, sac.row(0, width=2, actions=2))
    key = update.update_keys(state).ask
    asked = jax.jit(teaching.session)(teaching.init(jax.random.key(1)), plain, key, 0)
    same(state.sampler.reward.taught, asked.taught)
    assert desk.store.progress().asked == 0
    same(desk.exchanged(state).sampler.reward, state.sampler.reward)  # Once.
    # A round beside them; none of it is where they are.
    before = state.sampler.reward.taught.answers
    state = begun(there, 2, state.sampler.reward)
    desk.people.publish(state)
    answer(desk.store)
    state = desk.people.take(state)
    taught = state.sampler.reward.taught
    assert int(taught.asked) == desk.store.progress().asked == 4
    assert state.sampler.reward.told_N.tolist() == [True] * 4 + [False] * 6
    same(*(jax.tree.map(lambda x: x[:12], all_N) for all_N in (before, taught.answers)))
    for number in range(4):
        pair = payloads.unpack_segments(desk.store.payload(number))
        np.testing.assert_array_equal(pair.obs, taught.answers.obs[12 + number, :, :T])
    # And who goes on asks the same.
    later = begun(there, 3, state.sampler.reward)
    Desk(tmp_path, run, programs).people.publish(later)


def test_nothing_that_is_asked_or_learned_depends_on_the_true_reward(there):
    other = there._replace(steps=there.steps._replace(true_reward=-3 * there.steps.true_reward))
    reward, key = people.make(Point(), RUN).init(jax.random.key(1)), jax.random.key(2)
    told = in_places([Answer(n, choice(n), 'Ann', 0.0) for n in range(4)], 0, 10)
    learned = []
    for ring in (there, other):
        proposal = PROGRAMS.propose(reward, ring, key)
        asked, _ = PROGRAMS.place(reward, proposal, jnp.int32(2), jnp.int32(0))
        learned.append(PROGRAMS.learn(asked, ring, told, key))
    (ours, rewards), (others, other_rewards) = learned
    same((ours.taught, rewards), (others.taught, other_rewards))
    assert ours.numbers['reward_correlation'] != others.numbers['reward_correlation']


def test_the_pair_that_was_shown_is_the_pair_that_is_kept(there, tmp_path):
    desk, state = Desk(tmp_path), begun(there, 2)
    desk.people.publish(state)
    assert desk.store.progress().asked == 4
    answer(desk.store, 3)
    assert not desk.people.ready(state)
    answer(desk.store)
    assert desk.people.ready(state)
    state = desk.people.take(state)
    taught = state.sampler.reward.taught
    assert (int(taught.asked), int(state.labels)) == (4, 4)
    np.testing.assert_array_equal(taught.answers.prob, [1, 0, 0.5, 0.5] + [0] * 6)
    np.testing.assert_array_equal(taught.answers.weight, [1, 1, 1, 0] + [0] * 6)
    for number in range(4):
        pair = payloads.unpack_segments(desk.store.payload(number))
        for name in ('obs', 'action', 'mask'):
            np.testing.assert_array_equal(
                getattr(pair, name), getattr(taught.answers, name)[number]
            )
        np.testing.assert_array_equal(
            pair.pose[:, :T, 0, 0][pair.mask > 0], pair.obs[pair.mask > 0][:, 0]
        )
    # Once: neither the round nor its answers are taken in again.
    again = desk.exchanged(state)
    same(again.sampler.reward, state.sampler.reward)
    assert (int(again.labels), desk.store.progress().asked) == (4, 4)
    # Between rounds nothing is asked; the last round has what the budget leaves.
    odd = begun(there, 5, state.sampler.reward)
    assert (int(desk.exchanged(odd).labels), desk.store.progress().asked) == (0, 4)
    for step, asked in ((4, 8), (6, 10)):
        state = begun(there, step, state.sampler.reward)
        desk.people.publish(state)
        answer(desk.store)
        state = desk.people.take(state)
        assert desk.store.progress().asked == int(state.sampler.reward.taught.asked) == asked
        assert desk.store.about()['last'] == (asked == 10)
    assert state.sampler.reward.told_N.all()


def test_who_goes_on_asks_the_same_and_finds_the_answers(there, tmp_path):
    first, state = Desk(tmp_path), begun(there, 2)
    first.people.publish(state)
    answer(first.store, 2)
    gone_on = Desk(tmp_path)
    gone_on.people.publish(state)
    assert gone_on.store.progress() == first.store.progress()
    answer(gone_on.store)
    after = gone_on.people.take(state)
    # Killed before that was saved: answers are where they were the first time.
    killed = Desk(tmp_path)
    same(killed.exchanged(state).sampler.reward, after.sampler.reward)
    # And from a later state, whose questions are held against the store.
    later = begun(there, 4, after.sampler.reward)
    Desk(tmp_path).people.publish(later)
    assert gone_on.store.progress().asked == 8


def test_questions_of_another_run_are_refused(there, tmp_path):
    desk, state = Desk(tmp_path), begun(there, 2)
    state = desk.exchanged(state)
    other = there._replace(steps=there.steps._replace(obs=there.steps.obs + 1))
    foreign = message(Desk(tmp_path).people.publish, begun(other, 2))
    assert 'question 0 is another one than this run asks; the file is of another run' in foreign
    taught = state.sampler.reward.taught
    answers = taught.answers._replace(obs=taught.answers.obs + 1)
    reward = state.sampler.reward._replace(taught=taught._replace(answers=answers))
    foreign = message(Desk(tmp_path).people.publish, begun(there, 3, reward))
    assert 'question 0 compares other segments than this run' in foreign
    (tmp_path / 'new').mkdir()
    lost = message(Desk(tmp_path / 'new').people.publish, begun(there, 3, state.sampler.reward))
    assert lost.endswith('there is no question 0')


def test_without_waiting_training_goes_on_after_the_first_round(there, tmp_path):
    who = {'source': 'people', 'wait': False, 'repeat_every': 0}
    desk, state = Desk(tmp_path, sac.by_people(labeller=who)), begun(there, 2)
    desk.people.publish(state)
    assert not desk.people.ready(state)
    answer(desk.store)
    state = begun(there, 4, desk.people.take(state).sampler.reward)
    desk.people.publish(state)
    assert desk.people.ready(state)
    state = desk.people.take(state)  # Asked, and nobody has answered.
    assert int(state.sampler.reward.taught.asked) == 8
    fitted = state.sampler.reward.taught.fitted
    state = desk.exchanged(begun(there, 6, state.sampler.reward))
    assert desk.store.progress().asked == 8  # One round at a time.
    answer(desk.store, 1)
    state = desk.exchanged(begun(there, 8, state.sampler.reward))
    reward = state.sampler.reward
    assert reward.told_N.tolist() == [True] * 5 + [False] * 5
    assert any(
        np.any(x != y)
        for x, y in zip(*map(jax.tree.leaves, (reward.taught.fitted, fitted)), strict=True)
    )


CONTRADICTIONS = [
    ({'labeller.mistake': 0.1}, 'labeller.mistake: not used by labeller.source: people'),
    ({'labeller.max_labels': 9}, 'labeller.max_labels: not used by labeller.source: people'),
    ({'labeller.source': 'teacher'}, 'labeller.instruction: not used by labeller.source: teacher'),
    ({'seeds': 2}, 'labeller.source: people: .* without seeds and sweep'),
    ({'reward.source': 'true'}, 'labeller: not used by reward.source: true'),
    (
        {'unsupervised.env_steps': 20},
        'updates_per_dispatch: 2 does not divide the 3 updates before the first round',
    ),
    (
        {'reward.questions.every_env_steps': 41},
        'updates_per_dispatch: 2 does not divide the 3 updates between rounds',
    ),
]


@pytest.mark.parametrize(('settings', 'said'), CONTRADICTIONS)
def test_settings_that_do_not_go_with_people(settings, said):
    assert re.match(said, message(check, sac.by_people(**settings)))


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(UserError, match='only environments of Brax and MuJoCo Playground can be'):
        task.make(RUN, env=Point())
