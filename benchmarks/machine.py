"""What figures were measured on, and where they go."""

import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import jax

from sail_jax.training import checkpoint


def machine(module: str) -> dict[str, Any]:
    """Device, versions, date, and the command line of the benchmark `module`."""
    device = jax.devices()[0]
    return {
        'device': f'{len(jax.devices())} x {device.device_kind}',
        'platform': device.platform,
        'cpu_cores': os.cpu_count(),
        'processor': _processor(),
        'versions': checkpoint.versions(),
        'date': time.strftime('%Y-%m-%d'),
        'command': shlex.join(['python', '-m', module, *map(_relative, sys.argv[1:])]),
    }


def _relative(argument: str) -> str:
    """An argument that names no place of this machine's own."""
    option, equals, value = argument.rpartition('=')
    if not Path(value).is_absolute():
        return argument
    path = Path(value)
    here = Path.cwd()
    value = str(path.relative_to(here)) if path.is_relative_to(here) else path.name
    return f'{option}{equals}{value}'


def write(results: dict[str, Any], out: Path | None) -> None:
    """As JSON into a file, or to standard output."""
    text = json.dumps(results, indent=2)
    if out:
        out.write_text(text + '\n')
    else:
        print(text)


def _processor() -> str:
    """The model, where the system tells."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return f'{platform.machine()}, {models[0]}' if models else platform.machine()
