"""Soft actor-critic through the trainer: resuming, seeds, what a run leaves, and that it learns."""

import jax
import numpy as np
import pytest

import sail_jax
from sail_jax import runs
from sail_jax.errors import UserError
from sail_jax.sweep import Members
from sail_jax.training import metrics, setup
from tests.support import sac
from tests.support.checkpoints import same, without_times
from tests.support.toy import Point

pytestmark = pytest.mark.slow

RUN = sac.run(unsupervised={'env_steps': 40, 'neighbours': 3, 'reset_gradient_steps': 4})
"""Two updates of random steps, two of exploration, four more; the ring goes round."""


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


class Tripled(Point):
    """The same with three times the reward, which orders segments as the reward does."""

    def step(self, state, action):
        state = super().step(state, action)
        return state.replace(reward=3 * state.reward)


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
