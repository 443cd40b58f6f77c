"""Runs whose reward is learned: what the teacher is asked, and what the learner is told."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.control import task as control_task
from sail_jax.control.config import ControlRun, check
from sail_jax.control.reward import ensemble as reward_ensemble
from sail_jax.core import update
from sail_jax.sweep import Members
from sail_jax.training import setup
from tests.support.checkpoints import same
from tests.support.refused import message
from tests.support.toy import SETTINGS, Point, make_run, train

B, K, T, DRIFT = 4, 3, 5, 0.04
ROUND = {'candidates': 6, 'per_round': 3, 'budget': 7, 'every_env_steps': 2 * B * K * T}
LEARNED = {
    'labeller': {'source': 'reward'},
    'reward': {'hidden': [8], 'members': 2, 'passes': 3, 'questions': ROUND},
    'value': {'terminal': 'learned', 'discount': 0.9, 'hidden': [8]},
    'reference': {'refresh_env_steps': 2 * B * K * T},
}


class Paid(Point):
    """A point whose true reward is multiplied by what its state says."""

    def reset(self, rng):
        state = super().reset(rng)
        return state.replace(info=state.info | {'pay': jnp.ones(())})

    def step(self, state, action):
        return super().step(state, action).replace(reward=self.paid(state, action))

    def paid(self, state, action):
        return super().step(state, action).reward * state.info['pay']


@pytest.fixture(scope='module')
def made():
    """The run, its update, its first state, and what the first update gives."""
    run = ControlRun.model_validate(SETTINGS | LEARNED)
    task = control_task.make(run, Paid(drift=DRIFT))
    learn = update.make_learn(task.workload, run)

    @jax.jit
    def step(state):
        drawn = update.draw(task.workload, state)
        return *learn(state, drawn), drawn.batch

    state = setup.initial_state(Members.of(run), task, task.start(0))
    return run, step, state, step(state)


def pay(state, factor):
    """The same state, where the true reward is so many times as large from now on."""
    contexts = state.sampler.contexts
    info = contexts.env_state.info | {'pay': jnp.full(B, factor)}
    contexts = contexts._replace(env_state=contexts.env_state.replace(info=info))
    return state._replace(sampler=state.sampler._replace(contexts=contexts))


def learned(state):
    """All that an update learns, and all that the next one goes by but the simulator."""
    return state._replace(sampler=state.sampler.reward)


def test_no_true_reward_reaches_the_learner_but_by_the_answers(made):
    _, step, _, (after, *_) = made
    honest, garbage = step(pay(after, 1.0)), step(pay(after, -1e4))
    assert honest[1]['segment_return'] > 0 > garbage[1]['segment_return']
    assert int(honest[0].labels) == int(after.labels)  # No round is due.
    same(learned(honest[0]), learned(garbage[0]))
    # In the next update one is: the teacher is paid for the opposite, and says so.
    honest, garbage = step(pay(honest[0], 1.0)), step(pay(garbage[0], -1e4))
    new = slice(3, 6)
    ours, theirs = (state.sampler.reward.answers for state, *_ in (honest, garbage))
    np.testing.assert_array_equal(ours.obs[new], theirs.obs[new])
    np.testing.assert_array_equal(ours.prob[new], 1 - theirs.prob[new])
    with pytest.raises(AssertionError):
        same(honest[0].policy, garbage[0].policy)


def test_rounds_come_when_they_are_due_and_end_with_the_budget(made):
    _, step, state, _ = made
    asked, passes, rows = [], [], []
    for _ in range(8):
        state, metrics, _ = step(state)
        asked.append(int(state.labels))
        passes.append(int(metrics['fit_passes']))
        rows.append(state.sampler.reward)
    assert asked == [3, 3, 6, 6, 7, 7, 7, 7]
    assert [bool(n) for n in passes] == [True, False, True, False, True, False, False, False]
    assert rows[-1].update_N.tolist() == [1, 1, 1, 3, 3, 3, 5]
    same(rows[1].fitted, rows[0].fitted)
    same(rows[-1].fitted, rows[4].fitted)
    told = lambda row, count: jax.tree.map(lambda x: x[:count], row.answers)
    for earlier, later in itertools.pairwise(rows):
        same(told(earlier, int(earlier.asked)), told(later, int(earlier.asked)))


def test_the_teacher_goes_by_the_true_return_of_two_segments_from_one_state(made):
    *_, (after, *_) = made
    answers = jax.tree.map(lambda x: np.asarray(x[:3]), after.sampler.reward.answers)
    np.testing.assert_array_equal(answers.obs[:, 0, 0], answers.obs[:, 1, 0])
    assert np.abs(answers.obs[:, 0, 1] - answers.obs[:, 1, 1]).min() > 0
    position = answers.obs + 0.1 * answers.action + DRIFT
    returns = ((1 - np.linalg.norm(position, axis=-1)) * answers.mask).sum(-1)
    np.testing.assert_array_equal(answers.prob, returns[:, 0] > returns[:, 1])
    np.testing.assert_array_equal(answers.weight, 1)
    assert 0 < answers.prob.sum() < 3  # The better one is not always the first.


def test_labels_and_value_are_of_the_learned_reward(made):
    run, _, _, (after, _, batch) = made
    obs, raw_action, target, mask = batch.inputs
    ours = reward_ensemble.make(run.reward, (2,), 2)
    each = ours.predict(after.sampler.reward.fitted.params, obs, jnp.tanh(raw_action))
    reward, happened = np.asarray(each.mean(0)), np.asarray(mask) > 0
    # One step of the recursion says how a target follows from the next and from the reward.
    both = happened[..., 1:]
    expected = reward[..., :-1] + run.value.discount * np.asarray(target)[..., 1:]
    np.testing.assert_allclose(np.asarray(target)[..., :-1][both], expected[both], atol=1e-5)
    first = np.asarray(target)[:, :K, 0]
    difference = first[:, :, None] - first[:, None]
    np.testing.assert_allclose(batch.labels.prob_BxKxK, 1 / (1 + np.exp(-difference)), atol=1e-5)
    weight_BxKxK = np.broadcast_to(1 - np.eye(K), (B, K, K))
    np.testing.assert_array_equal(batch.labels.weight_BxKxK, weight_BxKxK)


def test_new_answers_are_predicted_before_they_are_learned(made):
    run, _, state, (after, metrics, _) = made
    ours = reward_ensemble.make(run.reward, (2,), 2)
    before, told = state.sampler.reward, after.sampler.reward
    margin_MxN = reward_ensemble.margins(ours, before.fitted.params, told.answers)
    np.testing.assert_allclose(told.margin_N[:3], margin_MxN.mean(0)[:3], atol=1e-5)
    right = (np.sign(told.margin_N[:3]) > 0) == (told.answers.prob[:3] > 0.5)
    assert metrics['answer_accuracy'] == pytest.approx(right.mean())
    sure = 1 / (1 + np.exp(-np.abs(np.asarray(told.margin_N[:3]))))
    assert metrics['answer_confidence'] == pytest.approx(sure.mean(), abs=1e-5)
    loss = -np.log(np.where(right, sure, 1 - sure)).mean()
    assert metrics['answer_loss'] == pytest.approx(loss, abs=1e-5)
    bins = [sum((right - sure)[(sure * 20).astype(int) == i]) for i in range(10, 20)]
    error = np.abs(bins).sum() / 3
    assert metrics['answer_calibration_error'] == pytest.approx(error, abs=1e-5)
    assert metrics['reward_spread'] > 0
    assert -1 <= metrics['reward_correlation'] <= 1


@pytest.mark.parametrize(
    ('settings', 'said'),
    [
        ({'labeller': {}}, 'reward.hidden: not used by labeller.source: teacher; did you m'),
        (
            {'reference': {'source': 'ppo'}},
            'reference.source: ppo: trains the start policy and the reference on the true reward, '
            'of which labeller.source: reward tells only answers; start from init, or by run',
        ),
        ({'labeller': {'source': 'reward', 'max_labels': 9}}, 'labeller.max_labels: of comparis'),
        (
            {'reward': {'questions': {**ROUND, 'candidates': 13}}},
            'reward.questions.candidates: 13, and an update has 12 pairs',
        ),
        (
            {'reward': {'questions': {**ROUND, 'per_round': 7}}},
            'reward.questions.per_round: 7 is more than reward.questions.candidates: 6',
        ),
    ],
)
def test_settings_of_a_learned_reward_that_do_not_go_together(settings, said):
    run = ControlRun.model_validate(SETTINGS | LEARNED | settings)
    assert message(check, run).startswith(said)


def test_a_myopic_teacher_answers_for_a_reward_with_a_value():
    settings = {'labeller': {'source': 'reward', 'discount': 0.9}}
    check(ControlRun.model_validate(SETTINGS | LEARNED | settings))


@pytest.mark.slow
def test_seeds_side_by_side_are_as_alone(tmp_path):
    run = make_run(**LEARNED, total_env_steps=6 * B * K * T)
    both = train(tmp_path / 'both', run.model_copy(update={'seeds': (3, 5)}))
    for result, seed in zip(both, (3, 5), strict=True):
        alone = train(tmp_path / str(seed), run.model_copy(update={'seed': seed}))
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4)
        jax.tree.map(close, result.policy.params, alone.policy.params)
        assert result.labels == alone.labels == 7
