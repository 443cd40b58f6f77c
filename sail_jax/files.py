"""Files and directories from untrusted places: bounded, regular, and where they say they are."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from sail_jax.errors import TrainingFailed, UserError, one_line


def read(path: Path, at_most: int) -> bytes:
    """The content of a regular file.

    Args:
      path: of the file, or a link to it.
      at_most: bytes.

    Raises:
      UserError: it cannot be read, is larger, or is a device, pipe or directory.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            what = ', but a directory' if stat.S_ISDIR(found.st_mode) else ''
            raise UserError(f'{path}: not a regular file{what}')
        content = b''
        if found.st_size <= at_most:
            with path.open('rb') as file:
                # Room is made for what is asked for, but not every file is as large as it says.
                content = file.read(found.st_size + 1)
                if len(content) > found.st_size:
                    content += file.read(at_most + 1 - len(content))
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from None
    except ValueError as error:  # A name that cannot be one.
        raise UserError(f'{path}: {error}') from None
    if max(found.st_size, len(content)) > at_most:
        raise UserError(f'{path}: over {at_most} bytes; at most that')
    return content


def leads_out(path: Path, directory: Path) -> bool:
    """Whether a path within a directory leads outside of it, by links or `..`.

    Raises:
      OSError, RuntimeError: it leads in a circle.
    """
    return not path.resolve().is_relative_to(directory.resolve())


ROOM = '--resume goes on once there is room'


@contextlib.contextmanager
def writing(path: Path, then: str = '') -> Iterator[None]:
    """Says in one line that the disk does not take something: it is full, or takes no more.

    Around writing and nothing else: what Orbax raises for a full disk is often a ValueError.

    Args:
      path: of what is written.
      then: what is to be done about it.

    Raises:
      TrainingFailed: instead of whatever Orbax, safetensors or the system raise.
    """
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        import jax  # Takes a second, which commands that only read need not wait.

        if isinstance(error, TimeoutError) and jax.process_count() > 1:
            raise  # Another process is gone.
        reason = getattr(error, 'strerror', None) or one_line(error)
        then = f'; {then}' if then else ''
        raise TrainingFailed(f'{path}: cannot be written ({reason}){then}') from error


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to write into that becomes `path` at the end, whole or not at all.

    Nothing that is there already is touched, and after an error nothing is left.

    Raises:
      UserError: `path` exists, or there can be no directory there.
    """
    if os.path.lexists(path):
        raise UserError(f'{path}: exists; name a new directory')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        around = tempfile.TemporaryDirectory(
            prefix=f'{path.name}.', suffix='.partial', dir=path.parent
        )
    except OSError as error:
        raise UserError(f'{path.parent}: {error.strerror}') from None
    with around as name:
        inside = Path(name) / path.name  # The one around it is closed to others.
        inside.mkdir()
        yield inside
        inside.rename(path)
