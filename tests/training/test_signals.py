"""A signal that comes before a run has anything to save, or after its last save."""

import signal
import subprocess
import sys
import threading

import jax
import pytest
import yaml

from sail_jax.errors import Interrupted
from sail_jax.training import signals
from tests.support.toy import SETTINGS

RUN = SETTINGS | {
    'env': {'name': 'inverted_pendulum', 'episode_length': 30},
    'reference': {'source': 'ppo', 'ppo_env_steps': 10_000_000},
}


def start(tmp_path, *more):
    """`sail-jax train` of a run that first trains a reference for minutes."""
    path = tmp_path / 'run.yaml'
    tmp_path.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(RUN))
    return subprocess.Popen(
        [sys.executable, '-m', 'sail_jax.cli', 'train', path, '--run-dir', tmp_path / 'run', *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(process, words):
    """Waits for a line of stderr."""
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f'{words!r} was not said')


def test_before_anything_is_begun_and_while_the_reference_is_trained(tmp_path):
    loading, training = start(tmp_path / 'a'), start(tmp_path / 'b')
    until(loading, 'loading JAX')
    loading.send_signal(signal.SIGINT)
    out, said = loading.communicate(timeout=20)
    assert (loading.returncode, out) == (130, '')
    assert said.strip() == 'sail-jax: stopped before anything was begun'

    run = tmp_path / 'b' / 'run'
    until(training, 'start policy')
    assert (run / 'config.yaml').exists()
    training.send_signal(signal.SIGTERM)
    out, said = training.communicate(timeout=20)
    assert (training.returncode, out) == (75, '')
    again = f'go on with: sail-jax train {run}/config.yaml --run-dir {run} --resume'
    assert said.strip().splitlines()[-1] == f'sail-jax: stopped; {again}'
    assert 'Traceback' not in said


@pytest.mark.parametrize('number', signals.SIGNALS)
def test_a_compilation_that_a_signal_ended_is_a_run_that_was_stopped(number, tmp_path):
    """CUDA's assembler is a process of the terminal's group, and gets Ctrl-C too."""

    def compilation():
        with signals.collected() as caught, signals.ending_compilations(caught, tmp_path):
            signal.raise_signal(number)
            raise jax.errors.JaxRuntimeError('INTERNAL: ptxas exited with non-zero error code 2')

    with pytest.raises(Interrupted, match='stopped; go on with: ') as stopped:
        compilation()
    assert stopped.value.status == signals.status(number)


@pytest.mark.parametrize(
    ('error', 'caught'),
    [(jax.errors.JaxRuntimeError('INTERNAL'), []), (ValueError('x'), [signal.SIGINT])],
)
def test_no_other_failure_is(error, caught, tmp_path):
    with pytest.raises(type(error)), signals.ending_compilations(caught, tmp_path):
        raise error


@pytest.mark.slow
def test_what_was_stopped_before_its_start_begins_again(tmp_path):
    """As docs/guides/hosts.md queues it again."""
    first = start(tmp_path)
    until(first, 'start policy')
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=20)
    assert first.returncode == 75
    again = start(
        tmp_path, '--resume', '--total-env-steps', '48', '--reference.ppo-env-steps', '48'
    )
    said = again.communicate(timeout=300)[1]
    assert again.returncode == 2, 'another configuration'
    assert 'reference.ppo_env_steps (10000000 -> 48)' in said
    again = start(tmp_path, '--resume')
    until(again, 'start policy')
    again.send_signal(signal.SIGINT)
    assert 'Traceback' not in again.communicate(timeout=20)[1]
    assert again.returncode == 130


def test_code_that_python_does_not_get_out_of():
    """A C function that holds the main thread, as a compilation does."""
    code = """
import ctypes, sys
from sail_jax.training import signals
with signals.ending_the_process():
    print('ready', file=sys.stderr, flush=True)
    ctypes.CDLL(None).pause()  # Returns at a signal; the second call never does.
    ctypes.CDLL(None).sleep(1000)
"""
    process = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE, text=True)
    until(process, 'ready')
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[1].strip() == (
        'sail-jax: stopped before anything was begun'
    )
    assert process.returncode == 75


@pytest.mark.parametrize('number', signals.SIGNALS)
def test_a_second_signal_ends_a_run_that_collects_them(number):
    code = """
import os, signal, time
from sail_jax.training import signals
with signals.ending_the_process(), signals.collected() as caught:
    os.kill(os.getpid(), signal.SIGTERM)
    while not caught:
        time.sleep(0.01)
    print('collected', flush=True)
    while True:
        time.sleep(1)
"""
    process = subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == 'collected\n'
    process.send_signal(number)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == signals.status(number)
    assert said.splitlines()[0] == 'stopping at the next safe point; once more to stop at once'
    assert 'Traceback' not in said


def test_a_module_that_swallows_an_interrupt_does_not_go_on(tmp_path):
    swallows = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except BaseException as error:
    print(type(error), flush=True)
"""
    (tmp_path / 'swallows.py').write_text(swallows)
    # Where tests run in the background an interrupt is ignored.
    program = """
import signal
from sail_jax.training import signals
signal.signal(signal.SIGINT, signal.default_int_handler)
with signals.interrupting():
    {}"""

    def done(what):
        command = [sys.executable, '-c', program.format(what)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    importing = done('import swallows; print("went on")')
    assert (importing.returncode, importing.stdout) == (130, '')
    assert importing.stderr.strip() == 'sail-jax: interrupted'
    working = done(f'exec({swallows!r})')
    assert (working.returncode, working.stdout) == (0, "<class 'KeyboardInterrupt'>\n")


def test_handlers_are_put_back():
    whose = signal.getsignal(signal.SIGINT)
    for handler in (signal.default_int_handler, signal.SIG_IGN):
        signal.signal(signal.SIGINT, handler)
        with signals.interrupting():
            # What is ignored stays so, as a script's jobs in the background have it.
            ignored = signal.getsignal(signal.SIGINT) == handler
            assert ignored == (handler is signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) == handler
    signal.signal(signal.SIGINT, whose)
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with signals.ending_the_process(), signals.collected():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_signals_of_another_thread_are_the_callers():
    handlers, answers = [signal.getsignal(number) for number in signals.SIGNALS], []

    def train():
        with signals.ending_the_process(), signals.collected() as caught:
            answers.append((list(caught), [signal.getsignal(one) for one in signals.SIGNALS]))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert answers == [([], handlers)]
