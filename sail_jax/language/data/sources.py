"""Rows out of files: JSON, Parquet, and the directories that Hugging Face's tools write."""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfoNotFoundError

import pyarrow as pa
import pyarrow.parquet as pq

from sail_jax import files, hub
from sail_jax.errors import UserError, one_line
from sail_jax.language.data import card
from sail_jax.terminal import shown

MAX_LINE = 2**24
"""Bytes of one row."""
MAX_ROW_GROUP = 2**33
"""Bytes of a Parquet row group, which is read at once."""
MAX_ENTRIES = 100_000
"""Of a directory, all levels together."""
MAX_ARRAY = 2**28
"""Bytes of a JSON array, which is read at once."""
SUFFIXES = ('.jsonl', '.jsonl.gz', '.json', '.json.gz', '.parquet', '.arrow')
NOT_ROWS = ('dataset_info.json', 'dataset_infos.json', 'dataset_dict.json', 'state.json')
"""What Hugging Face's tools write beside the rows."""
OTHER_SPLITS = ('test', 'testing', 'eval', 'evaluation', 'val', 'valid', 'validation', 'dev')
SPLITS = ('train', *OTHER_SPLITS)
BYTE_ORDER_MARK = b'\xef\xbb\xbf'
GZIP, ARROW_FILE = b'\x1f\x8b', b'ARROW1'
"""What files of these formats begin with; an Arrow stream has no such mark."""
NOT_JSON = {
    b'BZh': 'bzip2',
    b'\xfd7zXZ': 'xz',
    b'(\xb5/\xfd': 'zstandard',
    b'PK\x03\x04': 'a zip archive',
    GZIP: 'gzip in gzip',
    b'PAR1': 'Parquet',
    ARROW_FILE: 'Arrow',
}
"""What else a file may be that is called, or unpacks to, one of JSON, by its beginning."""

_SHARD = re.compile(r'(.*?)-(\d{5})-of-(\d{5})\b.*')
"""A name of which the file is a part, the part's number, and of how many."""

_KEPT = re.compile(r'cache-[0-9a-f]{16}[._].*')
"""What `map` and `filter` of `datasets` leave beside the rows that they were given."""


class Located(NamedTuple):
    """A row that is not decoded yet."""

    where: str
    """File and line, or row of a Parquet file; from 1."""
    load: Callable[[], dict[str, Any]]
    """Raises `UserError` if this row is damaged."""


def find(path: str | Path, split: str) -> list[Path]:
    """The files of a data set, in order.

    Args:
      path: a data set on the hub, `hf://owner/name`; a file; or a directory as
        `Dataset.save_to_disk` writes it, or as it lies on the hub, where a split's files are named
        after it (`train.jsonl`, `train-00000-of-00002.parquet`) or lie in a directory of its name,
        or its README.md names them. Files that are of no split are of `train`. Its subsets are
        taken together.
      split: of a directory.

    Raises:
      UserError: nothing there; not a format that is read, or no regular file; a name or link that
        leads out of the directory; a directory too large to be a data set; two files that by their
        names hold the same rows; a saved data set without this split.
    """
    path = hub.local(path, hub.DATA, 'dataset')
    root = hub.cache_root(path)
    try:
        if not path.is_dir():
            files.check(path)
            _check_format(path)
            return [path]
        of_split = _list(path, split)
        for file in of_split:
            _check_format(file)
            if files.leads_out(file, root):
                raise UserError(f'{file}: leads out of {path}; copy the data set without links')
            files.check(file)
    except OSError as error:
        raise UserError(f'{error.filename or path}: {error.strerror}') from None
    if not of_split:
        raise UserError(f'{path}: no file of split {split!r} ({", ".join(SUFFIXES)})')
    _require_once(of_split, path)
    return of_split


def missing_shards(files: Iterable[Path]) -> list[str]:
    """What `NAME-00000-of-00003` and the like lack of the others that they tell of."""
    there: dict[tuple[Path, int], set[int]] = {}
    for file in files:
        if shard := _SHARD.fullmatch(file.name):
            name, number, total = shard.groups()
            there.setdefault((file.parent / name, int(total)), set()).add(int(number))
    return [
        f'{name}-{number:05}-of-{total:05}'
        for (name, total), numbers in there.items()
        for number in range(total)
        if number not in numbers
    ]


