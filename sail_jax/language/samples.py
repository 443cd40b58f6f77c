"""Answers to held-out prompts, and the table that shows them."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from sail_jax import terminal
from sail_jax.language.data.rows import Prompt
from sail_jax.language.reward.ensemble import Combined


class Answers(NamedTuple):
    """S responses of one policy to each of N prompts."""

    tokens: np.ndarray
    """[N, S, R]"""
    lengths: np.ndarray
    ended: np.ndarray
    texts: list[list[str]]
    rewards: np.ndarray | None
    """[N, S]; None where nobody gives any."""
    spread: np.ndarray | None = None
    """[N, S]; of an ensemble of reward models."""
    parts: Mapping[str, Combined] = MappingProxyType({})
    """Each of several weighted rewards by its name, [N, S]."""


def prompt_text(prompt: Prompt) -> str:
    """A prompt as people read it."""
    if isinstance(prompt, str):
        return prompt
    return '\n'.join(f'{message.role}: {message.content}' for message in prompt)


def write_table(path: Path, prompts: Sequence[Prompt], start: Answers, policy: Answers) -> None:
    """Markdown: each prompt with the first response of the start policy and of the policy.

    Where it cannot be written that is said, and no more: a table is not worth a run.
    """
    columns = ['prompt', 'start', 'policy']
    rewards = [answers.rewards for answers in (start, policy) if answers.rewards is not None]
    if rewards:
        columns += ['reward of start', 'reward of policy']
    lines = [columns, ['---'] * 3 + ['---:'] * (len(columns) - 3)]
    for row, prompt in enumerate(prompts):
        cells = [prompt_text(prompt), start.texts[row][0], policy.texts[row][0]]
        cells += [f'{values[row, 0]:.3f}' for values in rewards]
        lines.append([cell(text) for text in cells])
    try:
        path.parent.mkdir(exist_ok=True)
        text = ''.join(f'| {" | ".join(line)} |\n' for line in lines)
        path.write_text(text, encoding='utf-8')
    except OSError as error:
        terminal.say(f'{path}: {error.strerror}; the run goes on without this table')


MARKUP = re.compile(r'[\\`*_~\[|$]|:(?=//)|(?<=www)\.')
"""What Markdown would read, and what it would make a link of."""


def cell(text: str) -> str:
    """On one line, and as it is: no markup, no link or image, nothing that ends a cell."""
    lines = (terminal.escaped(line) for line in text.splitlines())
    return '<br>'.join(MARKUP.sub(r'\\\g<0>', html.escape(line, quote=False)) for line in lines)
