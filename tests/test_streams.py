"""Consoles that go away: no write to them ends anything, and the exit status stays the run's."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import sail_jax
from sail_jax import commands, configfile, streams, terminal
from sail_jax.cli import main
from sail_jax.control.config import ControlRun
from sail_jax.errors import TrainingFailed
from sail_jax.streams import Lasting
from sail_jax.terminal import Console
from sail_jax.training import metrics
from tests.support.toy import SETTINGS, Point


def full():
    """A disk without room."""
    return open('/dev/full', 'w')


def pipe():
    """Of which nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, 'w')


def hung_up():
    """A terminal that was closed."""
    main, side = pty.openpty()
    os.close(main)
    return os.fdopen(side, 'w')


def closed():
    with open(os.devnull, 'w') as stream:
        return stream


GONE = [full, pipe, hung_up, closed, lambda: None]


@pytest.fixture(params=GONE, ids=['full', 'pipe', 'hung-up', 'closed', 'none'])
def gone(request):
    stream = request.param()
    yield stream
    if stream is not None and not stream.closed:
        # As at the end of a process: what it has not taken would be an error once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        stream.close()


def test_no_write_fails(gone):
    stream = Lasting(gone)
    for _ in range(3):
        assert stream.write('x' * 100_000) == 100_000
        stream.flush()
        print('text', file=stream, flush=True)
    assert not stream.isatty()
    console = Console(file=gone, force_terminal=True)
    console.print('[bold]text')
    with console.status('working'):
        console.print('text')


def test_what_can_be_written_is(tmp_path):
    with (tmp_path / 'text').open('w', encoding='ascii') as file:
        stream = Lasting(file)
        print('a ± b \udc80', file=stream)
        stream.flush()
        assert (tmp_path / 'text').read_text() == 'a \\xb1 b \\udc80\n'
        assert stream.fileno() == file.fileno()
        assert stream.error is None


def test_a_handler_may_write_in_the_middle_of_a_write():
    class Busy:
        encoding = 'utf-8'

        def write(self, text):
            raise RuntimeError('reentrant call inside <_io.BufferedWriter>')

    assert Lasting(Busy()).write('text') == 4


@pytest.mark.parametrize('error', [AttributeError, TypeError, OSError])
def test_a_stand_in_for_a_stream_may_have_nothing_but_write(error):
    """As programs put there that keep a copy of what is said."""

    class Copy:
        def write(self, text):
            raise error('no copy')

    stream = streams.of(Copy())
    assert not stream.isatty()
    Console(file=Copy()).print('text')
    print('text', file=stream, flush=True)


def test_a_run_goes_on_without_its_console(gone, tmp_path, monkeypatch):
    """With its progress bar, and whatever it has to say."""
    monkeypatch.setattr(terminal.console, '_file', gone)
    monkeypatch.setattr(terminal.console, '_force_terminal', True)
    sail_jax.train(ControlRun.model_validate(SETTINGS), tmp_path / 'run', env=Point())
    rows = metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')
    assert [row['step'] for row in rows] == [0, 1, 2, 3, 4]


@pytest.fixture
def run_dir(tmp_path):
    """As far as `plot` looks."""
    run = ControlRun.model_validate(SETTINGS)
    (tmp_path / 'config.yaml').write_text(configfile.to_yaml(run))
    row = {'step': 1, 'env_steps': 60, 'labels': 2, 'wall_s': 1.5, 'eval/return': 3.0}
    (tmp_path / 'metrics.jsonl').write_text(json.dumps(row) + '\n')
    return tmp_path


def plot(run_dir):
    return main(['plot', str(run_dir), '--out', str(run_dir / 'plot.png')])


def test_output_that_is_lost_is_an_error_unless_nobody_wants_it(run_dir, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'stdout', pipe())
    assert plot(run_dir) == 0
    assert capsys.readouterr().err == ''
    monkeypatch.setattr(sys, 'stdout', full())
    assert plot(run_dir) == 1
    assert capsys.readouterr().err == 'sail-jax: standard output: No space left on device\n'
    monkeypatch.setattr(sys, 'stderr', full())
    assert plot(run_dir) == 1
    assert plot(run_dir / 'none') == 2


@pytest.mark.parametrize(('ends', 'status'), [(None, 0), (TrainingFailed('failed'), 1)])
def test_a_run_that_is_done_is_done_whoever_reads_its_table(
    run_dir, monkeypatch, capsys, ends, status
):
    def train(*_):
        print('the table')
        if ends:
            raise ends
        return 0

    monkeypatch.setattr(commands, '_train', train)
    monkeypatch.setattr(sys, 'stdout', full())
    run = ['train', str(run_dir / 'config.yaml'), '--run-dir', str(run_dir / 'run')]
    assert main(run) == status
    assert 'sail-jax: standard output: No space left' in capsys.readouterr().err


ENDING = """
import runpy, sys
streams = runpy.run_path(sys.argv[1])
with streams['lasting']():
    print('one')
    print('two', file=sys.stderr)
    print('three' * 10_000)
sys.exit(3)
"""


@pytest.mark.parametrize('redirection', ['>/dev/full', '2>/dev/full', '>&-', '2>&-', '2>&1 | true'])
def test_the_exit_status_at_the_very_end(redirection):
    program = [sys.executable, '-c', ENDING, Path(streams.__file__)]
    script = f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(['bash', '-c', script, 'bash', *program], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stderr in ('', 'two\n')


@pytest.mark.parametrize('command', [['--help'], ['plot', '--help'], ['train', '--help']])
def test_help_that_is_lost_is_an_error_too(monkeypatch, capsys, command):
    monkeypatch.setattr(sys, 'stdout', pipe())
    assert main(command) == 0
    monkeypatch.setattr(sys, 'stdout', full())
    assert main(command) == 1
    assert capsys.readouterr().err == 'sail-jax: standard output: No space left on device\n'
