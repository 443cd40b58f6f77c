"""Files and directories from untrusted places: bounded, regular, and where they say they are."""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from sail_jax.errors import TrainingFailed, UserError, one_line
from sail_jax.training import signals

HEAD = 512
"""Bytes that tell what was saved in a file's place."""
BLOCK, MAX_DIGESTED = 2**18, 2**25
"""Bytes."""
DIGITS = 16
"""Hexadecimal, of a digest."""
MAX_JSON = 2**24
"""Bytes of a JSON file that describes others."""
MAX_LINES = 2**34
"""Bytes of a file that is read line by line."""


def user_cache() -> Path | None:
    """Where the user keeps what can be made again; None without a home, or where XDG_CACHE_HOME is
    not absolute."""
    home = Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'))
    return home / 'sail_jax' if home.is_absolute() else None


def named(path: Any, argument: str) -> Path:
    """A file or directory as Python names it.

    Raises:
      UserError: by something else than a path; what this is.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f'{argument}: expected a path, got {type(path).__name__}')
    return Path(path)


def read(path: Path, at_most: int) -> bytes:
    """The content of a regular file.

    Args:
      path: of the file, or a link to it.
      at_most: bytes.

    Raises:
      UserError: it cannot be read, is larger, or is a device, pipe or directory.
    """
    try:
        status = _regular(path)
        content = b''
        if status.st_size <= at_most:
            with path.open('rb') as file:
                # Room is made for what is asked for, but not every file is as large as it says.
                content = file.read(status.st_size + 1)
                if len(content) > status.st_size:
                    content += file.read(at_most + 1 - len(content))
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from None
    except ValueError as error:  # A name that cannot be one.
        raise UserError(f'{path}: {error}') from None
    if max(status.st_size, len(content)) > at_most:
        raise UserError(f'{path}: over {at_most} bytes; at most that')
    _refuse_stand_in(path, content[:HEAD])
    return content


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
      UserError: if it cannot be read, is absurdly large, or is no object.
    """
    content = read(path, MAX_JSON)
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path}: not valid JSON: {error}') from None
    if not isinstance(data, dict):
        raise UserError(f'{path}: expected a JSON object, got {type(data).__name__}')
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """A JSON file, indented as Hugging Face's are."""
    path.write_text(json.dumps(data, indent=2) + '\n', encoding='utf-8')


def write_tensors(path: Path, tensors: dict[str, Any]) -> None:
    """A safetensors file, as Hugging Face's are.

    The library writes it for its owner alone; here who may read the directory may read it too.
    """
    from safetensors.numpy import save_file  # Imports NumPy, which commands that refuse need not.

    save_file(tensors, path, metadata={'format': 'pt'})
    path.chmod(path.parent.stat().st_mode & 0o666)


def lines(path: Path, at_most: int) -> Iterator[bytes]:
    """The lines of a regular file, with their ends.

    Args:
      path: of the file, or a link to it.
      at_most: bytes of a line; of a longer one only its first `at_most + 1` are given.

    Raises:
      UserError: as of `read`; or of `MAX_LINES` bytes and more.
    """
    try:
        if _regular(path).st_size > MAX_LINES:
            raise UserError(f'{path}: over {MAX_LINES} bytes; at most that')
        with path.open('rb') as file:
            yield from bounded_lines(file, at_most)
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from None


def bounded_lines(file: IO[bytes], at_most: int) -> Iterator[bytes]:
    """The lines of an open file, as `lines` gives them."""
    while line := file.readline(at_most + 1):
        yield line
        while not line.endswith(b'\n') and (line := file.readline(at_most + 1)):
            pass


def make_directory(path: Path) -> None:
    """With those above it, unless they are there.

    Raises:
      UserError: it begins with `~`, which means a home directory to shells alone; the current
        directory is gone.
      OSError: it cannot be made.
    """
    absolute(path)
    path.mkdir(parents=True, exist_ok=True)


def _refuse_tilde(path: Path) -> None:
    if (meant := os.path.expanduser(path)) != os.fspath(path):
        raise UserError(f'{path}: only a shell reads ~ as a home directory; write {meant}')


