"""`sail-jax label` of a run that has asked nothing yet."""

import contextlib
import errno
import threading
from pathlib import Path

import pytest

from sail_jax.cli import main
from sail_jax.labels import command
from sail_jax.labels.store import NAME
from sail_jax.training import lock
from tests.support import labelling
from tests.support.refused import message

PEOPLE = {'people': 'workload: control\nlabeller: {source: people}\n', 'teacher': ''}


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / 'config.yaml').write_text(PEOPLE['people'])
    return tmp_path


@contextlib.contextmanager
def opening(run_dir):
    """Whoever opens the run's store meanwhile, and what becomes of it."""
    found = []
    thread = threading.Thread(target=lambda: found.append(said(run_dir)), daemon=True)
    thread.start()
    yield found
    thread.join(10)
    assert not thread.is_alive()


def said(run_dir):
    try:
        return command.opened(run_dir).path
    except command.UserError as error:
        return str(error)


def test_the_first_questions_of_a_run_under_way_are_waited_for(run_dir, monkeypatch, capsys):
    looks = threading.Semaphore(0)
    monkeypatch.setattr(command.time, 'sleep', lambda _: looks.acquire(timeout=10))
    with lock.held(run_dir), opening(run_dir) as found:
        looks.release()
        assert found == []
        labelling.make(run_dir / NAME, 1)
        looks.release(99)
    assert found == [run_dir / NAME]
    line = f"{run_dir}: waiting for the run's first questions; Ctrl-C ends it\n"
    assert capsys.readouterr().err == line


def test_a_directory_that_may_not_be_looked_into_is_one_line(run_dir, monkeypatch):
    monkeypatch.setattr(Path, 'stat', refused)
    assert said(run_dir) == f'{run_dir}: Permission denied'
    assert main(['reward', 'evaluate', str(run_dir / 'reward.safetensors')]) == 2


def refused(path, **_):
    raise PermissionError(errno.EACCES, 'Permission denied', str(path))


def test_a_run_that_was_stopped_before_it_asked_is_not_waited_for(run_dir, monkeypatch):
    with opening(run_dir) as found:
        pass
    assert found.pop() == (
        f'{run_dir}: no questions yet, and training is stopped; go on with: sail-jax train '
        f'{run_dir}/config.yaml --run-dir {run_dir} --resume'
    )
    looked = threading.Event()
    monkeypatch.setattr(command.time, 'sleep', lambda _: looked.set())
    with contextlib.ExitStack() as training:
        training.enter_context(lock.held(run_dir))
        with opening(run_dir) as found:
            assert looked.wait(10)
            training.close()  # Stopped while it compiled.
    assert found[0].startswith(f'{run_dir}: no questions yet, and training is stopped')


def test_who_asks_nobody_is_told_so(tmp_path):
    assert message(command.opened, tmp_path / 'none').startswith(f'{tmp_path}/none: no run there')
    nobody = f'{tmp_path / NAME}: no questions; train with labeller.source: people first'
    assert message(command.opened, tmp_path).startswith(nobody)
    (tmp_path / 'config.yaml').write_text(PEOPLE['teacher'])
    with lock.held(tmp_path):
        assert message(command.opened, tmp_path).startswith(nobody)
