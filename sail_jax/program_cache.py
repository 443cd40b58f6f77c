"""Compiled programs are kept between processes; JAX, which keeps them, need not be imported."""

import contextlib
import functools
import glob
import os
import re
import warnings
from pathlib import Path
from typing import Any

from sail_jax import files, processor, terminal

_WARNING = re.compile(
    r"Error (reading|writing) persistent compilation cache entry for '([^']+)': (.*)", re.DOTALL
)


def use() -> None:
    """Has JAX, once it is imported, keep compiled programs in the user's cache, unless
    JAX_COMPILATION_CACHE_DIR says where. JAX would take those of another processor, or of fewer
    cores, for this one's: the slow programs of a job with one core, say."""
    cache = files.user_cache()
    if cache is not None and _takes_files(cache):
        cache = cache / 'programs' / processor.kind()
        os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache))
    if used := os.environ.get('JAX_COMPILATION_CACHE_DIR'):
        _warn_once(used, own=used == str(cache))


def _takes_files(directory: Path) -> bool:
    there = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


@functools.cache
def _warn_once(directory: str, own: bool) -> None:
    """One line, where JAX warns of each program. What a full disk or a killed process left half
    written it would neither read nor replace, in every process to come.

    Args:
      own: a directory of ours; broken entries are deleted before the program is written again.
    """
    others, said = warnings.showwarning, []

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        match = _WARNING.match(str(message))
        if match is None:
            others(message, *args, **kwargs)
            return
        what, name, reason = match.groups()
        deleted = own and _delete(Path(directory), name)
        if not said and not (deleted and what == 'reading'):
            said.append(name)
            verb = 'kept' if what == 'writing' else 'read'
            terminal.say(f'{directory}: compiled programs cannot be {verb} there: {reason}')

    warnings.showwarning = show


def _delete(directory: Path, name: str) -> bool:
    """Whether a program's entries could be: another user's, who shares the cache, cannot."""
    with contextlib.suppress(OSError):
        for entry in directory.glob(f'{glob.escape(name)}-*'):
            entry.unlink(missing_ok=True)
        return True
    return False
