"""Preference data: files to ArrayRecord by tensorflow-datasets, read back by row number.

Rows are checked once, when the records are made, so that a row number always means the same row
and a cursor, one integer, says how far a run has come through them.
"""

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np

from sail_jax.errors import UserError
from sail_jax.language.config import Data
from sail_jax.language.data import records, rows, sources
from sail_jax.language.data.records import PreferenceRecords
from sail_jax.language.data.rows import DataRow, RowType
from sail_jax.language.data.tokens import Tokenizer

log = logging.getLogger(__name__)


class Example(NamedTuple):
    """A row as token ids."""

    row: DataRow
    prompt: list[int]
    chosen: list[int] | None
    rejected: list[int] | None


@dataclass(frozen=True)
class Dataset:
    """Rows by number."""

    source: Any
    """Stored rows: a sequence."""
    encode: Callable[[DataRow], Example]
    skipped: int
    """Bad rows that were left out."""
    skipped_messages: tuple[str, ...]
    """What was wrong with the first of them."""
    unread: tuple[str, ...]
    """What rows say that nothing here reads, see `rows.unread`; the first few names."""
    directory: Path
    """Of the stored rows."""

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        with records.damage_named(self.directory):
            stored = self.source[int(index)]
        return self.encode(records.from_stored(stored))


def has_pairs(data: Data) -> bool:
    """Whether the first row that can be read has a chosen and a rejected response.

    Raises:
      UserError: no such data.
    """
    convert = rows.FORMATS[data.format].convert
    for file in sources.find(data.path, data.split):
        for located in sources.read(file):
            with contextlib.suppress(UserError):
                return convert(located.load()).rejected is not None
    return False


def encode_comparison(data: Data, tokenizer: Tokenizer, row: DataRow) -> Example:
    """Token ids of a checked row as a reward model reads it: `chosen` and `rejected` are whole
    texts, prompt included, and `prompt` is empty.

    Raises:
      UserError: as of `encode`; the limit is that of a prompt and a response together.
    """
    whole, most = [], data.max_prompt_tokens + data.max_response_tokens
    for name, text in (('chosen', row.chosen), ('rejected', row.rejected)):
        assert text is not None  # See `rows.check`.
        try:
            ids = tokenizer.scored_ids(row.prompt, text)
        except UserError as error:
            raise UserError(f'{name}: {error}') from None
        _check_length(f'{name}, with its prompt', ids, most)
        whole.append(ids)
    if whole[0] == whole[1]:
        raise UserError('chosen and rejected are the same in tokens')
    return Example(row, [], *whole)


def encode(data: Data, tokenizer: Tokenizer, row: DataRow) -> Example:
    """Token ids of a checked row. Of a text, the first is what the others follow.

    Raises:
      UserError: a prompt or response with too many tokens, responses that are the same in tokens,
        or what the tokeniser refuses.
    """
    if row.is_text and row.chosen is not None:
        ids = tokenizer.text_ids(row.chosen)
        _check_length('text', ids, data.max_prompt_tokens + data.max_response_tokens)
        return Example(row, prompt=ids[:1], chosen=ids[1:], rejected=None)
    prompt = tokenizer.prompt_ids(row.prompt)
    _check_length('prompt', prompt, data.max_prompt_tokens)
    responses: dict[str, list[int] | None] = {}
    for name in ('chosen', 'rejected'):
        responses[name] = None
        if (text := getattr(row, name)) is None:
            continue
        try:
            ids = responses[name] = tokenizer.response_ids(row.prompt, text)
        except UserError as error:
            raise UserError(f'{name}: {error}') from None
        _check_length(name, ids, data.max_response_tokens)
    if row.rejected is not None and responses['chosen'] == responses['rejected']:
        raise UserError('chosen and rejected are the same in tokens')
    return Example(row, prompt, **responses)


