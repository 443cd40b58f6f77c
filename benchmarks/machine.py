"""What figures were measured on, and where they go."""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.rounds import stopwatch
from sail_jax import processor

TAKEN = stopwatch()


def make_parser(description: str | None, *, needs_out: bool = False) -> argparse.ArgumentParser:
    """Of a benchmark: its docstring, and `--out`, where `write` puts its results."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = '' if needs_out else '; default: standard output'
    made.add_argument('--out', type=Path, required=needs_out, help=f'JSON file{default}')
    return made


def machine(module: str) -> dict[str, Any]:
    """Device, versions, date, and the command line of the benchmark `module`."""
    import jax  # Not for workers, which take options only, and may be without.

    from sail_jax.training import checkpoint

    device = jax.devices()[0]
    return {
        'device': f'{len(jax.devices())} x {device.device_kind}',
        'platform': device.platform,
        'cpu_cores': processor.cores(),
        'processor': processor.model(),
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


def write(results: dict[str, Any], out: Path | None, indent: int | None = 1) -> None:
    """As JSON into a file, or to standard output; with the minutes that the benchmark has taken.

    What takes long writes again whenever a part is done. `indent` None is for long arrays.
    """
    minutes = round(TAKEN() / 60, 1)
    text = json.dumps({**results, 'minutes': minutes}, indent=indent, ensure_ascii=False)
    if out:
        out.write_text(text + '\n', encoding='utf-8')
    else:
        print(text)
