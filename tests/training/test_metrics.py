"""Writers of metrics."""

import json
import math
import os
import re
import shutil
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sail_jax
from sail_jax import configfile
from sail_jax.control.config import ControlRun
from sail_jax.training import metrics
from tests.support.disk import disk_of
from tests.support.toy import SETTINGS, Point


def test_numbers_that_json_has_not_become_null(tmp_path):
    writer = metrics.JsonLines(tmp_path / 'metrics.jsonl', None)
    writer.write({'step': 1, 'a': math.nan, 'b': math.inf, 'c': 0.5})
    writer.close()
    assert metrics.read_rows(tmp_path / 'metrics.jsonl') == [
        {'step': 1, 'a': None, 'b': None, 'c': 0.5}
    ]


def test_rows_of_older_runs_have_the_names_of_today(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    row = {'step': 1, 'eval/kl_policy_to_ref': 2, 'eval/response_kl_ref_to_policy': 3}
    path.write_text(f'{json.dumps(row)}\n')
    assert metrics.read_rows(path) == [
        {'step': 1, 'eval/kl_policy_to_start': 2, 'eval/response_kl_start_to_policy': 3}
    ]


def test_a_full_disk_delays_rows_and_loses_none(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    writer = metrics.JsonLines(path, None)
    rows = [{'step': step, 'a': 0.5} for step in range(5)]
    with disk_of(50):
        with metrics.console.capture() as said:
            for row in rows[:4]:
                writer.write(row)
        assert said.get().count('until there is room') == 1
        # What fits, and a part of the next, which nobody reads.
        assert path.stat().st_size == 50
        assert metrics.read_rows(path) == rows[:2]
    writer.write(rows[4])
    writer.close()
    assert metrics.read_rows(path) == rows


@pytest.mark.parametrize('how', ['deleted', 'replaced', 'kept', 'with its directory'])
def test_rows_are_not_written_where_nobody_finds_them(tmp_path, how):
    """As editors do that save, some of which keep the old one under another name; a directory's
    successor is another run's."""
    path = tmp_path / 'run' / 'metrics.jsonl'
    path.parent.mkdir()
    writer = metrics.JsonLines(path, None)
    rows = [{'step': step} for step in range(4)]
    writer.write(rows[0])
    if how in ('replaced', 'kept'):
        shutil.copy(path, tmp_path / 'edited')
        if how == 'kept':
            path.rename(path.with_name('metrics.jsonl~'))
        (tmp_path / 'edited').replace(path)
    elif how == 'deleted':
        path.unlink()
    else:
        shutil.rmtree(path.parent)
        path.parent.mkdir()
    with metrics.console.capture() as said:
        for row in rows[1:]:
            writer.write(row)
    writer.close()
    if how == 'with its directory':
        assert not path.exists()
        return
    assert metrics.read_rows(path) == rows[how == 'deleted' :]
    assert said.get().count('metrics.jsonl: was deleted or replaced') == 1


def event_row(step):
    return {'step': step, 'prompts': 8 * step, 'train/kl': step / 4, 'train/margin': -step / 2}


def scalars(directory, tag='train/kl'):
    """What TensorBoard shows: steps and values."""
    events = EventAccumulator(str(directory), size_guidance={'scalars': 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_events_are_there_as_soon_as_written_and_a_resume_hides_later_ones(tmp_path):
    directory = tmp_path / 'run' / 'tensorboard'
    writer = metrics.TensorBoard(directory, 'prompts', None)
    for step in range(1, 4):
        writer.write(event_row(step))
    # Of a run that is killed.
    assert scalars(directory) == [(8, 0.25), (16, 0.5), (24, 0.75)]
    assert scalars(directory, 'train/margin') == [(8, -0.5), (16, -1), (24, -1.5)]
    resumed = metrics.TensorBoard(directory, 'prompts', 16)
    resumed.write(event_row(3) | {'train/kl': math.nan})
    resumed.write(event_row(4))
    resumed.close()
    shown = scalars(directory)
    assert [step for step, _ in shown] == [8, 16, 24, 32]
    assert math.isnan(shown[2][1])


def test_a_clock_that_is_set_back_keeps_the_events_in_order(tmp_path, monkeypatch):
    for now_s, begun_at, steps in (
        (2e9, None, (1, 2, 3)),
        (1.9e9, 16, (3, 4)),
        (1.8e9, 24, (4, 5)),
    ):
        monkeypatch.setattr(metrics.time, 'time_ns', lambda now_s=now_s: int(now_s * 1e9))
        writer = metrics.TensorBoard(tmp_path, 'prompts', begun_at)
        for step in steps:
            writer.write(event_row(step) | {'train/kl': step + steps[0]})
        writer.close()
    assert scalars(tmp_path) == [(8, 2), (16, 3), (24, 6), (32, 8), (40, 9)]


def test_a_full_disk_ends_the_events_and_not_the_run(tmp_path):
    writer = metrics.TensorBoard(tmp_path, 'prompts', None)
    for step in (1, 2):
        writer.write(event_row(step))
    (path,) = tmp_path.iterdir()
    with metrics.console.capture() as said:
        # Not all of the next row, and of the rows after that more than any queue holds.
        with disk_of(path.stat().st_size + 20):
            for step in range(3, 100):
                writer.write(event_row(step))
        # Behind a part of a record nobody would read it.
        writer.write(event_row(100))
        writer.close()
    said = ' '.join(said.get().split())
    assert said.count('File too large; no more events are written there') == 1
    assert said.startswith(str(tmp_path))
    assert scalars(tmp_path) == [(8, 0.25), (16, 0.5)]


def test_a_directory_that_takes_no_events_is_said_once(tmp_path):
    (tmp_path / 'tensorboard').write_text('')
    with metrics.console.capture() as said:
        writer = metrics.TensorBoard(tmp_path / 'tensorboard', 'prompts', 8)
        writer.write(event_row(2))
        writer.close()
    assert said.get().count('no more events') == 1
    assert (tmp_path / 'tensorboard').read_text() == ''


def with_wandb(program, path, **environment):
    """What a program of its own says, for W&B keeps the first settings that it sees."""
    pytest.importorskip('wandb')
    kept = {key: value for key, value in os.environ.items() if not key.startswith('WANDB')}
    return subprocess.run(
        [sys.executable, '-c', program, path],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env=kept | {'HOME': str(path), 'WANDB_SILENT': 'true'} | environment,
    )


def test_without_a_login_weights_and_biases_is_one_line(tmp_path):
    program = """
import pathlib, sys
from sail_jax.training import metrics
from sail_jax.errors import UserError
try:
    metrics.WandB('sail', pathlib.Path(sys.argv[1]), {})
except UserError as error:
    print(error)
"""
    said = with_wandb(program, tmp_path).stdout
    assert re.fullmatch(r'logging\.wandb: No API key .*; once that is right.*--resume.*\n', said)


def test_a_run_goes_on_without_the_process_of_weights_and_biases(tmp_path):
    """Which the system may kill for its memory."""
    program = """
import pathlib, sys, time
import psutil
from sail_jax.training import metrics
writer = metrics.WandB('sail', pathlib.Path(sys.argv[1]), {})
writer.write({'step': 1, 'train/kl': 0.5})
for child in psutil.Process().children(recursive=True):
    child.kill()
    child.wait()
for step in range(2, 100):
    writer.write({'step': step, 'train/kl': 0.5})
    time.sleep(0.01)
writer.close()
"""
    done = with_wandb(program, tmp_path, WANDB_MODE='offline')
    assert done.returncode == 0, done.stderr
    assert ' '.join(done.stderr.split()).count('nothing more is sent there') == 1
    assert 'Traceback' not in done.stderr


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    run = ControlRun.model_validate({'logging': {'wandb': 'sail', 'tensorboard': False}})
    writers = metrics.open_writers(run, tmp_path, None, 'env_steps', None)
    for writer in writers:
        writer.write({'step': 1, 'env_steps': 10, 'train/kl': 0.5})
        writer.close()
    assert list(tmp_path.glob('wandb/offline-run-*/*.wandb'))


def test_weights_and_biases_tells_members_apart_and_has_media(tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb')
    begun, begin = [], wandb.init

    def note(**settings):
        begun.append(settings)
        return begin(**settings)

    monkeypatch.setattr(wandb, 'init', note)
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    logging = {'wandb': 'sail', 'wandb_entity': 'lab', 'wandb_tags': ['a', 'b']}
    run = ControlRun.model_validate({'logging': {**logging, 'tensorboard': False}})
    path = tmp_path / 'sweep' / 'seed-3'
    (path / 'samples').mkdir(parents=True)
    (path / 'samples' / '000001.md').write_text('| <b>a</b> |')
    for directory in (path, path.parent):
        configfile.write(run, directory / 'config.yaml')
    writers = metrics.open_writers(run, path, None, 'env_steps', None)
    for writer in writers:
        for step in (1, 2):
            row = {'step': step, 'env_steps': 10 * step, 'labels': step, 'wall_s': 1.0}
            writer.write(row | {'eval/return': 0.5})
        writer.close()
    (settings,) = begun
    assert settings['name'] == 'sweep/seed-3'
    assert settings['group'] == 'sweep'
    assert (settings['entity'], settings['tags']) == ('lab', ['a', 'b'])
    (samples,) = path.glob('wandb/offline-run-*/files/media/html/*.html')
    assert '| &lt;b&gt;a&lt;/b&gt; |' in samples.read_text()
    assert list(path.glob('wandb/offline-run-*/files/media/images/plot_*.png'))


def test_weights_and_biases_goes_on_with_a_run_and_not_with_another_of_its_name(tmp_path):
    path = tmp_path / 'runs' / 'mine'
    of_first = metrics._wandb_id(path)
    assert metrics._wandb_id(path) == metrics._wandb_id(tmp_path / 'runs/../runs/mine') == of_first
    path.rename(tmp_path / 'moved')
    assert metrics._wandb_id(tmp_path / 'moved') == of_first != metrics._wandb_id(path)


def test_tensorboard_keeps_what_came_before_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path, env = tmp_path / 'run', Point()
    run = ControlRun.model_validate(SETTINGS | {'logging': {'tensorboard': True}})
    steps = run.env_steps_per_update
    half = run.model_copy(update={'total_env_steps': 2 * steps})
    sail_jax.train(half, path, env=env, quiet=True)
    sail_jax.train(run, path, env=env, quiet=True, resume=True)
    events = EventAccumulator(str(path / 'tensorboard'))
    events.Reload()
    assert [event.step for event in events.Scalars('train/kl')] == [steps * i for i in (1, 2, 3, 4)]
