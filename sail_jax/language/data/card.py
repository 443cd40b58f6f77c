"""The files that a data set's README names, as Hugging Face's `datasets` reads them."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from sail_jax import files
from sail_jax.errors import UserError, one_line
from sail_jax.scalars import Loader

MAX_CARD = 2**20
"""Bytes of a README.md."""
MAX_PATTERNS = 2**14
"""Of files that it names; each is looked for in all of the directory."""


def split_files(path: Path, split: str) -> list[Path] | None:
    """What the metadata of `path/README.md` say is in a split: the files of all its subsets.

    Returns:
      None where there are no such metadata, so that the names of files decide.

    Raises:
      UserError: metadata that cannot be read; a pattern of another directory.
    """
    card = path / 'README.md'
    if not card.is_file():
        return None
    text = files.read(card, MAX_CARD).decode(errors='replace').removeprefix('\ufeff')
    front = re.match(r'---\r?\n(.*?\n)---\s*(\n|$)', text, re.DOTALL)
    try:
        metadata = yaml.load('\n' + front[1], Loader) if front else None  # Lines are the card's.
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f'{card}: metadata that are not valid YAML: {one_line(error)}') from None
    configs = metadata.get('configs') if isinstance(metadata, dict) else None
    if not isinstance(configs, list):
        return None
    configs = [config for config in configs if isinstance(config, dict)]
    if not any('data_files' in config for config in configs):
        if directories := [config['data_dir'] for config in configs if 'data_dir' in config]:
            raise UserError(f'{card}: data_dir: {directories[0]!r:.80}: name that directory itself')
        return None
    named = (
        pattern for config in configs for pattern in _patterns(config.get('data_files'), split)
    )
    # Not all of them before they are counted: by aliases a few lines can stand for any number.
    patterns = list(islice(named, MAX_PATTERNS + 1))
    if len(patterns) > MAX_PATTERNS:
        raise UserError(f'{card}: data_files: over {MAX_PATTERNS} patterns')
    for pattern in patterns:
        if pattern.startswith('/') or '..' in Path(pattern).parts or '://' in pattern:
            raise UserError(f'{card}: data_files: {pattern!r:.80}: expected files of {path}')
    try:
        matches = {file for pattern in {*patterns} for file in _matches(path, pattern)}
    except (ValueError, NotImplementedError) as error:
        raise UserError(f'{card}: data_files: {one_line(error)}') from None
    return sorted(matches)


def _matches(path: Path, pattern: str) -> Iterator[Path]:
    """Files, as `datasets` finds them: hidden ones (a notebook's `.ipynb_checkpoints`) only where
    the pattern names them, never the README, and of a final ** those at any depth."""
    named = {part for part in Path(pattern).parts if part.startswith('.')}
    for file in path.glob(f'{pattern}/*' if Path(pattern).name == '**' else pattern):
        hidden = {part for part in file.relative_to(path).parts if part.startswith('.')}
        if hidden <= named and file.is_file() and file.name != 'README.md':
            yield file


def _patterns(data_files: Any, split: str) -> Iterator[str]:
    """`data_files` is a pattern or several, all of the split `train`; or says it for each split."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    for entry in entries:
        if isinstance(entry, str):
            paths = entry if split == 'train' else None
        elif isinstance(entry, dict) and entry.get('split') == split:
            paths = entry.get('path')
        else:
            continue
        yield from (
            p for p in (paths if isinstance(paths, list) else [paths]) if isinstance(p, str)
        )
