"""Answered pairs as a file: a row a question, as JSON lines or as an ArrayRecord of the same rows.

    {"obs": [[[...], ...], [[...], ...]], "action": [[[...], ...], [[...], ...]],
     "choice": 1.0, "source": "Ann", "env_steps": 8192, "time": 1795600000.5}

`obs` and `action` have the two segments, each [T, O] and [T, A] with as many steps as happened;
`choice` is the probability that the first is better (0, 1/2 for "the same", 1), null where nobody
could tell; `source` says who answered, a person's name or the teacher's kind, `env_steps` when it
was asked; `time`, of people alone, when it was answered, in seconds since 1970.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from sail_jax import files
from sail_jax.control.reward.ensemble import Comparisons
from sail_jax.errors import UserError, one_line
from sail_jax.labels import payloads
from sail_jax.labels.store import PROB, Store
from sail_jax.training import devices

ARRAY_RECORD = '.arrayrecord'
MAX_ROW = 2**24
"""Bytes."""


class Widths(NamedTuple):
    """Entries of an observation and of an action."""

    obs: int
    action: int


def rows(
    answers: Comparisons, update_N: jax.Array | np.ndarray, source: str, env_steps_per_update: int
) -> Iterator[dict[str, Any]]:
    """The questions that a run has asked its teacher, in their order; without those of which a
    segment has no step, since the simulator broke as it began.

    Args:
      answers: on the host.
      update_N: updates after which each was asked; 0 of those that are no questions of the run.
      source: who answered.
    """
    for n in np.flatnonzero(update_N):
        yield from _row(
            (answers.obs[n], answers.action[n], answers.mask[n]),
            choice=float(answers.prob[n]) if answers.weight[n] else None,
            source=source,
            env_steps=int(update_N[n]) * env_steps_per_update,
        )


def rows_of_people(store: Store, env_steps_per_update: int) -> Iterator[dict[str, Any]]:
    """All answers that count, whether training has learned of them or not, by the number of
    question; without those that `rows` leaves out too.

    Raises:
      UserError: the store is damaged.
    """
    for answer in store.answers():
        question = store.question(answer.number)
        pair = payloads.unpack_segments(question.payload)
        yield from _row(
            (pair.obs, pair.action, pair.mask),
            choice=None if answer.choice == 'skip' else PROB[answer.choice],
            source=answer.who,
            env_steps=question.round * env_steps_per_update,
            time=answer.time,
        )


def _row(segments: tuple[Any, Any, Any], **said: Any) -> Iterator[dict[str, Any]]:
    """A row, if both segments have a step.

    Args:
      segments: `obs` [2, T, O], `action` [2, T, A], `mask` [2, T].
    """
    obs, action, mask = map(np.asarray, segments)
    steps = mask.sum(-1).astype(int)
    if steps.all():
        both = lambda x: [x[i, : steps[i]].tolist() for i in (0, 1)]
        yield {'obs': both(obs), 'action': both(action), **said}


def write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Writes a file; an ArrayRecord where its name ends so, else JSON lines.

    Raises:
      UserError: it cannot be written; what is there stays as it is.
    """
    lines = [json.dumps(row).encode() for row in rows]
    records = path.suffix == ARRAY_RECORD
    files.write(path, _array_record(lines) if records else b''.join(x + b'\n' for x in lines))


def _array_record(records: list[bytes]) -> bytes:
    """The content of a file."""
    try:
        with tempfile.TemporaryDirectory() as directory:
            part = Path(directory) / f'part{ARRAY_RECORD}'
            # A row a group, so that any of them is read by itself.
            writer = ArrayRecordWriter(str(part), 'group_size:1')
            for record in records:
                writer.write(record)
            writer.close()
            return part.read_bytes()
    except (OSError, RuntimeError) as error:  # The library's are all of the second kind.
        raise UserError(f'{ARRAY_RECORD[1:]}: cannot be written ({one_line(error)})') from None