def _require_once(files: list[Path], path: Path) -> None:
    """Refuses what conversions and repeated uploads leave behind: the rows once more, in another
    format or in another number of shards."""
    said: dict[tuple, tuple[Any, Path]] = {}
    for file in files:
        stem, _, ending = file.name.removesuffix('.gz').rpartition('.')
        facts = {(): ending.removesuffix('l'), (file.parent, stem): file}
        if shard := _SHARD.fullmatch(stem):
            name, number, total = shard.groups()
            facts |= {(file.parent, name): total, (file.parent, name, number): file}
        for key, fact in facts.items():
            earlier, first = said.setdefault(key, (fact, file))
            if earlier != fact:
                both = f'{first.relative_to(path)} and {file.relative_to(path)}'
                raise UserError(
                    f'{path}: {both} would be read as one split, and by their names hold the same '
                    'rows; take one of the two away, or name a file'
                )


def read(file: Path) -> Iterator[Located]:
    """The rows of a file of `find`.

    Raises:
      UserError: while iterating, if the file as a whole is damaged.
    """
    try:
        if file.suffix == '.parquet':
            yield from _parquet(file)
        elif file.suffix == '.arrow':
            yield from _arrow(file)
        else:
            with _opened(file) as stream:
                yield from _json_rows(file, stream)
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        reason = one_line(error)
        raise UserError(f'{file}: cannot be read: {reason}') from None


def _opened(file: Path) -> Any:
    """Unpacked where it is packed, whatever its name says: tools that load files unpack some."""
    with file.open('rb') as stream:
        packed = stream.read(len(GZIP)) == GZIP
    return gzip.open(file) if packed else file.open('rb')


def _check_format(file: Path) -> None:
    if not file.name.endswith(SUFFIXES):
        raise UserError(f'{file}: not a format that is read; supported: {", ".join(SUFFIXES)}')


def _list(path: Path, split: str) -> list[Path]:
    """The files of a directory's split, not checked."""
    for saved in (path / split, path):
        if (saved / 'state.json').is_file():
            return _saved(saved)
    if (path / 'dataset_dict.json').is_file():
        there = sorted(state.parent.name for state in path.glob('*/state.json'))
        raise UserError(f'{path}: no split {split!r}; there are {shown(", ".join(there), 200)}')
    entries = list(islice(path.rglob('*'), MAX_ENTRIES + 1))
    if len(entries) > MAX_ENTRIES:
        raise UserError(f"{path}: over {MAX_ENTRIES} files; name the data set's own directory")
    named = card.split_files(path, split)
    if named is not None:
        return named
    rows = [file for file in entries if _holds_rows(file.relative_to(path))]
    of_split = [file for file in rows if _in_split(file.relative_to(path), split)]
    if split == 'train' and not of_split:
        of_another = [file for file in rows if _of_another_split(file.relative_to(path))]
        of_split = [] if of_another else rows
    if rows and not of_split:
        there = ', '.join(sorted(str(file.relative_to(path)) for file in rows))
        raise UserError(f'{path}: no file of split {split!r}; there are {shown(there, 200)}')
    return sorted(of_split)


def _saved(path: Path) -> list[Path]:
    """The files that a `state.json` lists."""
    state = path / 'state.json'
    entries = files.read_json(state).get('_data_files')
    if not isinstance(entries, list):
        raise UserError(f'{state}: _data_files: expected a list')
    names = [entry.get('filename') if isinstance(entry, dict) else None for entry in entries]
    saved = []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith('.arrow'):
            raise UserError(
                f'{state}: _data_files: {name!r:.80}: expected an .arrow file of this directory'
            )
        saved.append(path / name)
    return saved


def _holds_rows(file: Path) -> bool:
    hidden = any(part.startswith('.') for part in file.parts)
    other = file.name in NOT_ROWS or _KEPT.fullmatch(file.name)
    return file.name.endswith(SUFFIXES) and not other and not hidden


def _in_split(file: Path, split: str) -> bool:
    """Whether its name begins with the split's, which a mark or number ends; or, as `datasets`
    reads names, has one that is usual for a split after another word. `train_sft` is another split
    than `train`, as `train_1k` is; `train_1` is a part of it. So are names of directories read,
    where the file's own says no split."""
    before = r'(.*[-._ \d])?' if split in SPLITS else ''
    named = re.compile(rf'{before}{re.escape(split)}(_?\d+)?([-. ].*)?', re.DOTALL)
    if named.fullmatch(file.name) or split in file.parts[:-1]:
        return True
    return not _words(file.name) & {*SPLITS} and any(map(named.fullmatch, file.parts[:-1]))


