"""What a run keeps: the newest, the best, and the references that they need."""

import errno
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
import pytest
import yaml

import sail_jax
from sail_jax import configfile, files, runs
from sail_jax.cli import main
from sail_jax.control import envs
from sail_jax.errors import TrainingFailed, UserError
from sail_jax.training import checkpoint, loop, metrics, rundir
from tests.support.checkpoints import damage, same
from tests.support.refused import message
from tests.support.saving import KEPT, KL, REFRESHED, make_run, steps, train, updates
from tests.support.toy import Point


def test_the_best_is_kept_besides_the_newest(falling):
    result, path = falling
    assert steps(path) == [0, 4]
    same(runs.open_run(path, env=Point())[1], result.policy)
    same(runs.open_run(path, best=True, env=Point())[1], result.start)
    _, best = runs.evaluate(path, best=True, env=Point())
    assert best['kl_policy_to_start'] == 0


def test_a_checkpoint_says_where_it_is_from(falling):
    path = falling[1] / 'checkpoints' / '4' / 'meta' / 'metadata'
    meta = json.loads(path.read_text())
    assert meta['config'] == runs.load(falling[1] / 'config.yaml').model_dump(mode='json')
    assert meta['versions']['jax'] == jax.__version__
    assert meta['schema'] == checkpoint.SCHEMA


def test_resume_goes_on_from_the_newest(falling, tmp_path):
    result, _ = falling
    run = make_run({'metric': f'-{KL}'})
    half = run.model_copy(update={'total_env_steps': 2 * run.env_steps_per_update})
    train(tmp_path / 'run', half)
    same(train(tmp_path / 'run', run, resume=True).policy, result.policy)
    assert steps(tmp_path / 'run') == [0, 4]


def test_a_better_evaluation_is_saved_at_once(tmp_path):
    settings = {'updates_per_dispatch': 1, 'evaluation': {'episodes': 4, 'every_updates': 1}}
    run = make_run({'metric': KL, 'every_updates': 100, 'keep_best': 2}, **settings)
    train(tmp_path / 'run', run)
    rows = metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')
    ranked = sorted(range(5), key=lambda step: rows[step][KL])
    assert steps(tmp_path / 'run') == sorted({*ranked[-2:], 4})


def test_without_best_only_the_newest_are_kept(tmp_path):
    train(tmp_path / 'run', make_run({'keep_best': 0}))
    assert steps(tmp_path / 'run') == [4]
    with pytest.raises(UserError, match=r'no checkpoint has a score; .*keep_best above 0'):
        runs.open_run(tmp_path / 'run', best=True, env=Point())


def test_by_default_the_return_decides(tmp_path):
    train(tmp_path / 'run', make_run())
    rows = metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')
    returns = {row['step']: row['eval/return'] for row in rows if 'eval/return' in row}
    with checkpoint.open_manager(tmp_path / 'run' / 'checkpoints') as manager:
        found = checkpoint.scores(manager)
    best = max(returns, key=returns.get)
    assert found == {step: returns[step] for step in {best, 4}}


def test_a_metric_that_no_evaluation_has_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r'checkpoints\.metric: eval/retrun; .*eval/return'):
        train(tmp_path / 'run', make_run({'metric': 'eval/retrun'}))


@pytest.mark.parametrize('text', ['', '{"sco', '[1]', '{"score": "x"}'])
def test_a_damaged_score_is_no_score(falling, tmp_path, text):
    run = make_run({'metric': f'-{KL}'})
    half = run.model_copy(update={'total_env_steps': 2 * run.env_steps_per_update})
    train(tmp_path / 'run', half)
    (tmp_path / 'run' / 'checkpoints' / '0' / 'metrics' / 'metrics').write_text(text)
    same(train(tmp_path / 'run', run, resume=True).policy, falling[0].policy)


def test_a_score_that_was_not_saved_is_none(falling, tmp_path):
    shutil.copytree(falling[1] / 'checkpoints', tmp_path / 'run')
    path = tmp_path / 'run' / '4' / 'metrics' / 'metrics'
    saved = json.loads(path.read_text())
    for edited, left in (
        (saved | {'score': 1.0}, {0}),
        ({'score': 1.0}, {0, 4}),  # Saved when scores had no checksum.
    ):
        path.write_text(json.dumps(edited))
        with checkpoint.open_manager(tmp_path / 'run') as manager:
            assert checkpoint.scores(manager).keys() == left


