"""Runs a study and writes its figures, tables and curves into the run directory."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sail_jax import configfile, terminal
from sail_jax.bandit import landscape, measure, stochastic
from sail_jax.bandit.config import Landscape, SampleComplexity, StudySettings
from sail_jax.bandit.measure import OBJECTIVES, Measured, Swept
from sail_jax.bandit.problem import Problem
from sail_jax.errors import TrainingFailed, UserError
from sail_jax.training import metrics, rundir
from sail_jax.training.progress import Stages

Table = list[dict[str, Any]]

LINEAR_PHASE = (1e-13, 1e-8)
"""Gaps in which ascent counts as linear: the five decades above float64's rounding of J*, where the
fast directions are gone."""

TITLES = {
    'sail': 'SAIL',
    'ref_to_policy': 'RevKL, KL(ref‖π)',
    'policy_to_ref': 'RevKL, KL(π‖ref)',
}
COLUMNS = {
    'strong_concavity_margin': 'strong-concavity margin',
    'certified_coefficient': 'λ proven to suffice',
    'pl_ball': 'PL ratio, ball (min)',
    'pl_paths': 'PL ratio, paths (min)',
    'spread': 'spread over starts',
    'maxima': 'local maxima',
    'reached': 'starts at J*',
    'rate': 'linear rate (slowest start)',
    'r2': 'R² (median start)',
    'r2_min': 'R² (worst start)',
    'slope': 'slope',
    'slope_low': 'slope, 95 % from',
    'slope_high': 'slope, 95 % to',
    'final_gap': 'final J* - J',
}


def run(study: StudySettings, run_dir: Path, resume: bool = False, quiet: bool = False) -> Table:
    """Runs the study in float64.

    Args:
      resume: run it again where it was stopped: a study keeps nothing on the way.
      quiet: say nothing on the way.

    Returns:
      The table, one row for each problem and objective.

    Raises:
      UserError: the user's problem is not right, or the run directory is taken or finished.
      TrainingFailed: the results cannot be written.
    """
    with jax.enable_x64(True), Stages(quiet) as stages:
        problems = measure.make_problems(study)
        if resume and (run_dir / 'metrics.jsonl').exists():  # Which is written last.
            raise UserError(f'{run_dir}: this study is finished; nothing is left to do')
        measure_all: Any = _landscape if isinstance(study, Landscape) else _samples
        with rundir.claimed(study, run_dir, resume):
            configfile.write(study, run_dir / 'config.yaml')
            try:
                return measure_all(problems, study, run_dir, stages)
            except OSError as error:  # A full disk: only the results are written.
                raise TrainingFailed(f'{run_dir}: cannot be written ({error.strerror})') from error


def _landscape(problems: Problem, run: Landscape, run_dir: Path, stages: Stages) -> Table:
    from sail_jax.bandit import figures

    stages.stage('compiling the landscape, then measuring it')
    measured, points_NxD = measure.measure(problems, run)
    stages.stage('compiling the sweep, then searching its maxima')
    swept = measure.sweep(problems, run)
    stages.stage('compiling the slice through the maxima, then drawing')
    plane = measure.slice_through_maxima(problems, measured, run)
    table = landscape_table(measured, run)
    figures.landscape(measured, points_NxD, plane, swept, run, run_dir)
    write_table(table, run_dir, sweep=sweep_numbers(swept, run))
    gap = measured.best[0, :, None, None] - measured.path.value[0]
    write_curves(
        (
            {'step': step}
            | {
                f'{name}/{key}': float(statistic(gap[o, :, step]))
                for o, name in enumerate(OBJECTIVES)
                for key, statistic in (('gap_median', np.median), ('gap_max', np.max))
            }
            for step in range(gap.shape[-1])
        ),
        run_dir,
    )
    return table


def landscape_table(measured: Measured, run: Landscape) -> Table:
    """One row for each problem and objective."""
    rows = []
    for p, o in np.ndindex(measured.best.shape):
        best = measured.best[p, o]
        ends = measured.maxima.value[p, o]
        gap_SxT = best - measured.path.value[p, o]
        reached_S = best - ends < 1e-8
        fits = [fit for gap_T in gap_SxT if (fit := fit_rate(gap_T))]
        converges = bool(reached_S.all()) and len(fits) == len(gap_SxT)
        at_maximum = jax.tree.map(lambda x, p=p, o=o: x[p, o], measured.maxima)
        rows.append(
            {
                'problem': p,
                'objective': OBJECTIVES[o],
                'strong_concavity_margin': -float(measured.curvature[p, o]),
                'certified_coefficient': float(measured.certified[p, o]) if o == 1 else None,
                'smoothness': float(measured.smoothness[p, o]),
                'pl_ball': smallest_ratio(
                    measured.point_pl_gain[p, o], best - measured.point_value[p, o]
                ),
                'pl_paths': smallest_ratio(measured.path.pl_gain[p, o], gap_SxT),
                'best': float(best),
                'spread': float(best - ends.min()),
                'ascent_spread': float(np.ptp(measured.path.value[p, o, :, -1])),
                'maxima': len(measure.distinct(at_maximum, run.radius)),
                'reached': float(reached_S.mean()),
                'rate': max(rate for rate, _ in fits) if converges else None,
                'r2': float(np.median([r2 for _, r2 in fits])) if converges else None,
                'r2_min': min(r2 for _, r2 in fits) if converges else None,
            }
        )
    return rows


def smallest_ratio(gain: Any, gap: Any) -> float:
    """The smallest PL ratio, leaving out points where the gap is rounding."""
    far = gap > 100 * landscape.GAP_FLOOR
    # At a spurious maximum the gain is 0, give or take rounding.
    return max(float((gain[far] / gap[far]).min()), 0.0) if far.any() else math.nan


def fit_rate(gap_T: np.ndarray) -> tuple[float, float] | None:
    """Factor per iteration of `J* - J` in the linear phase, and R^2 of the straight line.

    The linear phase is `LINEAR_PHASE`; None where it has less than 5 iterations.
    """
    low, high = LINEAR_PHASE
    steps = np.flatnonzero((gap_T > low) & (gap_T < high))
    if len(steps) < 5:
        return None
    log_gap = np.log(gap_T[steps])
    slope, intercept = np.polyfit(steps, log_gap, 1)
    residual = log_gap - (slope * steps + intercept)
    return float(np.exp(slope)), float(1 - residual.var() / log_gap.var())


def sweep_numbers(swept: Swept, run: Landscape) -> dict[str, Table]:
    """Thresholds of lambda for each beta, and the grid of betas and lambdas."""
    rows = []
    for d, b, c in np.ndindex(swept.spread.shape):
        rows.append(
            {
                'objective': OBJECTIVES[1 + d],
                'beta': run.sweep.betas[b],
                'coefficient': run.sweep.coefficients[c],
                'strong_concavity_margin': -float(swept.curvature[d, b, c]),
                'spread': float(swept.spread[d, b, c]),
                'pl_ball': float(swept.pl_ratio[d, b, c]),
            }
        )
    thresholds = [
        {
            'beta': beta,
            'sharp_coefficient': swept.sharp[:, b].tolist(),
            'certified_coefficient': swept.certified[:, b].tolist(),
        }
        for b, beta in enumerate(run.sweep.betas)
    ]
    return {'thresholds': thresholds, 'grid': rows}


def _samples(problems: Problem, run: SampleComplexity, run_dir: Path, stages: Stages) -> Table:
    from sail_jax.bandit import figures

    curves = stochastic.measure(problems, run, lambda name: stages.stage(_doing(name)))
    stages.stage('drawing')
    table = []
    for o, name in enumerate(OBJECTIVES):
        each = [(p, curves.gap[o, p : p + 1]) for p in range(curves.gap.shape[1])]
        for problem, gap in [*each, ('all', curves.gap[o])]:
            slope = stochastic.fit_slope(curves.labels, gap)
            table.append(
                {
                    'problem': problem,
                    'objective': name,
                    'slope': slope.value,
                    'slope_low': slope.low,
                    'slope_high': slope.high,
                    'final_gap': float(gap[..., -1].mean()),
                }
            )
    figures.sample_complexity(curves, table, run, run_dir)
    write_table(table, run_dir)
    pairs = run.group_size * (run.group_size - 1) // 2
    write_curves(
        (
            {'step': int(labels) // (run.contexts * pairs), 'labels': int(labels)}
            | {
                f'{name}/gap_mean': float(curves.gap[o, ..., m].mean())
                for o, name in enumerate(OBJECTIVES)
            }
            for m, labels in enumerate(curves.labels)
        ),
        run_dir,
    )
    return table


def _doing(name: str) -> str:
    number = OBJECTIVES.index(name) + 1
    return f'{TITLES[name]} ({number} of {len(OBJECTIVES)}): compiling, then ascending'


def report(table: Table) -> list[list[str]]:
    """The table's numbers over problems, lowest to highest: a heading, then one line a number."""
    problems = [row for row in table if row['problem'] != 'all']
    lines = [[f'over {len(problems) // len(OBJECTIVES)} problems', *TITLES.values()]]
    for key, title in COLUMNS.items():
        cells = [
            span([row.get(key) for row in problems if row['objective'] == name])
            for name in OBJECTIVES
        ]
        if any(cells):
            lines.append([title, *(cell or 'n/a' for cell in cells)])
    pooled = [row for row in table if row['problem'] == 'all']
    if pooled:
        slopes = [
            f'{row["slope"]:.2f} [{row["slope_low"]:.2f}, {row["slope_high"]:.2f}]'
            for row in pooled
        ]
        lines.append(['slope of all, 95 % interval', *slopes])
    return lines


