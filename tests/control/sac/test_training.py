"""Soft actor-critic through the trainer: resuming, seeds, what a run leaves, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sail_jax
from sail_jax import runs
from sail_jax.control.reward import answers, weights
from sail_jax.control.sac import explore, learn, session
from sail_jax.errors import UserError
from sail_jax.sweep import Members
from sail_jax.training import metrics, setup
from tests.support import sac
from tests.support.checkpoints import same, without_times
from tests.support.refused import message
from tests.support.toy import Point, make_run

pytestmark = pytest.mark.slow

RUN = sac.run(unsupervised={'env_steps': 40, 'neighbours': 3, 'reset_gradient_steps': 4})
"""Two updates of random steps, two of exploration, four more; the ring goes round."""


class Tripled(Point):
    """The same with three times the reward, which orders segments as the reward does."""

    def step(self, state, action):
        state = super().step(state, action)
        return state.replace(reward=3 * state.reward)


def train(path, run=RUN, **options):
    return sail_jax.train(run, path, env=Point(), quiet=True, **options)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp('whole') / 'run'
    return train(path), path


def test_resume_continues_bit_for_bit_with_the_replay(whole, tmp_path):
    train(tmp_path / 'run', sac.run(**RUN.model_dump() | {'total_env_steps': 80}))
    result = train(tmp_path / 'run', resume=True)
    same(result.policy, whole[0].policy)
    assert result.after == whole[0].after
    assert without_times(tmp_path / 'run') == without_times(whole[1])
    same(sac.saved_state(tmp_path / 'run', RUN, Point()), sac.saved_state(whole[1], RUN, Point()))


def test_exploration_is_learned_from_in_its_phase_and_then_the_critics_are_new(
    whole, tmp_path, monkeypatch
):
    """Its reward times a thousand, and new critics beside another temperature, to be seen."""
    reward, new = explore.reward, learn.with_new_critics

    def loud(statistics, distances):
        statistics, own = reward(statistics, distances)
        return statistics, 1000 * own

    monkeypatch.setattr(explore, 'reward', loud)
    marked = lambda *given: new(*given)._replace(log_temperature=jnp.log(5.0))
    monkeypatch.setattr(learn, 'with_new_critics', marked)
    result, path = train(tmp_path / 'run'), tmp_path / 'run'
    assert result.before == whole[0].before
    rows, plain = (metrics.read_rows(at / 'metrics.jsonl') for at in (path, whole[1]))
    column = lambda rows, name: np.asarray([row[f'train/{name}'] for row in rows[3:]])
    loss = column(rows, 'critic_loss')
    assert loss[:2].min() > 1e5
    assert loss[2:].max() < 1e3
    heat, other = column(rows, 'temperature'), column(plain, 'temperature')
    np.testing.assert_allclose(heat[:2], other[:2], rtol=0.01)
    np.testing.assert_allclose(heat[2:], 5, rtol=0.02)


def test_from_answers_to_a_reward_to_a_control_run(tmp_path):
    """Offline, from answers to a reward, from which a control run begins."""
    answered, fitted = tmp_path / 'answers.jsonl', tmp_path / 'reward.safetensors'
    answers.write(answered, sac.answers(12))
    reward = sac.REWARD | {'answers': answered, 'questions': {'budget': 0}}
    offline = sac.run(reward=reward, total_env_steps=120)
    result = train(tmp_path / 'offline', offline)
    assert result.labels == 0
    rows = metrics.read_rows(tmp_path / 'offline' / 'metrics.jsonl')
    assert [row['step'] for row in rows if 'train/fit_accuracy' in row] == [1]
    assert {'train/answer_loss', 'train/reward_spread'} & rows[1].keys() == {'train/answer_loss'}
    tripled = sail_jax.train(offline, tmp_path / 'tripled', env=Tripled(), quiet=True)
    same(tripled.policy, result.policy)
    # What the critics learn from is what the ensemble says, from the first step on.
    state = sac.saved_state(tmp_path / 'offline', offline, Point())
    teaching = session.make_teaching(Point(), offline)
    steps = state.sampler.replay.steps
    said = teaching.predict(state.sampler.reward, steps.obs, steps.action)
    np.testing.assert_allclose(said, steps.reward, atol=1e-5)
    assert 'reward.answers' in message(changed, answered, offline, tmp_path / 'offline')

    sail_jax.export_reward(tmp_path / 'tripled', fitted, env=Point())
    kept = weights.read(fitted).params
    same(kept, jax.device_get(state.sampler.reward.fitted.params))
    sizes = {'hidden': sac.REWARD['hidden'], 'members': sac.REWARD['members']}
    questions = {'questions': {'budget': 0}}
    other = make_run(
        labeller={'source': 'reward'}, reward={**sizes, **questions, 'path': str(fitted)}
    )
    train(tmp_path / 'control', other)
    again = sail_jax.export_reward(tmp_path / 'control', tmp_path / 'c.safetensors', env=Point())
    same(weights.read(again).params, kept)


def changed(answered, run, run_dir):
    """Goes on with a run whose answers are others by now."""
    answered.write_text(answered.read_text().replace('"choice": 1.0', '"choice": 0.0'))
    train(run_dir, run.model_copy(update={'total_env_steps': 200}), resume=True)


def test_what_a_run_leaves(whole):
    rows = metrics.read_rows(whole[1] / 'metrics.jsonl')
    assert [row['env_steps'] for row in rows] == [0, 20, 40, 60, 80, 100, 120, 140, 160]
    assert all(('train/critic_loss' in row) == (row['step'] > 2) for row in rows)
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert {'eval/return', 'eval/deterministic_return', 'eval/kl_start_to_policy'} <= set(rows[4])
    state = sac.saved_state(whole[1], RUN, Point())
    # 80 written rows of a ring of 50; a gradient step after each but those of random steps.
    assert int(state.sampler.replay.written) == 80
    assert int(state.sampler.gradient_steps) == 60 + 4
    # Every three updates.
    assert int(state.reference_step) == 6
    assert int(state.skipped) == 0


def test_the_dispatch_neither_recompiles_nor_transfers():
    members, task = Members.of(RUN), runs.make_task(RUN, env=Point())
    state = setup.initial_state(members, task, task.start(RUN.seed), ())
    dispatch = setup.make_program(members, task, setup.Layout.of(members, task).shardings)
    state, _ = dispatch(state)
    with jax.transfer_guard('disallow'):
        for _ in range(3):
            state, _ = dispatch(state)
    assert dispatch._cache_size() == 1
    assert int(state.step) == 8


def test_a_member_equals_the_run_alone(tmp_path):
    run = sac.run(**RUN.model_dump() | {'seeds': (0, 3), 'sweep': {'coefficient': (0.0, 0.5)}})
    results = train(tmp_path / 'sweep', run)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-3, atol=1e-4)
    for index in (0, 3):
        member = Members.of(run).each[index]
        alone = train(tmp_path / member.name, member.run)
        jax.tree.map(close, results[index].policy.params, alone.policy.params)
        ours, theirs = (
            metrics.read_rows(where / 'metrics.jsonl')
            for where in (tmp_path / 'sweep' / member.name, tmp_path / member.name)
        )
        for ours_row, theirs_row in zip(ours, theirs, strict=True):
            assert ours_row.keys() - {'time/compile_s'} == theirs_row.keys() - {'time/compile_s'}
            close(ours_row['train/kl'], theirs_row['train/kl']) if 'train/kl' in ours_row else None
    again = train(tmp_path / 'sweep', run, resume=True)
    same([r.policy for r in again], [r.policy for r in results])


def test_commands_on_a_run(whole, tmp_path):
    before, after = runs.evaluate(whole[1], env=Point())
    ours = {f'eval/{name}': value for name, value in after.items()}
    assert ours == pytest.approx(whole[0].after, rel=1e-5, abs=1e-5)
    assert before['kl_policy_to_start'] == 0
    act = sail_jax.load_policy(whole[1], env=Point())
    assert act(np.zeros((3, 2))).shape == (3, 2)
    assert sail_jax.plot(whole[1]).png()[:4] == b'\x89PNG'
    with pytest.raises(UserError, match='export is for control'):
        sail_jax.export(whole[1], tmp_path / 'out')
    with pytest.raises(UserError, match='nobody is asked about it'):
        sail_jax.evaluate_reward(whole[1], env=Point())


LEARNING = {
    'updates_per_dispatch': 5,
    'critic': {'tau': 0.02, 'target_every': 1},
    'temperature.learning_rate': 1e-3,
    'optimizer.learning_rate': 1e-3,
}


def test_it_learns_to_come_to_the_origin(tmp_path):
    """30 is the most; the untrained policy drifts out of the disc."""
    run = sac.run(
        **LEARNING
        | {
            'total_env_steps': 6000,
            'env.episode_length': 30,
            'actor.hidden': (32, 32),
            'critic.hidden': (32, 32),
            'rollout': {'envs': 4, 'steps': 50, 'random_env_steps': 400, 'update_to_data': 0.5},
            'replay': {'capacity': 10_000, 'batch': 64},
            'reference.refresh_env_steps': 2000,
            'evaluation': {'every_updates': 30, 'episodes': 32},
        }
    )
    result = sail_jax.train(run, tmp_path / 'run', env=Point(drift=0.03), quiet=True)
    assert result.before['eval/return'] < 12
    assert result.after['eval/return'] > 22
    assert result.after['eval/deterministic_return'] > 22


def test_it_learns_to_balance(tmp_path):
    """A pole stays up for the whole episode, or nearly. On `spring` neither this one nor Brax's own
    was seen to learn that."""
    run = sac.run(
        **LEARNING
        | {
            'total_env_steps': 12_000,
            'env': {
                'name': 'inverted_pendulum',
                'backend': 'generalized',
                'episode_length': 200,
            },
            'actor.hidden': (64, 64),
            'critic': {'hidden': (64, 64), 'tau': 0.005, 'target_every': 1},
            'rollout': {'envs': 4, 'steps': 50, 'random_env_steps': 1000, 'update_to_data': 1.0},
            'replay': {'capacity': 30_000, 'batch': 256},
            'reference.refresh_env_steps': 4000,
            'evaluation': {'every_updates': 60, 'episodes': 16},
        }
    )
    result = sail_jax.train(run, tmp_path / 'run', quiet=True)
    assert result.before['eval/return'] < 35
    assert result.after['eval/return'] > 180


PEBBLE = {
    'source': 'learned',
    'segment_length': 10,
    'hidden': (32, 32),
    'learning_rate': 3e-3,
    'questions': {'candidates': 30, 'per_round': 10, 'budget': 95, 'every_env_steps': 400},
}


def test_it_learns_from_answers_alone(tmp_path):
    """To come to the origin from 80 answers; what the teacher goes by may be of any size."""
    run = sac.run(
        **LEARNING
        | {
            'total_env_steps': 4000,
            'env.episode_length': 30,
            'actor.hidden': (32, 32),
            'critic.hidden': (32, 32),
            'rollout': {'envs': 4, 'steps': 50, 'random_env_steps': 400, 'update_to_data': 0.5},
            'unsupervised.env_steps': 400,
            'reward': PEBBLE,
            'replay': {'capacity': 10_000, 'batch': 64},
            'evaluation': {'every_updates': 10, 'episodes': 32},
        }
    )
    result = sail_jax.train(run, tmp_path / 'run', env=Point(drift=0.03), quiet=True)
    assert result.before['eval/return'] < 12
    assert result.after['eval/return'] > 20
    rows = metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')
    asked = [row['labels'] for row in rows if 'train/fit_accuracy' in row]
    assert asked == [10, 20, 30, 40, 50, 60, 70, 80]
    other = sail_jax.train(run, tmp_path / 'other', env=Tripled(drift=0.03), quiet=True)
    same(other.policy, result.policy)
    fitted = sail_jax.export_reward(tmp_path / 'run', tmp_path / 'r.safetensors', env=Point())
    own = sail_jax.evaluate_reward(tmp_path / 'run', episodes=8, env=Point(drift=0.03)).numbers
    assert own['episodes'] == 16
    assert own['segment_rank_correlation'] > 0.7
    for reward in (fitted, tmp_path / 'other'):  # Of other runs on this run's behaviour.
        report = sail_jax.evaluate_reward(tmp_path / 'run', reward, 8, env=Point(drift=0.03))
        assert report.numbers == own
    resumed = run.model_copy(update={'total_env_steps': 2000})
    sail_jax.train(resumed, tmp_path / 'half', env=Point(drift=0.03), quiet=True)
    again = sail_jax.train(run, tmp_path / 'half', env=Point(drift=0.03), resume=True, quiet=True)
    same(again.policy, result.policy)
