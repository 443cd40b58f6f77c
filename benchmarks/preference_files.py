"""Preference data that a benchmark makes: files of rows in TRL's form."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sail_jax.language.data.rows import DataRow


def write(parts: Mapping[str, Sequence[DataRow]], out: Path) -> None:
    """`NAME.jsonl` of each part, and how many rows it has on the terminal."""
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        lines = [json.dumps(_trl(row), ensure_ascii=False) + '\n' for row in rows]
        path = out / f'{name}.jsonl'
        path.write_text(''.join(lines), encoding='utf-8')
        print(f'{path}: {len(rows)} rows')


def _trl(row: DataRow) -> dict[str, Any]:
    """Text, or lists of messages where the prompt is a conversation."""
    answers = {'chosen': row.chosen, 'rejected': row.rejected}
    if isinstance(row.prompt, str):
        return {'prompt': row.prompt, **answers}
    turns = {key: [{'role': 'assistant', 'content': text}] for key, text in answers.items()}
    return {'prompt': [message._asdict() for message in row.prompt], **turns}
