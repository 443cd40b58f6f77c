"""Standard output and error as a run can rely on them.

A full disk behind `2> log`, `| head -1` and a closed terminal make every write to them an error, at
any time. What is written to a console never ends a run.
"""

import atexit
import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Lasting:
    """A text stream whose writes do not fail: what it does not take is lost.

    Everything but its writing is the stream's own. Without one (`2>&-`) all is lost.
    """

    def __init__(self, stream: TextIO | None):
        self.stream = stream
        self.error: OSError | None = None
        """Of the first write that failed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Writes what can be written of it; returns the length of all of it."""
        with self._failing():
            if self.stream is not None:
                self.stream.write(self._encodable(text))
        return len(text)

    def flush(self) -> None:
        """As far as possible."""
        with self._failing():
            if self.stream is not None:
                self.stream.flush()

    def isatty(self) -> bool:
        """Whether it is a terminal, as long as that is there."""
        try:
            return self.stream is not None and self.stream.isatty()
        except Exception:  # Closed; or a stand-in, which may have nothing but `write`.
            return False

    def _encodable(self, text: str) -> str:
        encoding = getattr(self.stream, 'encoding', None) or 'utf-8'
        errors = getattr(self.stream, 'errors', None) or 'strict'
        try:
            text.encode(encoding, errors)
        except UnicodeEncodeError:
            return text.encode(encoding, 'backslashreplace').decode(encoding)
        return text

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self.error is None:
                self.error = error
                atexit.register(self._let_go)
        except Exception:
            # It is closed; a signal's handler writes in the middle of another write; or it is a
            # stand-in, as programs put there that keep a copy, which has no `flush`, say.
            return

    def _let_go(self) -> None:
        """Python flushes at its end, and an error there would become the exit status."""
        if self.stream is None:
            return
        try:
            self.stream.flush()
        except OSError:
            with contextlib.suppress(Exception):  # A stand-in may have no descriptor.
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.stream.fileno())
                os.close(null)
        except Exception:
            return


@functools.lru_cache(8)
def of(stream: TextIO | None) -> Any:
    """The stream, lasting."""
    return stream if isinstance(stream, Lasting) else Lasting(stream)


@contextlib.contextmanager
def lasting() -> Iterator[Lasting]:
    """Makes `sys.stdout` and `sys.stderr` last; gives the first."""
    for descriptor in range(3):  # What is closed would become some file's that is opened later.
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    out, error = Lasting(sys.stdout), Lasting(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            yield out
        finally:
            out.flush()
            error.flush()