def test_of_a_damaged_best_checkpoint_the_next_best_is_taken(falling, tmp_path, caplog):
    result = train(tmp_path / 'run', make_run({'metric': f'-{KL}'}))
    damage(tmp_path / 'run' / 'checkpoints' / '0' / 'policy')
    same(runs.open_run(tmp_path / 'run', best=True, env=Point())[1], result.policy)
    assert 'checkpoints/0 cannot be read' in caplog.text


def test_the_command_line_and_another_run_take_the_best(falling, tmp_path, monkeypatch, capsys):
    result, path = falling
    # As if the environment had been found by its name.
    monkeypatch.setattr(envs, 'make', lambda *_: Point())
    named = shutil.copytree(path, tmp_path / 'named')
    config = (named / 'config.yaml').read_text()
    (named / 'config.yaml').write_text(config.replace('backend: python', 'backend: spring'))
    assert main(['evaluate', str(named), '--best']) == 0
    assert 'best checkpoint' in ' '.join(capsys.readouterr().out.split())  # A title may wrap.
    for best, expected in ((False, result.policy), (True, result.start)):
        reference = {'source': 'run', 'path': str(path), 'best': best}
        run = make_run(reference=reference, seed=5, total_env_steps=1)
        same(train(tmp_path / str(best), run).start, expected)
    with pytest.raises(UserError, match=r'reference\.best: not used by'):
        train(tmp_path / 'none', make_run(reference={'best': True}))


def test_a_language_model_has_no_best(tmp_path, capsys):
    (tmp_path / 'config.json').write_text(json.dumps({}))
    assert main(['generate', str(tmp_path), 'hello', '--best']) == 2
    assert '--best' in capsys.readouterr().err


def test_what_only_resuming_needs_is_not_read_by_evaluation(falling, tmp_path):
    shutil.copytree(falling[1], tmp_path / 'run')
    damage(tmp_path / 'run' / 'checkpoints' / '4' / 'training')
    same(runs.open_run(tmp_path / 'run', env=Point())[1], falling[0].policy)


@pytest.mark.parametrize('name', ['saved_steps', 'open_manager'])
def test_what_may_not_be_listed_is_one_line(falling, monkeypatch, name):
    directory = falling[1] / 'checkpoints'

    def closed(*_):
        raise PermissionError(errno.EACCES, 'Permission denied', str(directory))

    monkeypatch.setattr(checkpoint, name, closed)
    reads = checkpoint.restore_policy, checkpoint.restore_rest
    assert {message(read, directory, None) for read in reads} == {f'{directory}: Permission denied'}


@pytest.mark.parametrize('name', ['access', 'walk'])
def test_what_may_not_be_read_is_not_damaged(falling, tmp_path, monkeypatch, name):
    """Of a run that another user went on with, say."""
    path = shutil.copytree(falling[1], tmp_path / 'run')
    closed = path / 'checkpoints' / '4' / 'training' / '_METADATA'
    walk = os.walk

    def refused(top, onerror):
        if Path(top).name == '4':
            onerror(PermissionError(errno.EACCES, 'Permission denied', str(closed)))
        return walk(top)

    access = lambda there, mode: Path(there) != closed
    monkeypatch.setattr(files.os, name, {'access': access, 'walk': refused}[name])
    go_on = lambda: train(path, sail_jax.load(path / 'config.yaml'), resume=True)
    assert message(go_on) == f'{closed}: Permission denied'
    assert steps(path) == [0, 4]


