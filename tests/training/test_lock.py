"""One process at a time in a run directory."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import sail_jax
from sail_jax import configfile
from sail_jax.bandit import measure
from sail_jax.control.config import ControlRun
from sail_jax.errors import TrainingFailed, UserError
from sail_jax.language.quickstart import study as quickstart
from sail_jax.training import lock, rundir, trainer
from tests.support.toy import SETTINGS, Point, train

HOLD = """
import os, sys, time, types
from pathlib import Path
# Without what takes seconds to import.
sys.modules['sail_jax'] = package = types.ModuleType('sail_jax')
package.__path__ = [sys.argv[2]]
from sail_jax.training import lock, rundir

with lock.held(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(1000)
"""


def refuse(directory, message=r'in use by process \d+ on \S+ since [\d :-]+; wait'):
    with pytest.raises(UserError, match=f'^{directory}: {message}') as caught, lock.held(directory):
        pass
    assert '\n' not in str(caught.value)


def test_who_looks_whether_a_directory_is_free_keeps_nobody_from_it(tmp_path, monkeypatch):
    assert lock.is_free(tmp_path)
    with lock.held(tmp_path):
        assert not lock.is_free(tmp_path)
    (tmp_path / lock.NAME).touch()  # Of a process that was killed.
    assert lock.is_free(tmp_path)
    with (tmp_path / lock.NAME).open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr(lock.time, 'sleep', lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        with lock.held(tmp_path):
            pass
    (tmp_path / lock.NAME).symlink_to('elsewhere')
    assert not lock.is_free(tmp_path)


def test_a_lock_dies_with_its_process_and_not_before(tmp_path):
    """Even where that is stopped, and has a child that lives longer."""
    program = [sys.executable, '-c', HOLD, tmp_path, Path(lock.__file__).parents[1]]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    refuse(tmp_path, f'in use by process {process.pid} on ')
    process.send_signal(signal.SIGSTOP)
    refuse(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / lock.NAME).exists(), 'which means nothing'
    with lock.held(tmp_path):
        refuse(tmp_path, f'in use by process {os.getpid()} on ')
    assert not list(tmp_path.iterdir())
    os.kill(child, signal.SIGKILL)


def test_another_thread_is_refused_as_another_process_is(tmp_path):
    refused = []
    with lock.held(tmp_path):
        thread = threading.Thread(target=lambda: refused.append(refuse(tmp_path)))
        thread.start()
        thread.join()
    assert refused == [None]


def test_a_process_trains_one_run_at_a_time(tmp_path):
    refused = []

    def begin():
        with pytest.raises(UserError, match=r'^this process trains already, in another thread'):
            train(tmp_path / 'run')
        refused.append(not (tmp_path / 'run').exists())

    with trainer.alone():
        begin()  # As a callback might.
        thread = threading.Thread(target=begin)
        thread.start()
        thread.join()
    assert refused == [True, True]
    with trainer.alone():
        pass


def test_of_many_at_once_one_has_it(tmp_path):
    """Also while its file is made and deleted again and again."""
    holders, most, turns = [], [], []

    def take():
        for _ in range(200):
            try:
                with lock.held(tmp_path):
                    holders.append(None)
                    most.append(len(holders))
                    turns.append(None)
                    holders.pop()
            except UserError:
                continue

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert turns


@pytest.mark.parametrize('text', ['', '\x1b]0;title\x07', '1 host', 'x' * 10**6])
def test_what_the_file_says_is_not_believed(tmp_path, text):
    with lock.held(tmp_path):
        (tmp_path / lock.NAME).write_text(text)
        refuse(tmp_path, 'in use by another process; wait')


def test_what_is_no_file_is_not_opened(tmp_path):
    (tmp_path / 'target').write_text('kept')
    (tmp_path / lock.NAME).symlink_to('target')
    with pytest.raises(UserError, match=r'\.lock: '), lock.held(tmp_path):
        pass
    assert (tmp_path / 'target').read_text() == 'kept'
    (tmp_path / lock.NAME).unlink()
    os.mkfifo(tmp_path / lock.NAME)
    with pytest.raises(UserError, match='not a regular file'), lock.held(tmp_path):
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def none(*_):
        raise OSError(lock.errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(lock.fcntl, 'flock', none)
    with lock.held(tmp_path):
        assert 'no locks; see to it' in caplog.text


@contextlib.contextmanager
def in_its_place(directory):
    """What another process does in the place of a directory that was moved away."""
    directory.mkdir()
    with (directory / lock.NAME).open('w') as file:
        file.write('17 elsewhere 2026-11-26 12:00:00\n')
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_a_file_system_whose_files_have_another_number_each_time_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, 'samestat', lambda name, file: False)
    refuse(tmp_path, r'cannot be locked \(its file system does not know an open file')


def test_the_lock_of_a_directory_that_was_moved_is_not_its_successors(tmp_path):
    run_dir = tmp_path / 'run'
    run_dir.mkdir()
    with lock.held(run_dir):
        lock.require_held(run_dir)
        run_dir.rename(tmp_path / 'moved')
        lock.require_held(run_dir)  # Nobody's.
        with in_its_place(run_dir):
            with pytest.raises(TrainingFailed, match=r'run: was moved or .* process 17 on elsewh'):
                lock.require_held(run_dir)
            refuse(tmp_path / 'moved')
        (tmp_path / 'moved').rename(tmp_path / 'further')
    assert (run_dir / lock.NAME).exists()


def test_a_run_writes_nothing_into_its_successors_directory(tmp_path):
    run_dir = tmp_path / 'run'
    with contextlib.ExitStack() as exits:

        def move(_):
            if not (tmp_path / 'moved').exists():
                run_dir.rename(tmp_path / 'moved')
                exits.enter_context(in_its_place(run_dir))

        with pytest.raises(TrainingFailed, match='in use by process 17'):
            train(run_dir, on_evaluation=move)
    assert [path.name for path in run_dir.iterdir()] == [lock.NAME]


def everything(path):
    return {file: file.lstat().st_mtime_ns for file in path.rglob('*')}


@pytest.mark.parametrize('resume', [False, True])
def test_a_second_run_is_one_line_and_changes_nothing(tmp_path, resume):
    run = ControlRun.model_validate(SETTINGS)
    rundir.claim_run_dir(run, tmp_path / 'run', resume=False)
    with lock.held(tmp_path / 'run'):
        before = everything(tmp_path)
        with pytest.raises(UserError, match='run: in use by process'):
            sail_jax.train(run, tmp_path / 'run', env=Point(), resume=resume, quiet=True)
        assert everything(tmp_path) == before


def test_a_member_of_a_sweep_that_is_resumed_alone_is_not_the_sweeps(tmp_path, monkeypatch):
    run = ControlRun.model_validate(SETTINGS | {'seeds': 2})
    member, write = tmp_path / 'run' / 'seed-1', configfile.write
    monkeypatch.setattr(configfile, 'write', lambda *args: write(*args) or 1 / 0)
    with pytest.raises(ZeroDivisionError):  # Killed as soon as it has its configuration.
        sail_jax.train(run, tmp_path / 'run', env=Point(), quiet=True)
    monkeypatch.undo()
    member.mkdir()
    with lock.held(member), pytest.raises(UserError, match=f'^{member}: in use by process'):
        sail_jax.train(run, tmp_path / 'run', env=Point(), resume=True, quiet=True)


def test_studies_and_quickstarts_hold_their_directories(tmp_path, monkeypatch):
    """Also beyond the training of a stage."""
    monkeypatch.setattr(measure, 'measure', lambda *_: refuse(tmp_path / 'study') or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sail_jax.train('configs/bandit/landscape.yaml', tmp_path / 'study')
    monkeypatch.setattr(quickstart, '_train', lambda *_: refuse(tmp_path / 'stages') or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sail_jax.train('configs/language/quickstart.yaml', tmp_path / 'stages')
