"""A plan on the terminal: what fits, what takes how long, and where."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sail_jax import terminal
from sail_jax.plan import report as reports
from sail_jax.plan import roofline
from sail_jax.plan.report import Planned, Report
from sail_jax.plan.targets import GIB

NOTE = (
    'What the compilers say, and what is published of the chips: predicted, not measured. No run '
    'is faster; responses and episodes are as long as they may be.'
)
HEAVIEST = 10


def show(report: Report, name: str) -> None:
    """One target on one screen."""
    target, chip = report.target, report.target.chip
    mesh = ', '.join(f'{axis} {size}' for axis, size in report.fleet.axes.items() if size > 1)
    hosts = len(set(report.fleet.hosts))
    terminal.out(
        f'{name} on {target}: {target.count} x {chip.title} of {_gib(chip.memory)} GiB, '
        f'{hosts} host{"s" * (hosts > 1)}{f"; {mesh}" if mesh else ""}'
    )
    terminal.print_table('memory of a device, GiB', *_memory(report))
    if any(planned.counted for planned in report.programs):
        terminal.print_table('one call of a program, on a device', *_work(report))
    for planned in report.programs:
        if planned.compiled.error:
            terminal.out(f'{planned.program.name} does not compile: {planned.compiled.error}')
    if exchanges := _exchanges(report):
        heading = ['exchanges', 'along', 'hosts', 'number', 'GB']
        terminal.print_table('between devices, of one call', heading, exchanges)
    if heaviest := _heaviest(report):
        heading = ['heaviest', 'of', 'shape', 'number', 'ms', 'line']
        terminal.print_table('where an update spends its time', heading, heaviest)
    _say_bounds(report)
    terminal.out(f'fits: {_verdict(report)}')
    terminal.out(NOTE)


def compare(reports_: Sequence[Report]) -> None:
    """Several targets beside each other, the fastest first."""
    best = min((x.update_s for x in reports_ if x.fits and x.update_s), default=None)
    rows = []
    for report in sorted(reports_, key=lambda x: (not x.fits, x.update_s or float('inf'))):
        numbers = reports.bounds(report)
        seconds = report.update_s
        rows.append(
            [
                str(report.target),
                str(report.target.count),
                'yes' if report.fits else 'no',
                _number(seconds) if seconds else 'n/a',
                f'{seconds / best:.2f}' if seconds and best else 'n/a',
                _number(seconds * report.target.count) if seconds else 'n/a',
                str(numbers.get('bound_by', 'does not compile')),
            ]
        )
    heading = ['target', 'chips', 'fits', 's an update', 'relative', 'chip seconds', 'bound by']
    terminal.print_table('where would this run best?', heading, rows)


def _memory(report: Report) -> tuple[list[str], list[list[str]]]:
    names = [name for name in report.programs[0].bytes_per_device if name != 'total']
    used = [name for name in names if any(x.bytes_per_device[name] for x in report.programs)]
    memory = report.target.chip.memory
    rows = []
    for planned in report.programs:
        sizes = planned.bytes_per_device
        fits = 'yes' if planned.fits else 'no'
        cells = [_gib(sizes[name]) for name in used]
        share = f'{100 * sizes["total"] / memory:.0f} %'
        rows.append([planned.program.name, fits, *cells, _gib(sizes['total']), share])
    return ['program', 'fits', *used, 'total', 'of memory'], rows


def _work(report: Report) -> tuple[list[str], list[list[str]]]:
    launched = report.target.chip.platform == 'cuda'  # A TPU's program is launched as one.
    heading = ['program', 'calls', 'TFLOP', 'GB', 'matmul', 'memory', 'links']
    heading += [*(['kernels', 'number', 'a step'] if launched else []), 'ms', 'bound by']
    rows = []
    for planned in report.programs:
        counted, times, program = planned.counted, planned.times, planned.program
        if counted is None or times is None:
            continue
        cells = [program.name, f'{program.per_update:.3g}']
        cells += [_number(counted.flops / 1e12), _number(counted.traffic_bytes / 1e9)]
        cells += map(_ms, (times.matmul_s, times.memory_s, times.links_s))
        if launched:
            a_step = f'{counted.kernels / program.steps:.0f}' if program.steps else ''
            cells += [_ms(times.kernels_s), f'{counted.kernels:,}', a_step]
        rows.append([*cells, _ms(times.roofline_s), times.bound_by])
    return heading, rows


def _exchanges(report: Report) -> list[list[str]]:
    return [
        [
            f'{planned.program.name}: {x.kind}',
            x.axes,
            x.hosts,
            f'{x.count:,}',
            _number(x.bytes / 1e9),
        ]
        for planned in report.programs
        if planned.counted is not None
        for x in roofline.exchanges(planned.counted, report.fleet)
        if x.bytes > 2**20
    ]


def _heaviest(report: Report) -> list[list[str]]:
    each = [
        (planned, heavy)
        for planned in report.training
        if planned.counted is not None
        for heavy in roofline.heaviest(planned.counted, report.target.chip, report.fleet)
    ]
    each.sort(key=lambda x: -x[0].program.per_update * x[1].seconds)
    return [_heavy(planned, heavy) for planned, heavy in each[:HEAVIEST]]


def _heavy(planned: Planned, heavy: roofline.Heavy) -> list[str]:
    seconds = planned.program.per_update * heavy.seconds
    cells = [heavy.operation, planned.program.name, heavy.shape]
    line = re.sub(r'\(.*/', '(', heavy.source)  # Of a library, the file.
    return [*cells, f'{heavy.times:,}', _ms(seconds), line]


def _say_bounds(report: Report) -> None:
    numbers = reports.bounds(report)
    if not numbers:
        return
    speeds = ', '.join(
        f'{value:,.0f} {key.removesuffix("_per_s").replace("_", " ")}/s'
        for key, value in numbers.items()
        if key.endswith('_per_s')
    )
    mfu = f', MFU {100 * numbers["mfu"]:.0f} %' if 'mfu' in numbers else ''
    terminal.out(
        f'at the most: {speeds}{mfu}; an update takes at least {_ms(numbers["update_s"])} ms '
        f'({numbers["bound_by"]})'
    )


def _verdict(report: Report) -> str:
    advice = reports.change(report)
    if report.fits:
        return f'yes; {advice}' if advice else 'yes'
    names = ', '.join(x.program.name for x in report.programs if not x.fits)
    return f'no ({names})' + (f'; {advice}' if advice else '')


def _gib(size: float) -> str:
    return f'{size / GIB:.2f}'


def _ms(seconds: float) -> str:
    return _number(1000 * seconds)


def _number(x: float) -> str:
    return f'{x:,.0f}' if x >= 100 else f'{x:.3g}'
