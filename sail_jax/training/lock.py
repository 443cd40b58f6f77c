"""One process at a time writes a run directory.

The lock is `flock` on a file in the directory: the system drops it with the process that holds it,
however that ends, and on NFS the server has it, so that it holds between hosts. A process that is
killed leaves the file behind: that it is there means nothing, and what it says is for a message.
"""

import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from sail_jax.errors import TrainingFailed, UserError

NAME = '.lock'
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without locks say."""
TRIES = 100
"""More often than others delete the file between our opening it and locking it."""
LOOK_S = 0.05
"""Longer than somebody has it who only looks whether it is free."""

log = logging.getLogger(__name__)
_open: dict[int, Path] = {}
"""The descriptors of what is held, and the names by which it was opened."""


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keeps every other process, and any other caller in this one, from writing a directory.

    Where the file system has no locks that is said, and nobody is kept from anything.

    Raises:
      UserError: another holds it; the lock's file cannot be opened, or is none.
    """
    path = directory / NAME
    file = _locked(path)
    _open[file] = path
    try:
        yield
    finally:
        if file in _open:  # A forked child has closed it: the lock is its parent's.
            del _open[file]
            with contextlib.suppress(OSError):
                if _is(path, file):
                    path.unlink()
            os.close(file)


def require_held(directory: Path) -> None:
    """Looks whether the name of a directory that is held is another one's by now.

    Raises:
      TrainingFailed: the directory was moved or deleted, and another process writes the one that is
        in its place.
    """
    path = directory / NAME
    files = [file for file, name in _open.items() if name == path]
    with contextlib.suppress(OSError):
        if not files or _is(path, files[0]):
            return
        other = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingFailed(
                f'{directory}: was moved or deleted while this run was under way, and the one in '
                f'its place is in use by {_holder(other)}; nothing more is written there'
            ) from None
        finally:
            os.close(other)


def is_free(directory: Path) -> bool:
    """Whether no process writes a directory; where that cannot be told, one may."""
    try:
        file = os.open(directory / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        return error.errno == errno.ENOENT
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def _locked(path: Path) -> int:
    """The descriptor of the file, locked."""
    for _ in range(TRIES):
        try:
            # Not through a link, and without waiting for the other end of a pipe.
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise UserError(f'{path}: {error.strerror}') from None
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise UserError(f'{path}: not a regular file')
            _lock(file, path.parent)
            if _is(path, file):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # Whoever held it before has deleted it in the meantime.
    raise UserError(
        f'{path.parent}: cannot be locked (its file system does not know an open file by its name '
        'again); take a directory on another disk'
    )


def _is(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _lock(file: int, directory: Path) -> None:
    try:
        _flock(file)
    except BlockingIOError:
        raise UserError(
            f'{directory}: in use by {_holder(file)}; wait for its end, or take another directory'
        ) from None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise UserError(f'{directory}: cannot be locked ({error.strerror})') from None
        log.warning(
            '%s: its file system has no locks; see to it that no other process writes there',
            directory,
        )
    text = f'{os.getpid()} {socket.gethostname()} {time.strftime("%Y-%m-%d %H:%M:%S")}\n'
    with contextlib.suppress(OSError):  # On a full disk the name is missing, not the lock.
        os.ftruncate(file, 0)
        os.pwrite(file, text.encode(), 0)


def _flock(file: int) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(LOOK_S)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(file: int) -> str:
    """Who holds it, as far as its file says so."""
    text = os.pread(file, 200, 0).decode(errors='replace')
    match = re.fullmatch(r'(\d+) ([\w.-]+) ([\d :-]+)\n', text, re.ASCII)
    return 'process {} on {} since {}'.format(*match.groups()) if match else 'another process'


def _forget() -> None:
    """In a forked child, which may live longer than its parent and must not keep what that held."""
    while _open:
        os.close(_open.popitem()[0])


os.register_at_fork(after_in_child=_forget)