def write(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all, and makes its directory; a file that is there stays until
    then. A device, a link and a file in a directory that takes no other are written as it comes.

    Raises:
      UserError: it cannot be written; what is there stays as it is.
    """
    try:
        make_directory(path.parent)
        old = path.lstat() if os.path.lexists(path) else None
        plain = old and stat.S_ISREG(old.st_mode) and old.st_nlink == 1
        if old and not (plain and os.access(path.parent, os.W_OK)):
            with path.open('wb', buffering=0) as file:
                while content:
                    content = content[file.write(content) :]
            return
        if old:
            path.open('r+b').close()  # Where it is not to be written, it is not replaced either.
        with temporary_directory(path.parent, prefix='.', suffix='.partial') as beside:
            part = beside / 'whole'
            part.write_bytes(content)
            if old:
                part.chmod(stat.S_IMODE(old.st_mode))
            part.replace(path)
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from None


def require_regular(directory: Path) -> None:
    """Refuses what is neither file nor directory, or may not be read, before somebody's code opens
    all that is there.

    Raises:
      UserError: a pipe or a device, which to open could wait for ever; another user's.
    """

    def stop(error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise error

    with reading(directory):
        for parent, _, names in os.walk(directory, onerror=stop):
            for path in (Path(parent, name) for name in names):
                if path.exists():
                    _regular(path)
                    if not os.access(path, os.R_OK):
                        raise UserError(f'{path}: {os.strerror(errno.EACCES)}')


def check(path: Path) -> None:
    """Refuses what a library should not open, which would wait for a pipe.

    Raises:
      UserError: it cannot be read, or is a device, pipe or directory; something else was saved in
        its place.
    """
    try:
        _regular(path)
        with path.open('rb') as file:
            head = file.read(HEAD)
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from None
    except ValueError as error:
        raise UserError(f'{path}: {error}') from None
    _refuse_stand_in(path, head)


def digest(path: Path, whole: bool = False) -> str:
    """SHA-256 of a regular file; of one over `MAX_DIGESTED` bytes, of its size and of blocks that
    are spread evenly over it, its first and last bytes included.

    Args:
      whole: read all of it whatever its size.

    Raises:
      UserError: as of `check`.
    """
    check(path)
    try:
        with path.open('rb') as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if whole or size <= MAX_DIGESTED:
                return hashlib.file_digest(file, 'sha256').hexdigest()[:DIGITS]
            sampled = hashlib.sha256(str(size).encode())
            blocks = MAX_DIGESTED // BLOCK
            for i in range(blocks):
                file.seek(i * (size - BLOCK) // (blocks - 1))
                sampled.update(file.read(BLOCK))
            return sampled.hexdigest()[:DIGITS]
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from None


def _regular(path: Path) -> os.stat_result:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        what = ', but a directory' if stat.S_ISDIR(status.st_mode) else ''
        raise UserError(f'{path}: not a regular file{what}')
    return status


def _refuse_stand_in(path: Path, head: bytes) -> None:
    if head.startswith(b'version https://git-lfs.github.com/spec/'):
        raise UserError(
            f'{path}: a Git LFS pointer in the place of the file; `git lfs pull` fetches it'
        )
    if head.removeprefix(b'\xef\xbb\xbf').lstrip().lower().startswith((b'<!doctype', b'<html')):
        raise UserError(f'{path}: an HTML page in the place of the file; download it again')


def exists(path: Path) -> bool:
    """Whether there is something of that name.

    Raises:
      UserError: it is too long to be a name, or lies where we must not look.
    """
    try:
        return path.exists()
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from None


def leads_out(path: Path, directory: Path) -> bool:
    """Whether a path within a directory leads outside of it, by links or `..`.

    Raises:
      OSError: it leads in a circle.
    """
    try:
        end = path.resolve()
    except RuntimeError:  # Up to Python 3.12 a circle is one.
        end = path
    if end.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return not end.is_relative_to(directory.resolve())


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
def reading(path: Path) -> Iterator[None]:
    """Says in one line that the system does not let something be read.

    Args:
      path: of what is read, where the system does not name it.

    Raises:
      UserError: instead of the system's own error.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f'{error.filename or path}: {error.strerror or one_line(error)}') from None


def absolute(path: Path) -> Path:
    """The same place whatever the current directory is later.

    Raises:
      UserError: there is no current directory; or as of `make_directory`.
    """
    _refuse_tilde(path)
    try:
        return path.absolute()
    except OSError as error:
        raise UserError(f'{path}: the current directory is gone ({error.strerror})') from None


def check_checkpoint_path(path: Path) -> None:
    """Refuses a directory whose checkpoints would be lost.

    Orbax merges what processes wrote by a glob over the whole path, which then finds nothing, or
    another directory's, and takes `gs:` for a bucket.

    Raises:
      UserError: naming what is wrong with the path.
    """
    whole = str(absolute(path))
    if pattern := re.search(r'[][*?\\]', whole):
        raise UserError(
            f'{path}: {pattern[0]!r} in the path ({whole}): checkpoints written there could not be '
            'read again; name a directory without any of [ ] * ? \\'
        )
    if scheme := re.search(r'(?:^|/)([a-z][a-z0-9+-]+):/', f'{whole}/'):
        raise UserError(f'{path}: {scheme[1]}: is no local directory; name one on this host')


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to write into that becomes `path` at the end, whole or not at all.

    Nothing that is there already is touched, and after an error nothing is left.

    Raises:
      UserError: `path` exists, or there can be no directory there.
    """
    if os.path.lexists(path):
        raise UserError(f'{path}: exists; name a new directory')
    with contextlib.ExitStack() as stack:
        try:
            make_directory(path.parent)
            around = temporary_directory(path.parent, prefix=f'{path.name}.', suffix='.partial')
            inside = stack.enter_context(around) / path.name  # That one is closed to others.
            inside.mkdir()
        except OSError as error:
            raise UserError(f'{path.parent}: {error.strerror}') from None
        yield inside
        inside.rename(path)


@contextlib.contextmanager
def temporary_directory(within: Path, prefix: str, suffix: str = '') -> Iterator[Path]:
    """A directory that is gone afterwards, also where a signal ends the process (not SIGKILL)."""
    with (
        signals.clearing_away(),
        tempfile.TemporaryDirectory(prefix=prefix, suffix=suffix, dir=within) as name,
    ):
        yield Path(name)
