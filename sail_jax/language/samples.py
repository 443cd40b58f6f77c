"""Answers to held-out prompts, and the table that shows them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sail_jax import metrics
from sail_jax.language.rows import Prompt


class Answers(NamedTuple):
    """S responses of one policy to each of N prompts."""

    tokens: np.ndarray
    """[N, S, R]"""
    lengths: np.ndarray
    ended: np.ndarray
    texts: list[list[str]]
    rewards: np.ndarray | None
    """[N, S]; None where nobody gives any."""


def prompt_text(prompt: Prompt) -> str:
    """A prompt as people read it."""
    if isinstance(prompt, str):
        return prompt
    return '\n'.join(f'{message.role}: {message.content}' for message in prompt)


def write_table(path: Path, prompts: Sequence[Prompt], reference: Answers, policy: Answers) -> None:
    """Markdown: each prompt with the first response of the start policy and of the policy.

    Where it cannot be written that is said, and no more: a table is not worth a run.
    """
    columns = ['prompt', 'reference', 'policy']
    rewarded = policy.rewards is not None
    if rewarded:
        columns += ['reward of reference', 'reward of policy']
    lines = [columns, ['---'] * 3 + ['---:'] * (len(columns) - 3)]
    for row, prompt in enumerate(prompts):
        cells = [prompt_text(prompt), reference.texts[row][0], policy.texts[row][0]]
        if rewarded:
            cells += [f'{answers.rewards[row, 0]:.3f}' for answers in (reference, policy)]
        lines.append([_cell(cell) for cell in cells])
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(''.join(f'| {" | ".join(line)} |\n' for line in lines))
    except OSError as error:
        metrics.console.print(
            f'{path}: {error.strerror}; the run goes on without this table',
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _cell(text: str) -> str:
    """On one line, and without what ends a cell."""
    escaped = text.replace('\\', '\\\\').replace('|', '\\|').replace('<', '&lt;')
    return '<br>'.join(escaped.splitlines())
