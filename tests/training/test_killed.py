"""Processes that are killed, or whose disk is full: what they come to once they go on."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from sail_jax import runs
from sail_jax.sweep import Members
from sail_jax.training import checkpoint, metrics, setup
from tests.support import killed
from tests.support.checkpoints import last_step, same
from tests.support.toy import Point, make_run, train


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """What `killed.RUN` comes to."""
    path = tmp_path_factory.mktemp('undisturbed') / 'run'
    train(path, killed.RUN)
    return path


def start(path, *more):
    return subprocess.Popen([sys.executable, '-m', 'tests.support.killed', path, *more])


@pytest.mark.slow
def test_sigkill_at_25_random_moments(undisturbed, tmp_path):
    """Also while compiling, while saving, before the first checkpoint."""
    began = time.monotonic()
    assert start(tmp_path / 'timed').wait(300) == 0
    length = time.monotonic() - began
    rng, kills, trial = np.random.default_rng(0), 0, 0
    while kills < 25:
        path = tmp_path / f'killed{trial}'
        process = start(path, *['resume'] * (path / 'config.yaml').exists())
        try:
            assert process.wait(rng.uniform(0.1, 1.0) * length) == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            kills += 1
        else:  # It came to its end between two kills.
            same_ends(path, undisturbed)
            trial += 1
    path = tmp_path / f'killed{trial}'
    assert start(path, *['resume'] * path.exists()).wait(300) == 0
    same_ends(path, undisturbed)


def same_ends(path, other):
    task = runs.make_task(make_run(), env=Point())
    abstract = setup.Layout.of(Members.of(make_run()), task).policy
    same(*[checkpoint.restore_policy(run / 'checkpoints', abstract) for run in (path, other)])
    lines = (path / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in lines] == list(range(killed.UPDATES + 1))


@pytest.mark.slow
def test_sigkill_and_resume_end_with_the_same_parameters(undisturbed, tmp_path):
    """Killed just before a checkpoint gets its name, just after, and without warning."""
    path = tmp_path / 'killed'
    assert start(path, 'before:12').wait(300) == -signal.SIGKILL
    assert [one.name for one in (path / 'checkpoints').glob('12*')] != ['12']
    assert start(path, 'resume', 'after:28').wait(300) == -signal.SIGKILL
    assert (path / 'checkpoints' / '28').exists()
    process = start(path, 'resume')
    deadline = time.monotonic() + 240
    while last_step(path) < 50 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, 'it ended before it could be killed'
    assert start(path, 'resume').wait(300) == 0
    same_ends(path, undisturbed)


FULL = """
import resource, signal, sys
import sail_jax
from sail_jax.control.config import ControlRun
from sail_jax.errors import TrainingFailed
from tests.support.toy import SETTINGS, Point

settings = {'policy': {'hidden': [256, 256]}, 'total_env_steps': int(sys.argv[2])}
run = ControlRun.model_validate({**SETTINGS, **settings})
if 'full' in sys.argv:
    # No file may grow beyond this: what a full disk does to the large files of a checkpoint.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    sail_jax.train(run, sys.argv[1], env=Point(), quiet=True, resume='resume' in sys.argv)
except TrainingFailed as error:
    sys.exit(f'failed: {error}')
"""


def run_full(path, env_steps, *more):
    env = {**os.environ, 'JAX_ENABLE_COMPILATION_CACHE': 'false'} if 'full' in more else None
    command = [sys.executable, '-c', FULL, path, str(env_steps), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=env)


@pytest.mark.slow
def test_a_full_disk_costs_checkpoints_not_the_run(tmp_path):
    path, whole = tmp_path / 'run', tmp_path / 'whole'
    assert run_full(whole, 240).returncode == 0
    assert run_full(path, 120).returncode == 0
    before = sorted(file for file in (path / 'checkpoints' / '2').rglob('*'))
    ended = run_full(path, 240, 'resume', 'full')
    assert ended.returncode == 1, ended.stderr
    first, last = ended.stderr.splitlines()
    assert 'the checkpoint of update 4 could not be written' in first
    assert last.startswith(f'failed: {path}/checkpoints: the last state, at 240 env steps, could')
    assert last.endswith('resume=True goes on from 120 env steps')
    assert sorted(file for file in (path / 'checkpoints' / '2').rglob('*')) == before
    rows = metrics.read_rows(path / 'metrics.jsonl')
    assert [row['step'] for row in rows] == [0, 1, 2, 3, 4]
    # With room again the run goes on from there to the same end.
    assert run_full(path, 240, 'resume').returncode == 0
    task = runs.make_task(make_run(policy={'hidden': [256, 256]}), env=Point())
    abstract = setup.Layout.of(Members.of(make_run(policy={'hidden': [256, 256]})), task).policy
    same(*[checkpoint.restore_policy(run / 'checkpoints', abstract) for run in (path, whole)])
