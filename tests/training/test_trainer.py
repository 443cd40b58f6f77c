"""The host loop: resuming, stopping, failing, and what it leaves behind."""

import errno
import json
import os
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import pytest

from sail_jax import runs
from sail_jax.core import update
from sail_jax.errors import Interrupted, TrainingFailed, UserError
from sail_jax.sweep import Members
from sail_jax.training import checkpoint, loop, metrics, references, setup, trainer
from sail_jax.training.recorder import Recorder
from tests.support.checkpoints import damage, files, flip_bits, same, without_times
from tests.support.toy import Point, Poisoned, make_run, train


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp('whole') / 'run'
    return train(path), path


def test_resume_continues_bit_for_bit(whole, tmp_path):
    steps = make_run().env_steps_per_update
    train(tmp_path / 'run', make_run(total_env_steps=2 * steps))
    result = train(tmp_path / 'run', resume=True)
    same(result.policy, whole[0].policy)
    assert result.after == whole[0].after
    assert result.labels == whole[0].labels == 4 * 4 * 3
    ours = without_times(tmp_path / 'run')
    assert [row['step'] for row in ours] == [0, 1, 2, 3, 4]
    assert ours == without_times(whole[1])


def test_resume_of_a_finished_run_changes_nothing(whole, tmp_path):
    result = train(whole[1], resume=True)
    same(result.policy, whole[0].policy)
    assert result.after == whole[0].after


def test_rows_have_the_documented_keys(whole):
    rows = metrics.read_rows(whole[1] / 'metrics.jsonl')
    for row in rows:
        assert {'step', 'env_steps', 'labels', 'wall_s'} <= set(row)
        assert row['env_steps'] == row['step'] * make_run().env_steps_per_update
    assert {'eval/return', 'eval/kl_policy_to_start', 'eval/win_rate'} <= set(rows[0])
    assert {'train/objective', 'train/kl', 'time/env_steps_per_s'} <= set(rows[1])
    assert 'time/compile_s' in rows[1]
    assert 'eval/return' in rows[-1]


def test_evaluate_repeats_the_runs_own_numbers(whole):
    before, after = runs.evaluate(whole[1], env=Point())
    ours = {f'eval/{name}': value for name, value in after.items()}
    assert ours == pytest.approx(whole[0].after, rel=1e-5, abs=1e-5)
    assert before['win_rate'] == 0.5
    assert before['kl_policy_to_start'] == 0


def test_existing_directory_is_left_alone(whole):
    before = sorted(path.stat().st_mtime_ns for path in whole[1].rglob('*'))
    with pytest.raises(UserError, match='exists already; use resume=True, or another run_dir'):
        train(whole[1])
    assert before == sorted(path.stat().st_mtime_ns for path in whole[1].rglob('*'))


def test_resume_with_another_configuration_names_the_field(whole):
    with pytest.raises(UserError, match=r'objective\.beta \(0\.1 -> 0\.5\)'):
        train(whole[1], make_run(objective={'beta': 0.5}), resume=True)


def test_resume_of_nothing(tmp_path):
    with pytest.raises(UserError, match='no run to resume'):
        train(tmp_path / 'none', resume=True)


def test_unwritable_directory(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'Not a directory|File exists'):
        train(tmp_path / 'file' / 'run')


def test_damaged_checkpoint_is_named_and_the_one_before_is_used(whole, tmp_path, caplog):
    path = tmp_path / 'run'
    train(path)
    damage(path / 'checkpoints' / '4')
    result = train(path, resume=True)
    assert 'checkpoints/4 cannot be read' in caplog.text
    same(result.policy, whole[0].policy)
    assert len(list((path / 'checkpoints').glob('damaged-4-*'))) == 1
    same(runs.open_run(path, env=Point())[1], whole[0].policy)

    for one in (path / 'checkpoints').iterdir():
        if one.name.isdigit():
            damage(one)
    settings = (path / 'config.yaml').read_bytes()
    with pytest.raises(UserError, match='none of the checkpoints can be read'):
        train(path, make_run(total_env_steps=600), resume=True)
    assert (path / 'config.yaml').read_bytes() == settings


def empty(directory):
    for path in files(directory):
        path.write_bytes(b'')


def lose_metadata(directory):
    for path in files(directory):
        if path.name.startswith('_') or path.parent.name == 'meta':
            path.unlink()


def flip_meta(key):
    """One bit of a number in the JSON beside the arrays."""

    def flip(directory):
        path = directory / 'meta' / 'metadata'
        data = bytearray(path.read_bytes())
        value = data.index(b'"%s": ' % key.encode()) + len(key) + 4
        assert chr(data[value]).isdigit()
        data[value] ^= 1
        path.write_bytes(data)

    flip.__name__ = f'flip_{key}'
    return flip


