"""XLA's alarms about slow compilations, and nothing else, are kept off stderr."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from sail_jax.training import alarms

RULE = b'*' * 32 + b'\n'
SAID = (
    b'[Compiling module jit_f for CPU] Very slow compile? If you want to file a bug, run with '
    b'envvar XLA_FLAGS=--xla_dump_to=/tmp/foo and attach the results.\n'
)
ALARM = b'E1125 16:04:24.2 11415 slow_operation_alarm.cc:73] \n' + RULE + SAID + RULE
"""As jaxlib 0.10 wrote it after two minutes."""
AGAIN = b'E1125 slow_operation_alarm.cc:140] The operation took 2m3.5s\n\n' + RULE + SAID + RULE
FOLDING = (
    b'E1125 slow_operation_alarm.cc:73] Constant folding an instruction is taking > 1s:\n\n'
    b"  x = f32[1] add(a, b)\n\nThis isn't necessarily a bug.\n"
)
ABORT = b'F1125 client.h:80] Terminating process\n*** Check failure stack trace: ***\n'

other = st.sampled_from([FOLDING, ABORT, RULE, b'\n', b'Very slow compile? asked somebody\n', b'x'])
pieces = st.lists(st.sampled_from([ALARM, AGAIN]) | other.map(lambda text: text + b'\n'))


@given(pieces)
def test_alarms_go_and_all_else_stays(pieces):
    lines = b''.join(pieces).splitlines(keepends=True)
    left = b''.join(piece for piece in pieces if piece not in (ALARM, AGAIN))
    assert b''.join(alarms.without(lines)) == left


def test_the_last_words_of_a_process_arrive():
    written = b'before\n' + ALARM + AGAIN + ABORT
    code = f"""
import os, sys
from sail_jax.training import alarms
from sail_jax import terminal
with alarms.kept_off():
    terminal.say('progress')
    os.write(2, {written!r})
    os.abort()
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True)
    assert done.returncode == -6
    assert done.stderr == b'progress\nbefore\n' + ABORT


def test_a_signal_to_all_processes_leaves_the_words_of_who_writes():
    code = """
import os, signal, subprocess, time
from sail_jax.training import alarms
begin, begun = subprocess.Popen, []
subprocess.Popen = lambda *args, **options: begun.append(begin(*args, **options)) or begun[-1]
with alarms.kept_off():
    for _ in range(200):  # Until it has begun.
        said = open(f'/proc/{begun[0].pid}/status').read()
        if int(said.partition('SigIgn:')[2].split()[0], 16) >> signal.SIGTERM - 1 & 1:
            break
        time.sleep(0.02)
    begun[0].send_signal(signal.SIGTERM)
    time.sleep(0.1)
    os.write(2, b'stopped')
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True)
    assert done.stderr == b'stopped'


def test_a_process_that_lives_on_is_not_waited_for():
    code = """
import subprocess, sys
from sail_jax.training import alarms
with alarms.kept_off():
    other = subprocess.Popen(['sleep', '1000'])
print('at the end')
other.kill()
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, b'at the end\n', b'')


def test_where_no_process_can_be_begun_alarms_are_shown(capfd):
    code = """
import os, sys
from sail_jax.training import alarms
sys.executable = '/no/such/python'
with alarms.kept_off():
    os.write(2, b'as it is')
"""
    subprocess.run([sys.executable, '-c', code], check=True)
    assert capfd.readouterr().err == 'as it is'