def test_what_is_damaged_where_nothing_is_renamed_is_one_line(falling, tmp_path, monkeypatch):
    path = shutil.copytree(falling[1], tmp_path / 'run')
    damage(path / 'checkpoints' / '4' / 'training')

    def closed(*_):
        raise PermissionError(errno.EACCES, 'Permission denied')

    monkeypatch.setattr(Path, 'rename', closed)
    with pytest.raises(TrainingFailed, match=r'checkpoints: cannot be written \(Permission denied'):
        train(path, sail_jax.load(path / 'config.yaml'), resume=True)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """The rename that ends the save of update 2 waits for update 3."""
    rename, updated, waited = os.rename, threading.Event(), []
    compiled = loop.compiled

    def late(source, target, **kwargs):
        if Path(target) == tmp_path / 'run' / 'checkpoints' / '2':
            waited.append(updated.wait(60))
        rename(source, target, **kwargs)

    def compile_and_tell(*args):
        program = compiled(*args)

        def run_once(state):
            state, numbers = jax.block_until_ready(program(state))
            if state.step == 3:
                updated.set()
            return state, numbers

        return run_once

    monkeypatch.setattr(os, 'rename', late)
    monkeypatch.setattr(loop, 'compiled', compile_and_tell)
    train(tmp_path / 'run', make_run({'keep': 9}, updates_per_dispatch=1))
    assert waited == [True]
    assert steps(tmp_path / 'run') == [0, 2, 4]


def test_an_older_schema_is_one_line_and_its_policy_is_read(falling, tmp_path):
    shutil.copytree(falling[1], tmp_path / 'run')
    path = tmp_path / 'run' / 'checkpoints' / '4' / 'meta' / 'metadata'
    meta = json.loads(path.read_text()) | {'schema': 2}
    del meta['checksum']  # Which schema 4 brought.
    path.write_text(json.dumps(meta))
    for policy in (path.parents[1] / 'policy', path.parents[2] / 'start'):
        save_as_schema_4(policy)
    with pytest.raises(
        UserError, match=r'checkpoints/4: sail-jax \S+ wrote it with schema 2, this'
    ):
        train(tmp_path / 'run', make_run({'metric': f'-{KL}'}), resume=True)
    _, policy, start = runs.open_run(tmp_path / 'run', env=Point())
    same((policy, start), (falling[0].policy, falling[0].start))


def save_as_schema_4(path):
    """`statistics` had another name, and there was a part more, always empty."""

    class Policy(NamedTuple):
        params: Any
        fixed: Any
        frozen: tuple[()] = ()

    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore(path)
        shutil.rmtree(path)
        checkpointer.save(path, Policy(saved['params'], saved['statistics']))


def everything(path):
    return {file: file.is_dir() or file.read_bytes() for file in path.rglob('*')}


@pytest.fixture(scope='module')
def another(tmp_path_factory):
    """As `refreshed`, with another seed."""
    path = tmp_path_factory.mktemp('another') / 'run'
    train(path, make_run(KEPT, **REFRESHED, seed=1))
    return path


@pytest.mark.parametrize('reference', [True, False])
def test_another_runs_checkpoint_is_named_and_nothing_is_touched(
    refreshed, another, tmp_path, caplog, reference
):
    path, run = tmp_path / 'run', make_run(KEPT, **REFRESHED)
    shutil.copytree(refreshed[1], path)
    for name in ['6'] + ['references/6'] * reference:
        shutil.rmtree(path / 'checkpoints' / name)
        shutil.copytree(another / 'checkpoints' / name, path / 'checkpoints' / name)
    before = everything(path)
    with pytest.raises(
        UserError, match=r"/6: another run's checkpoint \(seed 1 instead of 0\); move it out"
    ):
        train(path, run, resume=True)
    assert everything(path) == before
    # What only reads it uses it, and says whose it is.
    same(runs.open_run(path, env=Point())[1], runs.open_run(another, env=Point())[1])
    assert "checkpoints/6 is not of its directory's run: seed 1 instead of 0" in caplog.text
    shutil.move(path / 'checkpoints' / '6', tmp_path / 'aside')
    if not reference:
        same(train(path, run, resume=True).policy, refreshed[0].policy)


def test_a_run_is_not_shortened(refreshed, tmp_path):
    path, run = tmp_path / 'run', make_run(KEPT, **REFRESHED)
    shutil.copytree(refreshed[1], path)
    before = everything(path)
    with pytest.raises(UserError, match='total_env_steps below the 360 that are done; it prolongs'):
        train(path, updates(run, 5), resume=True)
    assert everything(path) == before
    # 301 env steps are 6 updates, too.
    shorter = run.model_copy(update={'total_env_steps': 301})
    train(path, shorter, resume=True)


