"""Rows of a `metrics.jsonl` as somebody left it: killed, edited, or damaged."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from sail_jax import files
from sail_jax.errors import UserError

MetricsRow = dict[str, float]

MetricsRows = list[list[MetricsRow]]
"""For each member of a sweep its rows of some updates, in their order; a run alone is one member.
All members have rows of the same updates."""

MAX_LINE = 2**20
"""Bytes."""
LARGEST = 3.5e38
"""What a device gives is float32; axes go no further than that."""

RENAMED = {
    f'eval/{of}{before}': f'eval/{of}{name}'
    for of in ('', 'response_')
    for before, name in (
        ('kl_policy_to_ref', 'kl_policy_to_start'),
        ('kl_ref_to_policy', 'kl_start_to_policy'),
    )
}
"""What runs of version 0.1 call their numbers, and what they are called."""


class Scanned(NamedTuple):
    """What a file has."""

    rows: list[MetricsRow]
    """In the order of their steps; null where a number is not finite."""
    damaged: list[str]
    """The lines that are no rows: their numbers, from 1, and why."""


def scan(path: Path, last: int | None = None) -> Scanned:
    """Reads all that can be read, up to a step.

    A last line without an end, of a process that was killed, is left out.

    Raises:
      UserError: no such file, no regular file, or an absurdly large one.
    """
    rows: list[MetricsRow] = []
    damaged = []
    for number, line in enumerate(files.lines(path, MAX_LINE), 1):
        if not line.strip():
            continue
        try:
            row = _row(line)
            if last is not None and row['step'] > last:
                continue
            if rows and row['step'] <= rows[-1]['step']:
                raise ValueError(f'step {row["step"]} after step {rows[-1]["step"]}')
        except (ValueError, RecursionError) as error:
            if line.endswith(b'\n') or len(line) > MAX_LINE:
                damaged.append(f'{number}: {error}')
            continue
        rows.append(row)
    return Scanned(rows, damaged)


def read_rows(path: Path) -> list[MetricsRow]:
    """Rows of a `metrics.jsonl`; a half-written last line is left out.

    Raises:
      UserError: as of `scan`; or a line that is no row.
    """
    scanned = scan(path)
    if scanned.damaged:
        raise UserError(f'{path}:{scanned.damaged[0]}; delete the line')
    return scanned.rows


def _row(line: bytes) -> MetricsRow:
    if len(line) > MAX_LINE:
        raise ValueError(f'over {MAX_LINE} bytes')
    try:
        row = json.loads(line, parse_constant=lambda _: None)
    except ValueError:
        raise ValueError('not JSON') from None
    if not isinstance(row, dict):
        raise ValueError(f'expected an object, got {type(row).__name__}')
    step = row.get('step')
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 2**63:
        raise ValueError(f'step: expected a count, got {_short(step)}')
    named: dict[str, Any] = row
    return {RENAMED.get(key, key): _number(key, value) for key, value in named.items()}


def _number(key: str, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f'{_short(key)}: expected a number, got {_short(value)}')
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if abs(value) > LARGEST:
        raise ValueError(f'{_short(key)}: {_short(value)} is too large')
    return value


def _short(value: Any) -> str:
    return ascii(value)[:60]