@pytest.mark.parametrize(
    'harm', [empty, lose_metadata, flip_bits, flip_meta('schema'), flip_meta('wall_s')]
)
def test_whatever_happened_to_the_newest_checkpoint(whole, tmp_path, caplog, harm):
    path = tmp_path / 'run'
    train(path)
    newest = path / 'checkpoints' / '4'
    harm(newest)
    left = [file.relative_to(newest) for file in files(newest)]
    result = train(path, resume=True)
    same(result.policy, whole[0].policy)
    assert 'checkpoints/4 cannot be read' in caplog.text
    (aside,) = newest.parent.glob('damaged-4-*')
    assert [file.relative_to(aside) for file in files(aside)] == left
    assert newest.exists()


def test_missing_start(tmp_path, whole):
    path = tmp_path / 'run'
    shutil.copytree(whole[1], path)
    shutil.rmtree(path / 'checkpoints' / 'start')
    with pytest.raises(UserError, match=r'checkpoints/start: cannot be read'):
        train(path, resume=True)


def test_label_budget_ends_the_run(tmp_path):
    run = make_run(labeller={'max_labels': 20}, total_env_steps=10**5)
    result = train(tmp_path / 'run', run)
    assert result.labels == 20
    # 12 labels an update, two updates a dispatch, known one dispatch later.
    assert result.length == 4 * run.env_steps_per_update
    rows = metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')
    assert [row['labels'] for row in rows] == [0, 12, 20, 20, 20]
    # Nothing of the policy moves any more: not its parameters, not its normaliser.
    short = run.model_copy(update={'total_env_steps': 2 * run.env_steps_per_update})
    same(train(tmp_path / 'short', short).policy, result.policy)
    again = train(tmp_path / 'run', run, resume=True)
    assert again.length == result.length
    same(again.policy, result.policy)

    def stop(row):
        if row['step'] == 2:  # The dispatch that spends it is not the last.
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(tmp_path / 'stopped', run, on_update=stop)
    train(tmp_path / 'stopped', run, resume=True)
    assert without_times(tmp_path / 'stopped') == without_times(tmp_path / 'run')


def test_too_many_skipped_steps_stop_the_run(tmp_path):
    poison = lambda segment: segment.reward / 0
    with pytest.raises(TrainingFailed, match='gradient steps in a row were not finite') as caught:
        train(
            tmp_path / 'run',
            make_run(optimizer={'max_skipped': 3}, labeller={'rationality': 1.0, 'soft': True}),
            segment_reward=poison,
        )
    assert 'train/grad_norm' in str(caught.value)
    assert caught.value.status == 1
    rows = metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')
    assert rows[-1]['train/skipped'] >= 3
    kept = runs.open_run(tmp_path / 'run', env=Point())[1]
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves((kept.params, kept.statistics)))


@pytest.mark.parametrize(
    'what', ['obs', *(pytest.param(what, marks=pytest.mark.slow) for what in ('reward', 'reset'))]
)
def test_what_a_simulator_breaks_is_counted_and_nothing_else_suffers(tmp_path, what):
    env = Poisoned(what, jnp.inf, drift=0.05)
    task = runs.make_task(make_run(), env=env)
    result = trainer.train(make_run(), task, tmp_path / 'run', quiet=True)
    rows = metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')
    assert sum(row['train/not_finite'] for row in rows[1:]) > 0
    assert rows[-1]['train/skipped'] == 0
    leaves = jax.tree.leaves((result.policy.params, result.policy.statistics))
    assert all(bool(jnp.isfinite(x).all()) for x in leaves)


def test_a_half_written_line_is_dropped_on_resume(tmp_path):
    steps = make_run().env_steps_per_update
    path = tmp_path / 'run'
    train(path, make_run(total_env_steps=2 * steps))
    with (path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 3, "env_steps": 180}\n{"step": 4, "env')
    train(path, resume=True)
    lines = (path / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in lines] == [0, 1, 2, 3, 4]


class Killed(BaseException):
    """What nothing catches, as nothing catches SIGKILL."""


def kill(*_):
    raise Killed


@pytest.mark.parametrize(
    ('number', 'status', 'name'),
    [(signal.SIGINT, 130, '_dispatch'), (signal.SIGTERM, 75, '_rows')],
    ids=['ctrl-c as a dispatch begins', 'sigterm while it is waited for'],
)
def test_a_signal_saves_and_says_how_to_go_on(whole, tmp_path, monkeypatch, number, status, name):
    path, signalled = tmp_path / 'run', []
    original = getattr(loop.Loop, name)

    def signal_first(*args):
        if not signalled:  # A second one would end the process.
            signalled.append(time.monotonic())
            os.kill(os.getpid(), number)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, name, signal_first)
        with pytest.raises(Interrupted, match=r'resume=True') as caught:
            train(path)
    assert caught.value.status == status
    assert f"sail_jax.train('{path}/config.yaml', '{path}', resume=True)" in str(caught.value)
    # Nothing is between the end of the dispatch and the save: the evaluation of update 2 waits.
    assert [row['step'] for row in metrics.read_rows(path / 'metrics.jsonl')] == [0, 1]
    assert (path / 'checkpoints' / '2').exists()
    assert time.monotonic() - signalled[0] < 10
    with monkeypatch.context() as patch:  # Killed again, with the row of update 2 written.
        patch.setattr(checkpoint, 'save', kill)
        with pytest.raises(Killed):
            train(path, resume=True)
    assert [row['step'] for row in metrics.read_rows(path / 'metrics.jsonl')] == [0, 1, 2, 3, 4]
    result = train(path, resume=True)
    same(result.policy, whole[0].policy)
    assert without_times(path) == without_times(whole[1])


