"""XLA's alarm about a compilation of minutes, which is nothing to be done about: kept off the
terminal, that and nothing else.

XLA writes it from C++ to the file descriptor, and has no setting for it. So what goes there passes
through a process of its own, which also delivers the last words of a process that aborts.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator

SOURCE, WORDS, RULE = b'slow_operation_alarm.cc', b'Very slow compile?', b'*' * 32
MOST = 6
"""Lines of an alarm, at most: where it is from, perhaps what it took, and two rules about it."""


def without(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines but for those of alarms."""
    alarm: list[bytes] = []
    for line in lines:
        if not alarm and SOURCE not in line:
            yield line
            continue
        if SOURCE in line:  # Another one begins.
            yield from _other(alarm)
            alarm = []
        alarm.append(line)
        if sum(map(_is_rule, alarm)) == 2 or len(alarm) == MOST:
            yield from _other(alarm)
            alarm = []
    yield from _other(alarm)


def _is_rule(line: bytes) -> bool:
    return line.strip() == RULE


def _other(alarm: list[bytes]) -> list[bytes]:
    return [] if any(WORDS in line for line in alarm) else alarm


@contextlib.contextmanager
def kept_off() -> Iterator[None]:
    """Until its end alarms are left out of what compiled code writes to stderr; what Python writes
    goes there as before."""
    from sail_jax.streams import Lasting  # The filtering process has no package.

    stream = sys.stderr.stream if isinstance(sys.stderr, Lasting) else sys.stderr
    if stream is None or stream is not sys.__stderr__:
        yield  # Closed, or a stream that a test or a notebook has put there.
        return
    before, there = sys.stderr, os.dup(2)
    try:
        filtering = subprocess.Popen(
            [sys.executable, '-I', '-S', __file__],
            stdin=subprocess.PIPE,
            stdout=there,
            start_new_session=True,  # Ctrl-C is for us.
        )
    except OSError:  # As many processes as the user may have: alarms do no harm.
        os.close(there)
        yield
        return
    before.flush()
    sys.stderr = Lasting(
        open(  # noqa: SIM115
            there, 'w', 1, encoding=stream.encoding, errors='backslashreplace', closefd=False
        )
    )
    assert filtering.stdin is not None  # It is a pipe.
    os.dup2(filtering.stdin.fileno(), 2)
    filtering.stdin.close()
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        sys.stderr = before
        os.dup2(there, 2)
        os.close(there)
        # Its last lines; who else has inherited its end, and lives on, is not waited for.
        with contextlib.suppress(subprocess.TimeoutExpired):
            filtering.wait(1)


def _deliver() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # To all processes of a job.
        signal.signal(number, signal.SIG_IGN)  # Who writes ends, says so, and this one with it.
    for line in without(iter(sys.stdin.buffer.readline, b'')):
        with contextlib.suppress(OSError):  # A terminal that is gone; who writes must not feel it.
            os.write(1, line)


if __name__ == '__main__':
    _deliver()
