"""What a new host is told."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile

import jax
import pytest

from sail_jax import cli, doctor, runs
from sail_jax.training import accelerator
from tests.support.paths import ROOT


def test_a_good_host(tmp_path, capsys):
    assert cli.main(['doctor', '--dir', str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    seen = ('versions', 'devices', 'memory of a device', 'memory of the host', 'mesh')
    for what in (*seen, 'matmul precision', 'collective', 'randomness', 'checkpoint'):
        assert f'ok      {what}' in printed
    assert f'jax {jax.__version__}' in printed
    assert not list(tmp_path.iterdir())


def test_an_accelerator_that_jax_does_not_use_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / 'nvidia0').touch()
    gpu, tpu = accelerator.KINDS
    monkeypatch.setattr(
        accelerator, 'KINDS', (gpu._replace(files=(str(tmp_path / 'nvidia0'),)), tpu)
    )
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    assert cli.main(['doctor', '--dir', str(tmp_path)]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if 'FAILED' in line]
    assert 'nvidia0) is idle' in line
    assert "pip install 'sail-jax[cuda12]'" in line
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    assert accelerator.idle() is None


def test_training_says_it_in_one_line(tmp_path, monkeypatch):
    """In a process of its own, whose stderr is its own."""
    script = (
        'import sys; from sail_jax import terminal; from sail_jax.training import accelerator;'
        'terminal.log_to_stderr();'
        'accelerator.KINDS = (accelerator.Accelerator("a TPU", (sys.argv[1],), "tpu"),);'
        'accelerator.warn_if_idle()'
    )
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    done = subprocess.run(
        [sys.executable, '-c', script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stderr.count('\n') == 1
    assert done.stderr.startswith(f'sail-jax: a TPU of this host ({tmp_path}) is idle')


def test_training_looks_whether_an_accelerator_is_idle(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(accelerator, 'warn_if_idle', lambda: said.append('looked'))
    monkeypatch.setattr(runs, 'make_task', lambda *_, **__: sys.exit('made'))
    with pytest.raises(SystemExit, match='made'):
        runs.train(runs.load(ROOT / 'configs' / 'quickstart.yaml'), tmp_path / 'run')
    assert said == ['looked']


def test_a_host_without_an_accelerator_is_in_order(monkeypatch):
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    monkeypatch.setattr(
        accelerator, 'KINDS', tuple(kind._replace(files=()) for kind in accelerator.KINDS)
    )
    assert accelerator.idle() is None


def test_what_lies_in_the_directory_is_left_alone(tmp_path):
    for name in ('doctor', 'doctor-00000000'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'notes').write_text('mine')
    assert all(finding.well for finding in doctor.examine(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['doctor', 'doctor-00000000']
    assert all((path / 'notes').read_text() == 'mine' for path in tmp_path.iterdir())


def test_a_name_that_is_taken_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(secrets, 'randbits', lambda bits: 0)
    (tmp_path / 'doctor-00000000').write_text('mine')
    found = {finding.what: finding for finding in doctor.examine(tmp_path)}
    assert found['checkpoint'].answer.endswith('/doctor-00000000 is there already')
    assert not found['checkpoint'].well
    assert (tmp_path / 'doctor-00000000').read_text() == 'mine'


def test_nothing_is_left_in_the_temporary_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    assert all(finding.well for finding in doctor.examine())
    assert not list(tmp_path.iterdir())


def test_a_directory_that_takes_no_checkpoint(tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    assert cli.main(['doctor', '--dir', str(tmp_path / 'file')]) == 1
    assert 'FAILED  checkpoint' in capsys.readouterr().out


def test_a_directory_that_is_not_there_is_not_made(tmp_path, capsys):
    assert cli.main(['doctor', '--dir', str(tmp_path / 'a' / 'b')]) == 2
    assert 'a/b: there is no such directory' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_other_random_numbers_are_noticed():
    jax.config.update('jax_default_prng_impl', 'rbg')
    try:
        found = {finding.what: finding for finding in doctor.examine()}
    finally:
        jax.config.update('jax_default_prng_impl', 'threefry2x32')
    assert not found['randomness'].well


@pytest.mark.parametrize('more', [['--distributed'], ['--process-id', '0']])
def test_several_processes_need_a_shared_directory(more, capsys):
    assert cli.main(['doctor', *more]) == 2
    assert capsys.readouterr().err.startswith('sail-jax: ')


def process(*more, **env):
    """`sail-jax doctor` of a process of its own."""
    return subprocess.Popen(
        [sys.executable, '-m', 'sail_jax.cli', 'doctor', *more],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_who_is_alone(tmp_path):
    """Others that do not come are waited for as long as was said; one process needs none."""
    slurm = {
        'SLURM_JOB_ID': '1',
        'SLURM_STEP_NODELIST': 'localhost',
        'SLURM_NTASKS': '1',
        'SLURM_PROCID': '0',
        'SLURM_LOCALID': '0',
    }
    with contextlib.ExitStack() as free:
        sockets = [free.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(('localhost', 0))
        ports = [each.getsockname()[1] for each in sockets]
    two = ['--num-processes', '2', '--join-timeout', '2', '--dir', str(tmp_path)]
    alone = [
        process('--coordinator', f'localhost:{ports[0]}', '--process-id', '1', *two),
        process('--coordinator', f'localhost:{ports[1]}', '--process-id', '0', *two),
    ]
    one = process('--distributed', **slurm)
    for waiting, who in zip(alone, ('process 0 at', 'the other processes at'), strict=True):
        out, said = waiting.communicate(timeout=100)
        first, last = said.splitlines()
        assert (waiting.returncode, out) == (2, '')
        assert first.startswith(f'waiting for {who}')
        assert last.startswith(f'sail-jax: --distributed: {who}')
        assert f'localhost:{ports[alone.index(waiting)]}' in last
        assert '2 s (--join-timeout)' in last
    out, said = one.communicate(timeout=100)
    assert (one.returncode, said) == (0, '')
    assert 'ok      checkpoint' in out


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['--coordinator', 'host:0'], "--coordinator: HOST:PORT of process 0, got 'host:0'"),
        (['--coordinator', 'h:65536'], "--coordinator: HOST:PORT of process 0, got 'h:65536'"),
        (['--coordinator', 'host'], "--coordinator: HOST:PORT of process 0, got 'host'"),
        (['--join-timeout', '0'], "--join-timeout: 1 to 86400 seconds, got '0'"),
        (['--join-timeout', 'nan'], '1 to 86400 seconds'),
        (['--join-timeout', 'soon'], '1 to 86400 seconds'),
    ],
)
def test_how_to_join_is_checked(more, message, capsys):
    given = ['--num-processes', '2', '--process-id', '1', *more]
    assert cli.main(['doctor', *given]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count('\n') == 1
