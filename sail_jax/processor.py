"""The processor of this host, as a compiler sees it."""

import hashlib
import os
import platform
from pathlib import Path

CPUINFO = Path('/proc/cpuinfo')
_COMPILED_FOR = ('model name', 'flags', 'CPU implementer', 'CPU part', 'Features')


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def kind() -> str:
    """The same for two processes if what XLA compiles in one is what it would in the other: it
    compiles for the instructions of the processor and for as many cores as the process may use."""
    try:
        lines = CPUINFO.read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:
        lines = []
    said = sorted({line for line in lines if line.partition(':')[0].strip() in _COMPILED_FOR})
    digest = hashlib.sha256('\n'.join(said).encode()).hexdigest()
    return f'{platform.machine()}-{cores()}-cores-{digest[:8]}'
