"""Evaluations as people read them: the lines of the table at the end of a run."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from sail_jax.kind import Line

START, TRAINED, GOOD = 'start', 'trained', 'good'
"""Headings."""
MEANINGS = 'sail-jax metrics'
"""The command that says what the numbers are."""
LAST_UPDATE = (Line('J, last update', 'train/preference', good='above -0.693'),)
"""What training itself says, below the evaluations; the start has no such numbers."""


class Comparison(NamedTuple):
    """A line of the table: two policies, and which numbers are good."""

    title: str
    before: str
    after: str
    good: str


def comparison(
    table: Sequence[Line],
    before: Mapping[str, float],
    after: Mapping[str, float],
    update: Mapping[str, float] = MappingProxyType({}),
) -> list[Comparison]:
    """A workload's lines, or all numbers of its evaluations.

    Args:
      table: of the workload; none stands for all numbers.
      before: the evaluation of the start policy.
      after: the same of the trained one. Of an older version's run, `before` has fewer numbers:
        only what both have becomes a line.
      update: the row of the last update, where something was trained.
    """
    before, after = strip(before), strip(after)
    return [
        Comparison(line.title, before=cell(before, line), after=cell(after, line), good=line.good)
        for line in lines(table, after)
        if line.metric in before.keys() & after.keys()
    ] + [
        Comparison(line.title, before='-', after=cell(update, line), good=line.good)
        for line in LAST_UPDATE
        if line.metric in update
    ]


def lines(table: Sequence[Line], evaluation: Mapping[str, float]) -> Sequence[Line]:
    """A workload's lines, or all numbers of its evaluations."""
    numbers = [key for key in evaluation if not key.endswith(('_se', '_low', '_high'))]
    return table or [Line(key.replace('_', ' '), key) for key in numbers]


def strip(row: Mapping[str, float]) -> dict[str, float]:
    """An evaluation's numbers by their names, without `eval/`."""
    return {key.removeprefix('eval/'): value for key, value in row.items()}


def cell(numbers: Mapping[str, float], line: Line) -> str:
    """A number with its error or its 95 % interval."""
    key, error = line.metric, line.error
    if math.isnan(numbers[key]):
        return '-'
    if key == 'not_finite':
        return f'{numbers[key]:,.0f}'
    value = number(numbers[key])
    if f'{key}_low' in numbers:
        low, high = (number(numbers[f'{key}_{end}']) for end in ('low', 'high'))
        return f'{value} ({low} to {high})'
    return f'{value} ± {_short(numbers[error])}' if error else value


def number(value: float) -> str:
    """A number as people read it: three decimals or one, thousands apart, the small by their
    power of ten."""
    size = abs(value)
    if size >= 10_000:
        return f'{value:,.0f}'
    if size >= 10:
        return f'{value:.1f}'
    return f'{value:.2g}' if 0 < size < 5e-4 else f'{value:.3f}'


def _short(value: float) -> str:
    return f'{value:,.0f}' if abs(value) >= 99.5 else f'{value:.2g}'


def as_html(title: str, heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a notebook's cell; the first column is of names."""

    def row(cells: Sequence[str], tag: str) -> str:
        name, *others = (html.escape(text) for text in cells)
        aligned = ''.join(f'<{tag} style="text-align: right">{text}</{tag}>' for text in others)
        return f'<tr><th style="text-align: left">{name}</th>{aligned}</tr>'

    body = ''.join(row(cells, 'td') for cells in rows)
    return (
        f'<table><caption style="white-space: nowrap">{html.escape(title)}</caption>'
        f'<thead>{row(heading, "th")}</thead><tbody>{body}</tbody></table>'
    )
