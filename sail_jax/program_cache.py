"""Compiled programs are kept between processes; JAX, which keeps them, need not be imported."""

import functools
import glob
import os
import re
import warnings
from pathlib import Path
from typing import Any

from sail_jax import files, terminal

_WARNING = re.compile(
    r"Error (reading|writing) persistent compilation cache entry for '([^']+)': (.*)", re.DOTALL
)


def use() -> None:
    """Has JAX, once it is imported, keep compiled programs in the user's cache, unless
    JAX_COMPILATION_CACHE_DIR says where. Where nothing can be written it would warn of each."""
    cache = files.user_cache()
    if cache is None:
        return
    there = next(path for path in (cache, *cache.parents) if os.path.lexists(path))
    if not (os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)):
        return
    if os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache)) == str(cache):
        _replace_broken_entries(cache)


@functools.cache
def _replace_broken_entries(cache: Path) -> None:
    """What a full disk or a killed process left half written JAX would neither read nor replace,
    and warn of in every process to come. It is deleted before the program is written again."""
    others, said = warnings.showwarning, []

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        match = _WARNING.match(str(message))
        if match is None:
            others(message, *args, **kwargs)
            return
        what, name, reason = match.groups()
        for entry in cache.glob(f'{glob.escape(name)}-*'):
            entry.unlink(missing_ok=True)
        if what == 'writing' and not said:
            said.append(name)
            terminal.say(f'{cache}: compiled programs cannot be kept there: {reason}')

    warnings.showwarning = show