def prepare(data: Data, row_type: RowType, tokenizer: Tokenizer, cache: str | Path) -> Dataset:
    """Makes the ArrayRecord files, or finds them made.

    They are kept under a digest of the data, the tokeniser and the settings, so a change of any of
    these makes new ones.

    Args:
      data: which rows.
      row_type: what is needed of each row.
      tokenizer: whose ids the limits count.
      cache: directory for the files.

    Raises:
      UserError: no such data, a damaged file, no usable row; with `on_bad_row: error`, a bad row,
        by file and line.
    """
    files = sources.find(data.path, data.split)
    directory = Path(cache) / _digest(data, row_type, tokenizer, files)
    compared = row_type == 'comparison'
    encode_row = functools.partial(encode_comparison if compared else encode, data, tokenizer)
    columns = rows.FORMATS[data.format].columns
    columns = columns | {rows.MARGIN} if compared else columns

    def checked(raw: dict[str, Any]) -> DataRow:
        row = _convert(data, row_type, raw)
        encode_row(row)
        return row

    def builder() -> PreferenceRecords:
        return PreferenceRecords(
            data_dir=directory,
            file_format='array_record',
            files=files,
            checked=checked,
            unread=functools.partial(rows.unread, columns=columns),
            skip=data.on_bad_row == 'skip',
        )

    stored, metadata = records.made(builder, directory)
    dataset = Dataset(
        source=stored.as_data_source('train'),
        encode=encode_row,
        skipped=metadata.get('skipped', 0),
        skipped_messages=tuple(metadata.get('messages', ())),
        unread=tuple(metadata.get('unread', ())),
        directory=directory,
    )
    with records.damage_named(directory):
        len(dataset)  # The first time that the records are opened.
    _warn(data.path, dataset, sources.missing_shards(files))
    return dataset


def _convert(data: Data, row_type: RowType, raw: dict[str, Any]) -> DataRow:
    """A file's row as `rows` has it, checked."""
    try:
        row = rows.check(rows.FORMATS[data.format].convert(raw), row_type)
    except rows.Missing as error:
        names = ', '.join(map(str, raw)) or 'none'
        raise UserError(f'{error}; the columns are {names:.200}') from None
    return row._replace(margin=rows.margin(raw)) if row_type == 'comparison' else row


def _warn(path: str, dataset: Dataset, missing_shards: list[str]) -> None:
    """Names what of the data is not used, or not there."""
    if dataset.unread:
        log.warning(
            '%s: not read: %s (columns of the data, and keys of their messages)',
            path,
            ', '.join(dataset.unread),
        )
    if missing_shards:
        log.warning(
            '%s: shards that are not there: %d, %s the first',
            path,
            len(missing_shards),
            missing_shards[0],
        )
    if dataset.skipped:
        log.warning(
            '%s: %d bad rows skipped, %d kept; the first: %s',
            path,
            dataset.skipped,
            len(dataset),
            dataset.skipped_messages[0],
        )


def indices(seed: int, cursor: int, count: int, size: int) -> np.ndarray:
    """The rows that a run reads when it has read `cursor` rows: `count` numbers below `size`.

    Every epoch is an order of its own, computed in place: nothing but the cursor is to be kept, and
    how a run is cut into batches does not matter.

    Args:
      seed: of the orders.
      cursor: rows read so far, from 0, over all epochs.
      count: rows to read.
      size: rows of the data set.
    """
    order = _order(seed, size)
    return np.asarray([order[i] for i in range(cursor, cursor + count)], np.int64)


def _check_length(name: str, ids: list[int], most: int) -> None:
    if len(ids) > most:
        raise UserError(f'{name}: {len(ids)} tokens; at most {most}')


def _digest(data: Data, row_type: RowType, tokenizer: Tokenizer, files: list[Path]) -> str:
    """Of everything that the records depend on, where the data lie excepted."""
    settings = data.model_dump(exclude={'path', 'split'})
    whole = hashlib.sha256(json.dumps([settings, row_type, tokenizer.digest]).encode())
    for file in files:
        try:
            with file.open('rb') as stream:
                whole.update(hashlib.file_digest(stream, 'sha256').digest())
        except OSError as error:
            raise UserError(f'{file}: {error.strerror}') from None
    return whole.hexdigest()[:16]


@functools.lru_cache(8)
def _order(seed: int, size: int) -> grain.MapDataset:
    return grain.MapDataset.range(size).seed(seed).shuffle().repeat()