@pytest.mark.parametrize(
    ('name', 'reads'),
    [
        ('config.part', False),
        ('metrics.part', False),
        ('metrics.jsonl', False),
        ('checkpoints/4/meta/metadata', True),
        ('checkpoints/4/policy/manifest.ocdbt', True),
        ('checkpoints/start/_METADATA', True),
    ],
)
def test_a_pipe_in_a_run_directory_is_not_waited_for(falling, tmp_path, name, reads):
    shutil.copytree(falling[1], tmp_path / 'run')
    path = tmp_path / 'run' / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(UserError, match=f'{path}: not a regular file'):
        train(tmp_path / 'run', make_run({'metric': f'-{KL}'}), resume=True)
    if reads:
        with pytest.raises(UserError, match=f'{path}: (not a reg|cannot be read .*not a reg)'):
            runs.open_run(tmp_path / 'run', env=Point())


def test_what_goes_while_a_run_directory_is_looked_through_is_no_pipe(tmp_path, monkeypatch):
    """As SQLite's files do while somebody answers."""
    listed = [(str(tmp_path), ['gone'], ['labels.sqlite-wal'])]

    def walk(path, onerror):
        onerror(FileNotFoundError(2, 'No such file or directory', f'{path}/gone'))
        return listed

    monkeypatch.setattr(rundir.os, 'walk', walk)
    rundir._refuse_links_out(tmp_path)


def test_what_a_run_deletes_while_it_is_read_is_read_anew(falling, tmp_path, monkeypatch, caplog):
    """Its newest checkpoints of then, and another one now."""
    shutil.copytree(falling[1], tmp_path / 'run')
    directory, read = tmp_path / 'run' / 'checkpoints', checkpoint._read

    def late(*args):
        if not (directory / '6').exists():
            shutil.copytree(directory / '4', directory / '6')
            for step in ('0', '4'):
                shutil.rmtree(directory / step)
        return read(*args)

    monkeypatch.setattr(checkpoint, '_read', late)
    same(runs.open_run(tmp_path / 'run', env=Point())[1], falling[0].policy)
    assert not caplog.text


@pytest.mark.parametrize('name', ['04', '٤', '4000000000', '1' * 22, '²'])
def test_a_name_that_no_run_gives_is_refused_before_anything_is_touched(falling, tmp_path, name):
    path = shutil.copytree(falling[1], tmp_path / 'run')
    (path / 'checkpoints' / '4').rename(path / 'checkpoints' / name)
    before = sorted(path.rglob('*'))
    run = make_run({'metric': f'-{KL}'})
    with pytest.raises(UserError, match=rf'checkpoints/{name}: no name that a run gives'):
        train(path, run, resume=True)
    assert sorted(path.rglob('*')) == before
    for best in (False, True):  # What only reads passes it over.
        same(runs.open_run(path, best, env=Point())[1], falling[0].start)


@pytest.mark.parametrize('name', ['3', '5', '2147483647'])
def test_a_checkpoint_under_another_number_is_refused(falling, tmp_path, name):
    path = shutil.copytree(falling[1], tmp_path / 'run')
    (path / 'checkpoints' / '4').rename(path / 'checkpoints' / name)
    before = sorted(path.rglob('*'))
    said = rf'checkpoints/{name}: holds the state after 4 updates; rename it to 4'
    with pytest.raises(UserError, match=said):
        train(path, make_run({'metric': f'-{KL}'}), resume=True)
    assert {*before} == {*path.rglob('*')}


def test_settings_that_make_other_shapes_are_told_by_name(falling, tmp_path):
    """As of a config.yaml that was cut short."""
    path = shutil.copytree(falling[1], tmp_path / 'run')
    data, _ = configfile.read_yaml(path / 'config.yaml')
    data['policy'] = {}
    (path / 'config.yaml').write_text(yaml.safe_dump(data))
    with pytest.raises(UserError, match=r"another run's checkpoint .*policy\.hidden"):
        train(path, sail_jax.load(path / 'config.yaml'), resume=True)
