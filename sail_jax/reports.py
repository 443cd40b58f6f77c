"""The tables that commands print."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sail_jax import config, tables, terminal, workloads
from sail_jax.kind import Line
from sail_jax.sweep import Members

if TYPE_CHECKING:
    from sail_jax.training.metrics import MetricsRow
    from sail_jax.training.result import Result

PROMPT = 'Tell me a story'
"""Of the command that shows how a model is asked."""


def print_result(run: config.Trained, result: Result) -> None:
    """What a finished run came to."""
    print_comparison(
        workloads.of(run).table,
        result.title,
        result.before,
        result.after,
        result.update,
    )


def print_sweep(run: config.Run, results: list[Result]) -> None:
    """The members of a sweep, each by the name of its directory: start policy, then trained."""
    kind, names = workloads.of(run), [member.name for member in Members.of(run).each]
    numbers = tables.strip(results[0].after)
    there = [line for line in tables.lines(kind.table, numbers) if line.metric in numbers]
    columns = kind.sweep_table or there[:3]
    rows = []
    for name, result in zip(names, results, strict=True):
        numbers = tables.strip(result.before), tables.strip(result.after)
        pairs = ([tables.cell(row, line) for row in numbers] for line in columns)
        rows.append((name, *map(' → '.join, pairs)))
    first = results[0]
    length = f'{first.length:,} {first.unit.replace("_", " ")}'
    title = f'start → trained, {length} each, {first.wall_s:.0f} s'
    terminal.print_table(title, ('', *(line.title for line in columns)), rows)
    _print_meanings(columns)


def print_comparison(
    table: Sequence[Line],
    title: str,
    before: MetricsRow,
    after: MetricsRow,
    update: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """The table of start policy against trained policy; see `tables.comparison`."""
    rows = tables.comparison(table, before, after, update)
    heading = ('', tables.START, tables.TRAINED, tables.GOOD)
    shown = len(heading) if any(row.good for row in rows) else len(heading) - 1
    terminal.print_table(title, heading[:shown], [row[:shown] for row in rows])
    _print_meanings(table)
    for who, numbers in ((tables.START, before), (tables.TRAINED, after)):
        for line in table:
            value = tables.strip(numbers).get(line.metric, 0.0)
            if line.if_nan is not None and math.isnan(value):
                terminal.out(f'{who} policy: none of its {line.if_nan}')


def _print_meanings(table: Sequence[Line]) -> None:
    if any(line.good for line in table):
        terminal.out(f'what they mean: {tables.MEANINGS}')


def next_commands(run: config.Settings, result: Any, run_dir: Path) -> list[str]:
    """What to type after the end of a run: commands, quoted for a shell; or calls from Python, if
    its workload was registered by a program, which the command line does not know.

    Args:
      result: what `sail_jax.train` gave back.
    """
    kind = workloads.of(run)
    if kind.study is not None:
        return [_command(*arguments) for arguments in kind.study.next_commands(run_dir)]
    spell = _command if kind in workloads.KINDS else _call
    members = Members.of(run)
    result, one = result[0] if members.sweep else result, members.each[0].directory(run_dir)
    commands = []
    if kind.figure is not None:
        commands.append(spell('plot', run_dir))
    if kind.render is not None:
        commands.append(spell('render', one))
    if kind.generate is not None:
        commands.append(spell('generate', one, PROMPT))
    commands.append(spell('evaluate', one))
    key = f'total_{result.unit}'
    length = getattr(run, key, None)
    if length is not None and result.length >= length:  # Else its label budget is spent.
        path, longer = run_dir / 'config.yaml', {key: 2 * length}
        if spell is _call:
            commands.append(_call('train', path, run_dir, resume=True, overrides=longer))
        else:
            option = f'--{key.replace("_", "-")}'
            resume = ('--run-dir', run_dir, '--resume', option, longer[key])
            commands.append(_command('train', path, *resume))
    return commands


def _command(*arguments: object) -> str:
    return shlex.join(['sail-jax', *map(str, arguments)])


def _call(function: str, *arguments: object, **named: object) -> str:
    said = [repr(str(argument)) for argument in arguments]
    said += [f'{name}={value!r}' for name, value in named.items()]
    return f'sail_jax.{function}({", ".join(said)})'
