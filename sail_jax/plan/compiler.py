"""Programs compiled for a target that is not there; what came of each is kept in the user's cache,
since a compile takes minutes."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import math
import os
import re
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax

from sail_jax import files
from sail_jax.errors import one_line
from sail_jax.plan import roofline
from sail_jax.plan.hlo import SourceLine
from sail_jax.plan.targets import Target
from sail_jax.training import checkpoint
from sail_jax.training.program import Program

COMPILERS = ('jaxlib', 'libtpu', 'jax-cuda12-plugin', 'jax-cuda13-plugin')
FLAGS = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')
SIZES = {
    'arguments': 'argument',
    'outputs': 'output',
    'aliased': 'alias',
    'temporaries': 'temp',
    'code': 'generated_code',
}
"""Of a program's memory, and what XLA calls them."""
MAX_ENTRY = 2**30
"""Bytes of a cached result."""
TAKES = 'takes'
"""How the complaint begins that memory is not enough."""
FULL = re.compile(
    r'Used ([\d.]+\w) of ([\d.]+\w) hbm'
    r'|required for HLO temporaries \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)'
)
"""How libtpu says so: of a program that it has laid out, and of one of which it need not."""
FORM = 1
"""Of the cached results; another one makes them new."""


class Compiled(NamedTuple):
    """What the compiler made of a program."""

    text: str
    """`Compiled.as_text()`; '' where it does not compile."""
    memory: dict[str, int]
    """Bytes of a device, see `SIZES`."""
    error: str
    """Why it does not compile, in one line; '' where it does."""
    seconds: float
    """That it took when it was compiled."""


def versions() -> dict[str, str]:
    """What compiles, and what is compiled."""
    found = {}
    for name in COMPILERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return checkpoint.versions() | found


def compile(program: Program, target: Target) -> Compiled:
    """Compiles a program for its devices, or finds it compiled before.

    Lines of source are those of when it was compiled: a change that moves lines and leaves the
    program makes nothing new.
    """
    lowered = program.function.lower(*program.arguments)
    cache = files.user_cache()
    if cache is None:
        return _compile(lowered)
    entry = cache / 'plan' / f'{_key(lowered.as_text(), target)}.json.gz'
    if (kept := _read(entry)) is not None:
        return kept
    compiled = _compile(lowered)
    # What else fails may be this host's fault: a full /tmp, an assembler that was killed.
    if not compiled.error or compiled.error.startswith(TAKES):
        _write(entry, compiled)
    return compiled


def _key(text: str, target: Target) -> str:
    said = [str(FORM), text, str(target), *(os.environ.get(name, '') for name in FLAGS)]
    said += [f'{name} {version}' for name, version in versions().items() if name in COMPILERS]
    return hashlib.sha256('\0'.join(said).encode()).hexdigest()


def _compile(lowered: jax.stages.Lowered) -> Compiled:
    began = time.monotonic()
    # JAX's own cache cannot read a program back without its device.
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update('jax_enable_compilation_cache', False)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return Compiled('', {}, explained(str(error)), time.monotonic() - began)
    finally:
        jax.config.update('jax_enable_compilation_cache', before)
    memory = compiled.memory_analysis()
    sizes = {name: getattr(memory, f'{key}_size_in_bytes') for name, key in SIZES.items()}
    return Compiled(compiled.as_text() or '', sizes, '', time.monotonic() - began)


def explained(said: str) -> str:
    """The compiler's complaint in one line, with JAX's name of the operation and our line of source
    where it names them."""
    if full := FULL.search(said):
        taken, memory = filter(None, full.groups())
        return f'{TAKES} {taken} of a memory of {memory}'
    operation = re.search(r'op_name="([^"]+)"', said)
    stack = re.findall(r'^ +(/\S+?):(\d+):\d+ \[(.*?)\]', said, re.MULTILINE)
    lines = [SourceLine(file, int(line), function) for file, line, function in stack]
    name = operation[1].rpartition('/')[2] if operation else ''
    where = [x for x in (name, roofline.source(lines)) if x]
    return one_line(said) + (f' ({", ".join(where)})' if where else '')


def _read(entry: Path) -> Compiled | None:
    try:
        kept = Compiled(**json.loads(gzip.decompress(files.read(entry, MAX_ENTRY))))
        return kept if _is_sound(kept) else None
    except Exception:  # Not there, damaged or edited: it is made again.
        return None


def _is_sound(kept: Compiled) -> bool:
    """Whether the parts are what `compile` made them; anything may stand in a file."""
    sizes = kept.memory.items()
    return (
        isinstance(kept.text, str)
        and isinstance(kept.error, str)
        and all(name in SIZES and type(n) is int and n >= 0 for name, n in sizes)
        and math.isfinite(kept.seconds)
    )


def _write(entry: Path, compiled: Compiled) -> None:
    """A full or read-only disk costs the next run its time, and no more."""
    part = entry.with_name(f'{entry.name}.{os.getpid()}')
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(gzip.compress(json.dumps(compiled._asdict()).encode(), 3))
        part.replace(entry)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