def read(path: Path, widths: Widths) -> Comparisons:
    """Reads a file of `write`, or of anybody who writes such rows; padded to its longest segment.

    Raises:
      UserError: it cannot be read or has no answer; a row is not one, or of another environment.
    """
    with _readable(path):
        dataset = grain.MapDataset.source(_records(path)).map_with_index(
            partial(_decoded, path, widths)
        )
        read_rows: list[dict[str, Any]] = [dataset[i] for i in range(len(dataset))]  # pyright: ignore[reportAssignmentType]
    if all(row['choice'] is None for row in read_rows):
        raise UserError(f'{path}: no answers: none of its {len(read_rows)} rows has a choice')
    steps_N = [max(map(len, row['obs'])) for row in read_rows]
    N, T = len(read_rows), max(steps_N)
    devices.require_memory(
        N * 2 * T * (widths.obs + widths.action + 1) * 4,
        f'{path}: {N} pairs as long as the longest (row {steps_N.index(T) + 1}: {T} steps)',
    )
    obs = np.zeros((N, 2, T, widths.obs), np.float32)
    action = np.zeros((N, 2, T, widths.action), np.float32)
    mask = np.zeros((N, 2, T), np.float32)
    for n, row in enumerate(read_rows):
        for i in (0, 1):
            steps = len(row['obs'][i])
            obs[n, i, :steps], action[n, i, :steps] = row['obs'][i], row['action'][i]
            mask[n, i, :steps] = 1
    told = [row['choice'] for row in read_rows]
    numbers: tuple[Any, ...] = obs, action, mask
    prob: Any = np.asarray([0.5 if choice is None else choice for choice in told], np.float32)
    weight: Any = np.asarray([choice is not None for choice in told], np.float32)
    return Comparisons(*numbers, prob=prob, weight=weight)


def _records(path: Path) -> Any:
    """A sequence of bytes."""
    files.check(path)
    if path.suffix == ARRAY_RECORD:
        return grain.sources.ArrayRecordDataSource(str(path))
    return [line for line in files.lines(path, MAX_ROW) if line.strip()]


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever a library in C++ says of the damage that it happens to hit, a record's too."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = one_line(error) or type(error).__name__
        raise UserError(f'{path}: cannot be read ({why})') from None


def _decoded(path: Path, widths: Widths, index: int, record: bytes) -> dict[str, Any]:
    """A row with its arrays."""
    where = f'{path}:{index + 1}'
    try:
        row = json.loads(record)
    except (ValueError, RecursionError):
        raise UserError(f'{where}: not JSON') from None
    if not isinstance(row, dict):
        raise UserError(f'{where}: expected an object, got {type(row).__name__}')
    obs = _segments(where, row, 'obs', widths.obs)
    action = _segments(where, row, 'action', widths.action)
    if any(len(a) != len(b) for a, b in zip(obs, action, strict=True)):
        raise UserError(f'{where}: action: as many steps as obs are needed')
    if 'choice' not in row:
        raise UserError(f'{where}: choice: missing; null where nobody could tell')
    choice = row['choice']
    number = isinstance(choice, int | float) and not isinstance(choice, bool)
    if choice is not None and not (number and 0 <= choice <= 1):
        raise UserError(f'{where}: choice: should be null or from 0 to 1, got {choice!r:.40}')
    return {'obs': obs, 'action': action, 'choice': choice}


def _segments(where: str, row: dict[str, Any], key: str, width: int) -> list[np.ndarray]:
    both = row.get(key)
    if not isinstance(both, list) or len(both) != 2:
        raise UserError(f'{where}: {key}: expected two segments')
    try:
        with np.errstate(over='ignore'):  # Infinity, which is refused.
            arrays = [np.asarray(segment, np.float32) for segment in both]
    except (ValueError, TypeError, OverflowError):
        raise UserError(f'{where}: {key}: expected rows of numbers, all of one length') from None
    for array in arrays:
        if array.ndim != 2 or not len(array) or array.shape[1] != width:
            raise UserError(
                f'{where}: {key}: a segment of shape {array.shape}; this environment needs '
                f'(steps, {width})'
            )
        if not np.isfinite(array).all():
            raise UserError(f'{where}: {key}: NaN or infinity')
    return arrays