def span(values: list[float | None]) -> str:
    """Lowest and highest of the numbers, or nothing if one is missing."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return ''
    low, high = (f'{value:.3g}' for value in (min(numbers), max(numbers)))
    return low if low == high else f'{low} .. {high}'


def markdown(lines: list[list[str]]) -> str:
    """A Markdown table; the first line is its heading."""
    lines = [lines[0], ['---'] * len(lines[0]), *lines[1:]]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def print_table(table: Table) -> None:
    """The numbers over all problems, on standard output."""
    heading, *lines = report(table)
    terminal.print_table('', heading, lines)
    terminal.out('J: the objective, less its KL penalty; J*: its maximum')


def write_table(table: Table, run_dir: Path, **more: Any) -> None:
    """`table.md`, and `table.json` with what else there is."""
    keys = [key for key in COLUMNS if any(row.get(key) is not None for row in table)]
    each = [['problem', 'objective', *(COLUMNS[key] for key in keys)]]
    for row in table:
        numbers = [span([row.get(key)]) or 'n/a' for key in keys]
        each.append([str(row['problem']), TITLES[row['objective']], *numbers])
    (run_dir / 'table.md').write_text(
        f'{markdown(report(table))}\n{markdown(each)}', encoding='utf-8'
    )
    # JSON has no NaN.
    clean = json.loads(json.dumps({'rows': table, **more}), parse_constant=lambda _: None)
    (run_dir / 'table.json').write_text(json.dumps(clean, indent=1) + '\n', encoding='utf-8')


def write_curves(rows: Iterable[metrics.MetricsRow], run_dir: Path) -> None:
    """`metrics.jsonl`."""
    part = run_dir / 'metrics.part'
    part.unlink(missing_ok=True)
    writer = metrics.JsonLines(part, None)
    for row in rows:
        writer.write(row)
    writer.require_written()
    writer.close()
    part.replace(run_dir / 'metrics.jsonl')
