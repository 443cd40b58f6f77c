"""Disks and directories that take no more, while a run saves."""

import subprocess

import pytest

from sail_jax import runs
from sail_jax.errors import TrainingFailed
from sail_jax.training import checkpoint, finishing, loop, metrics, references, trainer
from sail_jax.training.recorder import Recorder
from tests.support.checkpoints import same
from tests.support.disk import on_a_full_disk
from tests.support.saving import KEPT, REFRESHED, make_run, steps, train, updates
from tests.support.toy import Point


def immutable(directory):
    """Root may write whatever the mode says, but not here."""
    if subprocess.run(['chattr', '+i', directory], capture_output=True).returncode:
        pytest.skip('chattr +i is not to be had here')
    return lambda: subprocess.run(['chattr', '-i', directory], check=True)


def gone(directory):
    """A file stands where the directory was, as where a disk was unmounted."""
    directory.rename(directory.with_name('elsewhere'))
    directory.write_text('')

    def back():
        directory.unlink()
        directory.with_name('elsewhere').rename(directory)

    return back


CLOSED = [immutable, pytest.param(gone, marks=pytest.mark.slow)]


@pytest.mark.parametrize('close', CLOSED)
def test_a_directory_that_takes_no_more_costs_checkpoints_not_the_run(
    refreshed, tmp_path, monkeypatch, close
):
    path, run = tmp_path / 'run', make_run(KEPT, **REFRESHED)
    directory, undo = path / 'checkpoints', []
    train(path, updates(run, 3))
    before = list(directory.rglob('*'))
    compiled = loop.compiled

    def close_first(*args):
        undo.append(close(directory))
        return compiled(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, 'compiled', close_first)
        try:
            # All updates are made, but not all of what they came to is kept.
            with pytest.raises(TrainingFailed, match=r'checkpoints: (the last state|no checkp)'):
                train(path, run, resume=True)
        finally:
            undo[0]()
    rows = metrics.read_rows(path / 'metrics.jsonl')
    assert [row['step'] for row in rows] == list(range(7))
    assert rows[-1]['time/saves_failed'] >= 1
    # What was there still is, its reference too, and is enough to go on.
    assert set(before) <= set(directory.rglob('*'))
    same(train(path, run, resume=True).policy, refreshed[0].policy)


def test_a_save_that_fails_costs_only_its_own_checkpoint(tmp_path, monkeypatch):
    directory, save = tmp_path / 'run' / 'checkpoints', checkpoint.save
    undo, saved = [], []

    def close_for_the_second(manager, step, *args):
        saved.append(step)
        if undo:
            undo.pop()()
        if len(saved) == 2:
            undo.append(gone(directory))
        save(manager, step, *args)

    monkeypatch.setattr(checkpoint, 'save', close_for_the_second)
    kept = {'every_updates': 1, 'keep': 9, 'keep_best': 0}
    train(tmp_path / 'run', make_run(kept, updates_per_dispatch=1))
    assert saved == [0, 1, 2, 3, 4]
    assert steps(tmp_path / 'run') == [0, 2, 3, 4]
    rows = metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')
    assert rows[-1]['time/saves_failed'] == 1


@pytest.mark.parametrize('close', CLOSED)
def test_a_run_that_saved_nothing_ends_with_an_error(tmp_path, monkeypatch, close):
    undo, position = [], Recorder.position

    def close_first(self, *args):
        if not undo:
            undo.append(close(tmp_path / 'run' / 'checkpoints'))
        return position(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, 'position', close_first)
        try:
            with pytest.raises(TrainingFailed, match='no checkpoint could be written') as caught:
                train(tmp_path / 'run', make_run())
        finally:
            undo[0]()
    assert caught.value.status == 1
    rows = metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')
    assert [row['step'] for row in rows] == [0, 1, 2, 3, 4]


def test_a_disk_that_does_not_take_the_start_policy_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / 'run'
    with monkeypatch.context() as patch:
        patch.setattr(references, 'save_start', on_a_full_disk(references.save_start, 100))
        with pytest.raises(TrainingFailed, match=r'start: cannot be .*resume=True') as caught:
            train(path, make_run())
    assert '\n' not in str(caught.value)
    train(path, make_run(), resume=True)
    assert [row['step'] for row in metrics.read_rows(path / 'metrics.jsonl')] == [0, 1, 2, 3, 4]


def test_a_disk_that_is_full_when_a_run_goes_on_is_one_line(tmp_path, monkeypatch):
    path, run = tmp_path / 'run', make_run()
    train(path, updates(run, 2))
    before = (path / 'metrics.jsonl').read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(trainer, 'Recorder', on_a_full_disk(Recorder, 10))
        with pytest.raises(TrainingFailed, match=r'metrics.jsonl: cannot be written .*too large'):
            train(path, run, resume=True)
    assert (path / 'metrics.jsonl').read_bytes() == before
    train(path, run, resume=True)
    assert [row['step'] for row in metrics.read_rows(path / 'metrics.jsonl')] == [0, 1, 2, 3, 4]


def test_members_of_a_sweep_that_a_full_disk_does_not_take_are_left_by_a_resume(
    tmp_path, monkeypatch
):
    path = tmp_path / 'run'
    with monkeypatch.context() as patch:
        patch.setattr(finishing, '_leave_run', on_a_full_disk(finishing._leave_run, 100))
        with pytest.raises(TrainingFailed, match=r'run/seed-0: cannot be written .*resume=True'):
            train(path, make_run(seeds=2))
    results = train(path, make_run(seeds=2), resume=True)
    for name, result in zip(('seed-0', 'seed-1'), results, strict=True):
        same(runs.open_run(path / name, env=Point())[1], result.policy)
