"""What people said of a run's responses, as preference data that other runs read (`data.path`)."""

import json
from pathlib import Path
from typing import Any

from sail_jax import files
from sail_jax.errors import UserError
from sail_jax.kind import Saved
from sail_jax.labels import payloads
from sail_jax.labels.payloads import ResponsePair
from sail_jax.labels.store import NAME, Store
from sail_jax.language.data.turns import TOOLS

SUFFIX = '.jsonl'


def row(pair: ResponsePair, choice: str) -> dict[str, Any]:
    """In TRL's form, of an answer that prefers one of the two: `left` the first."""
    chosen, rejected = pair.responses if choice == 'left' else pair.responses[::-1]
    if pair.turns is None:
        return {'prompt': pair.prompt, 'chosen': chosen, 'rejected': rejected}
    turn = lambda role, content: {'role': role, 'content': content}
    tools = [content for role, content in pair.turns if role == TOOLS]
    return {
        'prompt': [turn(*one) for one in pair.turns if one[0] != TOOLS],
        'chosen': [turn('assistant', chosen)],
        'rejected': [turn('assistant', rejected)],
        **({TOOLS: tools[0]} if tools else {}),
    }


def export_answers(saved: Saved, out: Path, **handed: Any) -> Path:
    """Writes the pairs of which people said that one is better, who said so (`source`) and when
    (`time`, seconds since 1970), JSON lines; ties are no such pairs.

    Raises:
      UserError: people were not asked, or have not said that of any; the file has another form, or
        cannot be written, and what is there stays as it is.
    """
    labeller = saved.run.labeller
    if not labeller.by_people:
        raise UserError(
            f'{saved.run_dir}: labeller.source: {labeller.source}; of a language run, answers of '
            'people are written'
        )
    if out.suffix != SUFFIX:
        raise UserError(f'{out}: answers about responses are JSON lines; call it *{SUFFIX}')
    store = Store(saved.run_dir / NAME)
    rows = [
        row(payloads.unpack_responses(store.payload(answer.number)), answer.choice)
        | {'source': answer.who, 'time': answer.time}
        for answer in store.answers()
        if answer.choice in ('left', 'right')
    ]
    if not rows:
        raise UserError(f'{store.path}: nobody has said yet that a response is better')
    files.write(out, ''.join(f'{json.dumps(one)}\n' for one in rows).encode())
    return out
