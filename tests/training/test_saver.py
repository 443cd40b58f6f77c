"""Saves that a disk does not take: each is told once, and costs nothing but itself."""

import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from sail_jax import config
from sail_jax.control.config import ControlRun
from sail_jax.core.types import Hyper, Policy, State
from sail_jax.training import listing, quiet, references
from sail_jax.training.saver import Saver
from tests.support.disk import disk_of


def make_state(step):
    """Large enough that no save fits into the disks of these tests."""
    large = Policy({'w': jax.random.normal(jax.random.key(step), (64, 64))}, {})
    zero = jnp.zeros((), jnp.int32)
    return State(
        policy=large,
        reference=Policy((), ()),
        shared=(),
        reference_step=zero,
        optimizer=jax.tree.map(jnp.sin, large.params),
        sampler={},
        seed=zero,
        hyper=Hyper.of(ControlRun()),
        step=jnp.asarray(step),
        labels=zero,
        skipped=zero,
        skipped_in_a_row=zero,
    )


@pytest.fixture
def opened(tmp_path):
    """A saver that keeps one checkpoint, and what it reports."""
    told = []
    with Saver(
        tmp_path, config.Checkpoints(keep=1, keep_best=0), lambda *failure: told.append(failure)
    ) as saver:
        yield saver, told, tmp_path


def test_each_failure_is_told_once_and_the_next_save_is_sound(opened):
    saver, told, directory = opened
    assert saver.save(1, make_state(1), {}, wait=True)
    with disk_of(2000):
        for step in (2, 3, 4):
            saver.save(step, make_state(step), {}, score=1.0, wait=step == 4)
    assert [step for step, _ in told] == [2, 3, 4]
    # Nothing takes room but perhaps what the last one still wrote, until the next save.
    assert {path.name for path in directory.iterdir()} <= {'1', '4.orbax-checkpoint-tmp'}
    assert saver.is_among_best(0.5, 1), 'what was not saved is not among the best'
    # The one that could not be replaced is not forgotten: with room again it goes.
    assert saver.save(5, make_state(5), {}, wait=True)
    assert sorted(path.name for path in directory.iterdir()) == ['5']
    assert len(told) == 3
    assert [saver.has(step) for step in (1, 4, 5)] == [False, False, True]


def test_the_same_state_may_fail_twice(opened):
    saver, told, _ = opened
    with disk_of(2000):
        assert not saver.save(1, make_state(1), {}, score=1.0, wait=True)
        assert not saver.save(1, make_state(1), {}, score=1.0, wait=True)
    assert [step for step, _ in told] == [1, 1]
    assert saver.save(1, make_state(1), {}, wait=True)


def test_a_save_that_fails_at_the_end_does_not_end_what_is_around_it(tmp_path):
    told = []
    settings = config.Checkpoints(keep=1, keep_best=0)
    with Saver(tmp_path, settings, lambda *failure: told.append(failure)) as saver:
        limit = disk_of(2000)
        limit.__enter__()
        saver.save(1, make_state(1), {})  # Waited for when the saver is closed.
    limit.__exit__(None, None, None)
    assert [step for step, _ in told] == [1]
    assert not listing.saved_steps(tmp_path)


def test_a_run_directory_that_is_gone_is_not_made_again(tmp_path):
    told, run_dir = [], tmp_path / 'run'
    run_dir.mkdir()
    directory = run_dir / 'checkpoints'
    with Saver(directory, config.Checkpoints(), lambda *failure: told.append(failure)) as saver:
        run_dir.rename(tmp_path / 'moved')
        assert not saver.save(1, make_state(1), {}, wait=True)
        assert [(step, str(error)) for step, error in told] == [
            (1, f'{run_dir} is gone: moved, or deleted')
        ]
        assert not run_dir.exists()
        (tmp_path / 'moved').rename(run_dir)
        assert saver.save(2, make_state(2), {}, wait=True)
    assert listing.saved_steps(directory) == [2]


def test_what_a_killed_save_left_is_cleared_away(tmp_path):
    for left in ('3.orbax-checkpoint-tmp', 'references/2.orbax-checkpoint-tmp-17'):
        (tmp_path / left / 'policy').mkdir(parents=True)
    with Saver(tmp_path, config.Checkpoints(), lambda *failure: None):
        assert [path.name for path in tmp_path.rglob('*')] == ['references']


def test_only_the_tracebacks_of_failed_saves_are_left_out(opened, monkeypatch):
    saver, _, _ = opened
    seen = []
    monkeypatch.setattr(sys, 'unraisablehook', seen.append)
    quiet.silence_failed_saves.__wrapped__()
    with disk_of(2000):
        for step in range(5):
            saver.save(step, make_state(step), {}, wait=True)
    closed = SimpleNamespace(exc_value=RuntimeError('Event loop is closed'))
    other = SimpleNamespace(exc_value=RuntimeError('another'))
    begun = SimpleNamespace(exc_value=AttributeError(quiet.LOOPS[1]))
    read, own = (
        SimpleNamespace(exc_value=ValueError('another shape'), object=coroutine(file))
        for file in ('/venv/orbax/checkpoint/read.py', '/mine/read.py')
    )
    for what in (closed, other, begun, read, own):
        sys.unraisablehook(what)
    assert seen == [other, own]


def coroutine(file):
    """One of a file's, that has come to its end."""
    names = {}
    exec(compile('async def read(): pass', file, 'exec'), names)
    ended = names['read']()
    ended.close()
    return ended


FAILING = """
import sys
from pathlib import Path
from sail_jax.training import listing, references
from sail_jax import config, doctor
from sail_jax.training.saver import Saver
from tests.training.test_saver import make_state

what, directory = sys.argv[1], Path(sys.argv[2])
if what == 'doctor':
    (directory / 'file').touch()
    print([finding for finding in doctor.examine(directory / 'file') if not finding.well])
elif what == 'start':
    (directory / 'checkpoints').touch()
    try:
        references.save_start(directory / 'checkpoints', make_state(1).policy)
    except OSError as error:
        print(error)
else:
    checkpoints = directory / 'checkpoints'
    with Saver(checkpoints, config.Checkpoints(), lambda *failure: print(failure)) as saver:
        checkpoints.rename(directory / 'elsewhere')
        checkpoints.touch()
        saver.save(1, make_state(1), {}, wait=True)
"""


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    'what', ['save', pytest.param('start', marks=SLOW), pytest.param('doctor', marks=SLOW)]
)
def test_a_process_whose_save_failed_ends(tmp_path, what):
    """Before its directory was made, which others of its threads wait for."""
    command = [sys.executable, '-c', FAILING, what, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert 'Not a directory' in done.stdout
    assert (done.returncode, done.stderr) == (0, '')


def test_an_export_that_fails_is_nothing_but_its_error(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, 'unraisablehook', seen.append)
    quiet.silence_failed_saves.cache_clear()
    with disk_of(2000), pytest.raises(ValueError, match='large'):
        references.save_start(tmp_path, make_state(1).policy)
    sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError('Event loop is closed')))
    assert not seen