@pytest.mark.parametrize(
    ('where', 'name'),
    [(Recorder, 'position'), (loop, 'compiled')],
    ids=['evaluation', 'compilation'],
)
def test_a_signal_before_the_first_update(whole, tmp_path, monkeypatch, where, name):
    path = tmp_path / 'run'
    original = getattr(where, name)

    def signal_first(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, signal_first)
        with pytest.raises(Interrupted):
            train(path)
    same(train(path, resume=True).policy, whole[0].policy)


def test_an_evaluation_that_waited_is_among_the_best(tmp_path, monkeypatch):
    run = make_run(checkpoints={'every_updates': 2, 'keep': 1, 'keep_best': 3})
    train(tmp_path / 'whole', run)
    compile_program = loop.compiled

    def signal_first(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return compile_program(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, 'compiled', signal_first)
        with pytest.raises(Interrupted):
            train(tmp_path / 'cut', run)
    train(tmp_path / 'cut', run, resume=True)
    scores = []
    for name in ('whole', 'cut'):
        with checkpoint.open_manager(tmp_path / name / 'checkpoints') as manager:
            scores.append(checkpoint.scores(manager))
    assert scores[0].keys() == {0, 2, 4}
    assert scores[1] == scores[0]


@pytest.mark.parametrize(
    ('module', 'moment'),
    [
        (setup, 'start_policy'),
        (references, 'save_start'),
        (setup, 'initial_state'),
        (checkpoint, 'save'),
    ],
)
def test_a_run_killed_before_its_first_checkpoint_begins_again(
    whole, tmp_path, monkeypatch, module, moment
):
    path = tmp_path / 'run'
    with monkeypatch.context() as patch:
        patch.setattr(module, moment, kill)
        with pytest.raises(Killed):
            train(path)
    same(train(path, resume=True).policy, whole[0].policy)
    steps = [row['step'] for row in metrics.read_rows(path / 'metrics.jsonl')]
    assert steps == [0, 1, 2, 3, 4]


@pytest.mark.parametrize('seeds', [None, pytest.param([0, 1], marks=pytest.mark.slow)])
def test_a_run_none_of_whose_checkpoints_was_written_begins_again(tmp_path, monkeypatch, seeds):
    """Killed while its first one is written, or on a full disk; its rows are kept."""
    path = tmp_path / 'run'

    def fail(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    run = make_run(seeds=seeds)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, 'save', fail)
        with pytest.raises(TrainingFailed, match='no checkpoint could be written'):
            train(path, run)
    directory = path / Members.of(run).each[0].name if seeds else path
    before = without_times(directory)
    assert [row['step'] for row in before] == [0, 1, 2, 3, 4]
    with metrics.console.capture() as said:
        train(path, run, resume=True)
    assert said.get().count('no checkpoint had been written; the run begins again') == 1
    assert without_times(directory) == before
    (kept,) = directory.glob('before-*-metrics.jsonl')
    assert len(metrics.read_rows(kept)) == len(before)


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(whole, tmp_path):
    path = shutil.copytree(whole[1], tmp_path / 'run')
    shutil.rmtree(path / 'checkpoints')
    before = (path / 'metrics.jsonl').read_bytes()
    for _ in range(2):
        with pytest.raises(UserError, match=r'no checkpoint, though metrics.jsonl has updates'):
            train(path, resume=True)
    assert (path / 'metrics.jsonl').read_bytes() == before


def test_the_step_neither_recompiles_nor_transfers(whole):
    run = make_run()
    task, members = runs.make_task(run, env=Point()), Members.of(run)
    state = setup.initial_state(members, task, task.start(run.seed))
    shardings = setup.Layout.of(members, task).shardings
    dispatch = update.make_dispatch(task.workload, run, 2, shardings)
    state, _ = dispatch(state)
    with jax.transfer_guard('disallow'):
        for _ in range(2):
            state, _ = dispatch(state)
    assert dispatch._cache_size() == 1
    assert int(state.step) == 6


def test_the_state_survives_a_checkpoint_exactly(whole, tmp_path):
    run = make_run()
    task = runs.make_task(run, env=Point())
    state = setup.initial_state(Members.of(run), task, task.start(run.seed))
    state = state._replace(labels=jnp.asarray(7, jnp.int32))
    references.save_start(tmp_path / 'checkpoints', state.reference)
    with checkpoint.open_manager(tmp_path / 'checkpoints', run.checkpoints) as manager:
        checkpoint.save(manager, 0, state, {'note': 1})
        manager.wait_until_finished()
        abstract = checkpoint.abstract_like(state, jax.tree.map(lambda x: x.sharding, state))
        restored, meta = checkpoint.restore(manager, abstract)
    same(state, restored)
    assert jax.tree.structure(state) == jax.tree.structure(restored)
    assert (meta['note'], meta['schema']) == (1, checkpoint.SCHEMA)
