"""What runs leave: compared, read, damaged."""

from pathlib import Path

import jax
import numpy as np

from sail_jax.errors import UserError
from sail_jax.training import metrics


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def without_times(path):
    rows = metrics.read_rows(path / 'metrics.jsonl')
    return [{k: v for k, v in row.items() if k[:4] not in ('wall', 'time')} for row in rows]


def damage(directory):
    """Truncates every file of a checkpoint."""
    for path in files(directory):
        path.write_bytes(path.read_bytes()[:3])


def files(directory):
    return [path for path in sorted(directory.rglob('*')) if path.is_file()]


def flip_bits(directory):
    """One bit of every array file: what a bad disk does."""
    for path in files(directory):
        if path.parent.name == 'd':
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 4
            path.write_bytes(data)


def last_step(path: Path) -> int:
    try:
        rows = metrics.read_rows(path / 'metrics.jsonl')
    except UserError:
        return -1
    return rows[-1]['step'] if rows else -1
