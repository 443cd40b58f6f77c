"""Rows stored as ArrayRecord by tensorflow-datasets, in the cache: made once, read by number."""

import contextlib
import fcntl
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sail_jax.errors import UserError, one_line
from sail_jax.language.data import sources
from sail_jax.language.data.rows import DataRow, Message

KEPT_MESSAGES = 10
"""Of skipped rows; all are counted."""
KEPT_NAMES = 40
"""Of columns that are not read."""


def made(builder: Callable[[], Any], directory: Path) -> tuple[Any, dict[str, Any]]:
    """The records and their metadata, made now or found made."""
    there = (directory / PreferenceRecords.name).exists()
    with damage_named(directory) if there else contextlib.nullcontext():
        try:
            with _one_at_a_time(directory), _quiet():
                builder().download_and_prepare()
        except (OSError, RuntimeError) as error:  # ArrayRecord's are all of the second kind.
            # Another process may have been faster.
            if not builder().is_prepared():
                reason = getattr(error, 'strerror', None) or one_line(error)
                raise UserError(
                    f'{directory}: {reason}; data are prepared there, or where XDG_CACHE_HOME says'
                ) from None
        records = builder()
        if not records.info.splits:
            raise ValueError('dataset_info.json is missing')
        return records, records.info.metadata or {}


@contextlib.contextmanager
def damage_named(directory: Path) -> Iterator[None]:
    """Says in one line what the libraries raise where stored rows are damaged or gone."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f'{directory}: rows that were prepared before cannot be read ({one_line(error)}); '
            'delete this directory, and they are prepared again'
        ) from error


class PreferenceRecords(tfds.core.GeneratorBasedBuilder):
    """Rows with prompt, chosen and rejected, in the order of the files.

    A prompt is its messages; plain text is one message without a role. A response that a row does
    not have is empty.

    Args:
      files: of `sources.find`.
      checked: from a file's row to a usable one; raises `UserError`.
      unread: names of what such a row says that `checked` does not read.
      skip: leave bad rows out instead of raising.
    """

    name = 'preferences'  # Of the directory in the cache.
    # To be raised when the same files give other rows.
    VERSION = tfds.core.Version('1.3.0')

    def __init__(
        self,
        *,
        files: list[Path],
        checked: Callable[[dict], DataRow],
        unread: Callable[[dict], set[str]],
        skip: bool,
        **kwargs: Any,
    ):
        self._files, self._checked, self._unread, self._skip = files, checked, unread, skip
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description='Preference data: a prompt and two responses.',
            features=tfds.features.FeaturesDict(
                {
                    'prompt': tfds.features.Sequence({'role': text, 'content': text}),
                    'chosen': text,
                    'rejected': text,
                    'margin': np.float64,
                }
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {'train': self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        kept, skipped, messages, unread = 0, 0, [], set()
        for file in self._files:
            for located in sources.read(file):
                raw = {}
                try:
                    raw = located.load()
                    row = self._checked(raw)
                except UserError as error:
                    message = f'{located.where}: {error}'
                    if not self._skip:
                        names = ', '.join(_names(self._unread(raw)))
                        beside = f'; not read of this row: {names}' if names else ''
                        raise UserError(f'{message}{beside}') from None
                    skipped += 1
                    messages += [message] if len(messages) < KEPT_MESSAGES else []
                    continue
                if len(unread) < KEPT_NAMES:
                    unread |= self._unread(raw)
                yield kept, _to_stored(row)
                kept += 1
        if not kept:
            first = f'; the first bad one: {messages[0]}' if messages else ''
            raise UserError(f'{self._files[0]}: no usable row, {skipped} skipped{first}')
        metadata: Any = self.info.metadata
        metadata.update(skipped=skipped, messages=messages, unread=_names(unread))


def _names(unread: set[str]) -> list[str]:
    return [name[:80] for name in sorted(unread)[:KEPT_NAMES]]


def _to_stored(row: DataRow) -> dict[str, Any]:
    prompt = (Message('', row.prompt),) if isinstance(row.prompt, str) else row.prompt
    return {
        'prompt': [message._asdict() for message in prompt],
        'chosen': row.chosen or '',
        'rejected': row.rejected or '',
        'margin': row.margin,
    }


def from_stored(stored: dict[str, Any]) -> DataRow:
    roles, contents = (
        [text.decode() for text in stored['prompt'][key]] for key in ('role', 'content')
    )
    messages = tuple(map(Message, roles, contents))
    prompt = messages if messages[0].role else messages[0].content
    return DataRow(
        prompt,
        chosen=stored['chosen'].decode() or None,
        rejected=stored['rejected'].decode() or None,
        margin=float(stored['margin']),
    )


@contextlib.contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """Of several processes that want the same records the first makes them, and the others, who
    wait, find them made. Where there can be no lock each makes its own, and the last ones stay."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((directory / '.lock').open('ab'))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's bars and lines on where it stores what."""
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield
