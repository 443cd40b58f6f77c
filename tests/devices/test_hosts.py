"""Several real processes through the command line that a pod would use; two fake devices each."""

import re
import signal
import time
from functools import partial

import numpy as np
import pytest
import yaml

from sail_jax import runs
from sail_jax.training import metrics
from tests.support import processes
from tests.support.checkpoints import last_step, same
from tests.support.processes import finish

pytestmark = pytest.mark.slow

SETTINGS = {
    'workload': 'control',
    'updates_per_dispatch': 1,
    'env': {'name': 'inverted_pendulum', 'episode_length': 32},
    'policy': {'hidden': [8]},
    'rollout': {'contexts': 4, 'group_size': 4, 'segment_length': 4},
    'divergence': {'coefficient': 0.1},
    'evaluation': {'every_updates': 4, 'episodes': 4},
    'reference': {'refresh_env_steps': 192},
    'checkpoints': {'every_updates': 2},
}


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp('hosts')
    (path / 'run.yaml').write_text(yaml.safe_dump(SETTINGS))
    return path


def start(directory, name, count, *more, devices=2, slurm=False):
    """Starts the processes of a run; it has 64 env steps an update."""
    command = ['-m', 'sail_jax.cli', 'train', directory / 'run.yaml', '--quiet']
    command += ['--run-dir', directory / name, *more]
    return processes.start(command, count, devices, slurm)


@pytest.fixture(scope='module')
def single(directory):
    """Four devices in one process."""
    status, printed = finish(start(directory, 'single', 1, '--total-env-steps', '512', devices=4))
    assert status == [0], printed
    return runs.open_run(directory / 'single')[1]


def test_two_processes_train_evaluate_save_and_resume(directory, single):
    for more, slurm in ((['256'], False), (['512', '--resume'], True)):
        started = start(directory, 'two', 2, '--total-env-steps', *more, slurm=slurm)
        status, printed = finish(started)
        assert status == [0, 0], printed
        assert 'run directory' in printed[0]
        assert 'run directory' not in printed[1]
    rows, alone = (
        metrics.read_rows(directory / name / 'metrics.jsonl') for name in ('two', 'single')
    )
    assert [row['step'] for row in rows] == list(range(9))
    ours, theirs = (
        [row['eval/return'] for row in found if 'eval/return' in row] for found in (rows, alone)
    )
    assert len(ours) == 3
    assert ours == pytest.approx(theirs, rel=1e-4)
    # Of each start, process 0's.
    assert len(list((directory / 'two' / 'tensorboard').iterdir())) == 2
    policy = runs.open_run(directory / 'two')[1]
    import jax

    # The normaliser's sums over the run are hundreds: another order rounds them by 1e-7 of that.
    close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-5)
    jax.tree.map(close, policy, single)


def test_four_processes_save_and_resume(directory):
    for name, lengths in (('whole', ['256']), ('parts', ['128', '256'])):
        for index, length in enumerate(lengths):
            more = ['--resume'] * bool(index)
            started = start(directory, name, 4, '--total-env-steps', length, *more, devices=1)
            status, printed = finish(started)
            assert status == [0] * 4, printed
    same(*[runs.open_run(directory / name)[1] for name in ('whole', 'parts')])


def test_a_refusal_is_one_line_in_every_process(directory, single):
    status, printed = finish(start(directory, 'single', 2))
    assert status == [2, 2], printed
    assert 'exists already; use --resume' in printed[0]
    assert 'process 0 failed; it says why' in printed[1]
    assert 'Traceback' not in ''.join(printed)


def test_a_directory_that_the_processes_do_not_share_is_one_line_in_each(directory):
    command = ['-m', 'sail_jax.cli', 'train', directory / 'run.yaml', '--quiet', '--run-dir']
    elsewhere = ['--run-dir', directory / 'elsewhere']  # As the same name on another disk would be.
    status, printed = finish(
        processes.start([*command, directory / 'here'], 2, devices=2, last=elsewhere)
    )
    assert status == [2, 2], printed
    assert 'process 1 failed; it says why' in printed[0]
    assert 'elsewhere: process 1 does not see there what process 0 has written' in printed[1]
    assert 'Traceback' not in ''.join(printed)
    assert not list((directory / 'here').glob('*')), 'free for the corrected run'


@pytest.mark.parametrize('victim', [0, 1])
def test_the_others_end_when_one_is_killed(directory, victim):
    name = f'killed{victim}'
    started = start(directory, name, 2, '--total-env-steps', '100000000')
    deadline = time.monotonic() + 300
    while last_step(directory / name) < 4:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in started)
        time.sleep(0.1)
    started[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    survivor = started[1 - victim]
    printed, _ = survivor.communicate(timeout=120)
    assert survivor.returncode not in (0, None)
    assert time.monotonic() - began < 100
    assert 'another process' in printed or 'another task died' in printed
    started[victim].communicate()
    # Nothing finished is lost.
    step = last_step(directory / name)
    length = str(64 * (step + 2))
    status, printed = finish(start(directory, name, 2, '--total-env-steps', length, '--resume'))
    assert status == [0, 0], printed
    rows = metrics.read_rows(directory / name / 'metrics.jsonl')
    assert [row['step'] for row in rows] == list(range(step + 3))


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all(directory, number):
    name = f'signal{int(number)}'
    started = start(directory, name, 2, '--total-env-steps', '100000000')
    while last_step(directory / name) < 4:
        assert all(process.poll() is None for process in started)
        time.sleep(0.1)
    started[1].send_signal(number)
    status, printed = finish(started)
    # Who got it knows which it was; to the others it is a request to stop.
    assert status == [75, 75 if number == signal.SIGTERM else 130], printed
    said = [re.search(r'stopped and saved at ([\d,]+) env steps', text)[1] for text in printed]
    # All at the same update, which is on the disk, entirely, and which all go on from.
    assert said[0] == said[1]
    step = int(said[0].replace(',', '')) // 64
    assert (directory / name / 'checkpoints' / str(step)).exists()
    length = str(64 * (step + 2))
    status, printed = finish(start(directory, name, 2, '--total-env-steps', length, '--resume'))
    assert status == [0, 0], printed
    rows = metrics.read_rows(directory / name / 'metrics.jsonl')
    assert [row['step'] for row in rows] == list(range(step + 3))
