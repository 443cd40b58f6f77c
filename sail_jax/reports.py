"""The tables that commands print."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_jax import config, terminal, workloads
from sail_jax.kind import Line
from sail_jax.sweep import Members

if TYPE_CHECKING:
    from sail_jax.training.metrics import Row
    from sail_jax.training.result import Result

PROMPT = 'Tell me a story'
"""Of the command that shows how a model is asked."""


def print_result(run: config.Trained, result: Result) -> None:
    """What a finished run came to."""
    print_comparison(
        workloads.of(run).table,
        f'{result.length:,} {result.unit.replace("_", " ")}, {result.labels:,} labels, '
        f'{result.wall_s:.0f} s',
        _strip(result.before),
        _strip(result.after),
    )


def print_sweep(run: config.Run, results: list[Result]) -> None:
    """The members of a sweep, each by the name of its directory: start policy, then trained."""
    kind, names = workloads.of(run), [member.name for member in Members.of(run).each]
    columns = kind.sweep_table or _lines(kind.table, _strip(results[0].after))[:3]
    rows = []
    for name, result in zip(names, results, strict=True):
        before, after = _strip(result.before), _strip(result.after)
        rows.append((name, *(f'{_cell(before, line)} → {_cell(after, line)}' for line in columns)))
    first = results[0]
    length = f'{first.length:,} {first.unit.replace("_", " ")}'
    title = f'start → trained, {length} each, {first.wall_s:.0f} s'
    terminal.print_table(title, ('', *(line.title for line in columns)), rows)


def print_comparison(table: Sequence[Line], title: str, before: Row, after: Row) -> None:
    """The table of start policy against trained policy."""
    # A run that an older version has begun has a first evaluation of fewer numbers.
    lines = [line for line in _lines(table, after) if line.metric in before.keys() & after.keys()]
    rows = [(line.title, _cell(before, line), _cell(after, line)) for line in lines]
    terminal.print_table(title, ('', 'start policy', 'trained policy'), rows)
    for who, numbers in (('start policy', before), ('trained policy', after)):
        for line in lines:
            if line.if_nan is not None and math.isnan(numbers[line.metric]):
                terminal.out(f'{who}: none of its {line.if_nan}')


def _lines(table: Sequence[Line], evaluation: Row) -> Sequence[Line]:
    """A workload's lines, or all numbers of its evaluations."""
    numbers = [key for key in evaluation if not key.endswith(('_se', '_low', '_high'))]
    return table or [Line(key.replace('_', ' '), key) for key in numbers]


def next_commands(run: config.Settings, result: Any, run_dir: Path) -> list[str]:
    """What to type after the end of a run, quoted for a shell.

    Args:
      result: what `sail_jax.train` gave back.
    """
    kind = workloads.of(run)
    if kind.study is not None:
        return [_command(*arguments) for arguments in kind.study.next_commands(run_dir)]
    members = Members.of(run)
    result, one = result[0] if members.sweep else result, members.each[0].directory(run_dir)
    commands = []
    if kind.figure is not None:
        commands.append(_command('plot', run_dir))
    if kind.render is not None:
        commands.append(_command('render', one))
    if kind.generate is not None:
        commands.append(_command('generate', one, PROMPT))
    commands.append(_command('evaluate', one))
    length = getattr(run, f'total_{result.unit}', None)
    if length is not None and result.length >= length:  # Else its label budget is spent.
        option = f'--total-{result.unit.replace("_", "-")}'
        path = run_dir / 'config.yaml'
        resume = ('--run-dir', run_dir, '--resume', option, 2 * length)
        commands.append(_command('train', path, *resume))
    return commands


def _command(*arguments: object) -> str:
    return shlex.join(['sail-jax', *map(str, arguments)])


def _strip(row: Row) -> Row:
    return {key.removeprefix('eval/'): value for key, value in row.items()}


def _cell(numbers: Row, line: Line) -> str:
    key, error = line.metric, line.error
    if math.isnan(numbers[key]):
        return '-'
    if key == 'not_finite':
        return f'{numbers[key]:,.0f}'
    value = number(numbers[key])
    if f'{key}_low' in numbers:  # A 95 % interval.
        return f'{value} ({numbers[f"{key}_low"]:.2f} to {numbers[f"{key}_high"]:.2f})'
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
