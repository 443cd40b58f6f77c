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


def model() -> str:
    """What its maker calls it, where the system tells; and its kind of instructions."""
    names = [line.partition(':')[2].strip() for line in _told() if line.startswith('model name')]
    return ', '.join([platform.machine(), *names[:1]])


def kind() -> str:
    """The same for two processes if what XLA compiles in one is what it would in the other: it
    compiles for the instructions of the processor and for as many cores as the process may use."""
    said = sorted({line for line in _told() if line.partition(':')[0].strip() in _COMPILED_FOR})
    digest = hashlib.sha256('\n'.join(said).encode()).hexdigest()
    return f'{platform.machine()}-{cores()}-cores-{digest[:8]}'


def _told() -> list[str]:
    try:
        return CPUINFO.read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:
        return []