def _of_another_split(file: Path) -> bool:
    return not _words(str(file)).isdisjoint(OTHER_SPLITS) or file.name.startswith('train_')


def _words(name: str) -> set[str]:
    return {*re.split(r'[^a-z]+', name.lower())}


def _json_rows(file: Path, stream: Any) -> Iterator[Located]:
    """Of JSON lines, or of one array, whatever the file is called."""
    start = stream.peek(64)[:64]
    for mark, what in NOT_JSON.items():
        if start.startswith(mark):
            raise UserError(f'{file}: {what}, no JSON; unpack it, or name it after what it is')
    start = start.removeprefix(BYTE_ORDER_MARK).lstrip()
    return _array(file, stream) if start.startswith(b'[') else _lines(file, stream)


def _array(file: Path, stream: Any) -> Iterator[Located]:
    content = stream.read(MAX_ARRAY + 1)
    if len(content) > MAX_ARRAY:
        raise UserError(f'{file}: an array of over {MAX_ARRAY} bytes; write a row a line instead')
    try:
        entries = _parsed(content)
    except UserError as error:
        raise UserError(f'{file}: {error}') from None
    for number, entry in enumerate(entries, 1):
        yield Located(f'{file}: row {number}', lambda entry=entry: _object(entry))


def _lines(file: Path, stream: Any) -> Iterator[Located]:
    for number, line in enumerate(files.bounded_lines(stream, MAX_LINE), 1):
        line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
        if line.strip():
            yield Located(f'{file}:{number}', lambda line=line: _json(line))


def _json(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE:
        raise UserError(f'over {MAX_LINE} bytes; at most that')
    return _object(_parsed(line))


def _object(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f'expected an object, got {type(row).__name__}')
    return row


def _parsed(text: bytes) -> Any:
    try:
        decoded = text.removeprefix(BYTE_ORDER_MARK).decode().strip()
        return json.loads(decoded, object_pairs_hook=_each_once)
    except UnicodeDecodeError as error:
        raise UserError(f'not valid UTF-8 at byte {error.start}') from None
    except json.JSONDecodeError as error:
        raise UserError(f'not valid JSON: {error.msg} at character {error.pos}') from None
    except (ValueError, RecursionError) as error:  # Absurd numbers, absurd nesting.
        raise UserError(f'not valid JSON: {error}') from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        # Up to the first that comes again, names are the row's, in order.
        names = [name for name, _ in pairs]
        twice = next(a for a, b in zip(names, [*row, None], strict=False) if a != b)
        raise UserError(f'{shown(twice, 80)}: twice in one object')
    return row


def _parquet(file: Path) -> Iterator[Located]:
    with pq.ParquetFile(file) as parquet:
        groups = (
            parquet.metadata.row_group(i).total_byte_size for i in range(parquet.num_row_groups)
        )
        if (largest := max(groups, default=0)) > MAX_ROW_GROUP:
            raise UserError(f'{file}: a row group of {largest} bytes; at most {MAX_ROW_GROUP}')
        yield from _batches(file, parquet.iter_batches(batch_size=1024))


def _arrow(file: Path) -> Iterator[Located]:
    with pa.memory_map(str(file)) as mapped:
        if mapped.read(len(ARROW_FILE)) == ARROW_FILE:  # As polars and `pa.ipc.new_file` write it.
            with pa.ipc.open_file(mapped) as reader:
                numbers = range(reader.num_record_batches)
                yield from _batches(file, map(reader.get_batch, numbers))
            return
        mapped.seek(0)
        with pa.ipc.open_stream(mapped) as batches:
            yield from _batches(file, batches)


def _batches(file: Path, batches: Any) -> Iterator[Located]:
    number = 0
    for batch in batches:
        names = batch.schema.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f'{file}: {shown(twice[0])}: two columns of this name')
        for i in range(batch.num_rows):
            number += 1
            yield Located(f'{file}: row {number}', lambda batch=batch, i=i: _cells(batch, i))


def _cells(batch: pa.RecordBatch, i: int) -> dict[str, Any]:
    """A row; what Python has no value for, nanoseconds or the year 10,000, is left as it is."""
    try:
        return {
            name: _cell(column[i])
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
    except UnicodeDecodeError:
        raise UserError('not valid UTF-8') from None


def _cell(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError, ZoneInfoNotFoundError):
        if isinstance(value, pa.StructScalar):
            return {name: _cell(item) for name, item in value.items()}
        if isinstance(value, pa.ListScalar):
            return [_cell(item) for item in value.values]
        return value
