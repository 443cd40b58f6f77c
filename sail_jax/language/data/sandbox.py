"""Asks the process that runs tokenisers and chat templates, and outlives what happens to it."""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from typing import IO, Any, NamedTuple

from sail_jax.language.data import sandboxed


class Failed(Exception):
    """Says why a request has no answer; who asks knows what file it is about."""


class Exceeded(Failed):
    """It took more than it may, or ended the process."""


class Limits(NamedTuple):
    """Of the process, many times what sound tokenisers and templates take."""

    memory: int = 2**32
    """Bytes of address space."""
    seconds: float = 3.0
    """Of processor time for a request, so that a loaded machine does no harm..."""
    bytes_per_second: float = 2e6
    """...and one more for so many bytes of it."""


LIMITS = Limits()


class Definition(NamedTuple):
    """What is to be loaded before it is asked."""

    key: str
    request: bytes
    """The line that loads it."""


def _pipes(child: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert child.stdin is not None
    assert child.stdout is not None
    return child.stdin, child.stdout


class _Process:
    """One for all tokenisers of this process; begun when it is first needed, and again after it
    was ended."""

    def __init__(self):
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def ask(self, line: bytes) -> dict[str, Any]:
        with self._lock:
            try:
                reply = self._exchange(line)
            except BaseException:  # An answer that is not waited for would be taken for the next.
                self.stop()
                raise
            if not reply.endswith(b'\n'):
                raise Exceeded(_ended(self.stop(), line))
            return json.loads(reply)

    def _exchange(self, line: bytes) -> bytes:
        if self._child is None:
            try:
                self._child = subprocess.Popen(
                    # Without the directory of the file, whose modules have names of others.
                    [sys.executable, '-P', sandboxed.__file__, *map(str, LIMITS)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,  # A panic tells the terminal about itself.
                    start_new_session=True,  # Ctrl-C is not meant for it.
                )
            except OSError as error:
                raise Failed(f'{sys.executable}: {error.strerror}') from None
        requests, replies = _pipes(self._child)
        try:
            requests.write(line + b'\n')
            requests.flush()
        except BrokenPipeError:
            return b''
        return replies.readline()

    def stop(self) -> int:
        """Ends it; the status that it had."""
        child, self._child = self._child, None
        if child is None:
            return 0
        requests, replies = _pipes(child)
        replies.close()
        with contextlib.suppress(BrokenPipeError):
            requests.close()
        try:
            # One that ended by itself has said all; closing its input ends one that waits.
            return child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()


_process = _Process()


def _forget() -> None:
    """A forked process begins its own."""
    global _process
    _process = _Process()


def stop() -> None:
    """Ends the process; the next request begins another."""
    _process.stop()


os.register_at_fork(after_in_child=_forget)
atexit.register(stop)


def load(key: str, **arguments: Any) -> tuple[Definition, dict[str, Any]]:
    """Loads a tokeniser and a template, and says what they are.

    Raises:
      Failed: why not.
    """
    line = json.dumps({'key': key, 'what': 'load', **arguments}).encode()
    return Definition(key, line), _value(_process.ask(line))


def ask(definition: Definition, what: str, **arguments: Any) -> Any:
    """One of `sandboxed.REQUESTS`.

    Raises:
      Failed: the tokeniser or the template refuse, or take more than they may.
    """
    line = json.dumps({'key': definition.key, 'what': what, **arguments}).encode()
    reply = _process.ask(line)
    if 'unknown' in reply:
        _value(_process.ask(definition.request))
        reply = _process.ask(line)
    return _value(reply)


def _value(reply: dict[str, Any]) -> Any:
    if 'error' in reply:
        raise Failed(' '.join(reply['error'].split())[:200])
    return reply['value']


def _ended(status: int, line: bytes) -> str:
    if status == -signal.SIGPROF:
        limit = LIMITS.seconds + len(line) / LIMITS.bytes_per_second
        return f'takes over {limit:.0f} s of processor time'
    if status in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS):
        return f'crashes, or takes over {LIMITS.memory / 2**30:g} GiB of memory'
    if status < 0:
        return f'its process was ended by {signal.Signals(-status).name}'
    return f'its process ended with status {status}'
