"""Runs a study and writes its figures, tables and curves into the run directory."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sail_jax import metrics
from sail_jax.bandit import landscape, measure, stochastic
from sail_jax.bandit.config import Landscape, SampleComplexity, Study
from sail_jax.bandit.measure import OBJECTIVES, Measured, Swept

Table = list[dict[str, Any]]

TITLES = {
    'sail': 'SAIL',
    'ref_to_policy': 'RevKL, KL(ref‖π)',
    'policy_to_ref': 'RevKL, KL(π‖ref)',
}
COLUMNS = {
    'problem': 'problem',
    'objective': 'objective',
    'strong_concavity_margin': 'strong-concavity margin',
    'sharp_coefficient': 'sharp λ',
    'certified_coefficient': 'certified λ',
    'pl_ball': 'PL ratio, ball (min)',
    'pl_paths': 'PL ratio, paths (min)',
    'spread': 'spread over starts',
    'maxima': 'local maxima',
    'reached': 'starts at J*',
    'rate': 'linear rate',
    'r2': 'R² (min)',
    'slope': 'slope',
    'slope_low': '95 % from',
    'slope_high': 'to',
    'final_gap': 'final J* − J',
}


def run(study: Study, run_dir: Path) -> Table:
    """Runs the study in float64.

    Returns:
      The table, one row for each problem and objective.

    Raises:
      UserError: the user's problem is not right.
    """
    with jax.enable_x64(True):
        return (
            _landscape(study, run_dir) if isinstance(study, Landscape) else _samples(study, run_dir)
        )


def _landscape(run: Landscape, run_dir: Path) -> Table:
    from sail_jax.bandit import figures

    problems = measure.make_problems(run)
    measured, points_NxD = measure.measure(problems, run)
    swept = measure.sweep(problems, run)
    plane = measure.slice_through_maxima(problems, measured, run)
    certified = [
        float(
            landscape.certified_coefficient(
                jax.tree.map(lambda x, p=p: x[p], problems), run.beta, run.radius
            )
        )
        for p in range(len(measured.best))
    ]
    table = landscape_table(measured, certified, run)
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


def landscape_table(measured: Measured, certified: list[float], run: Landscape) -> Table:
    """One row for each problem and objective."""
    rows = []
    for p, o in np.ndindex(measured.best.shape):
        best = measured.best[p, o]
        ends = measured.maxima.value[p, o]
        gap_SxT = best - measured.path.value[p, o]
        reached_S = best - ends < 1e-8
        fits = [fit_rate(gap_T) for gap_T in gap_SxT]
        converges = bool(reached_S.all()) and all(fits)
        at_maximum = jax.tree.map(lambda x, p=p, o=o: x[p, o], measured.maxima)
        rows.append(
            {
                'problem': p,
                'objective': OBJECTIVES[o],
                'strong_concavity_margin': -float(measured.curvature[p, o]),
                'certified_coefficient': certified[p] if o == 1 else None,
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
                'r2': min(r2 for _, r2 in fits) if converges else None,
            }
        )
    return rows


def smallest_ratio(gain: np.ndarray, gap: np.ndarray) -> float:
    """The smallest PL ratio, leaving out points where the gap is rounding."""
    far = gap > 100 * landscape.GAP_FLOOR
    return float((gain[far] / gap[far]).min()) if far.any() else math.nan


def fit_rate(gap_T: np.ndarray) -> tuple[float, float] | None:
    """Factor per iteration of `J* - J` in the linear phase, and R^2 of the straight line.

    The linear phase begins where the gap first is below a hundredth of its start, when the fast
    directions have died out, and ends at rounding. None where it has less than 5 iterations.
    """
    phase = (gap_T < 1e-2 * gap_T[0]) & (gap_T > landscape.GAP_FLOOR)
    steps = np.flatnonzero(phase)
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


def _samples(run: SampleComplexity, run_dir: Path) -> Table:
    from sail_jax.bandit import figures

    curves = stochastic.measure(run)
    table = []
    for o, name in enumerate(OBJECTIVES):
        problems = curves.gap.shape[1]
        each = [(p, curves.gap[o, p : p + 1]) for p in range(problems)]
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


def columns(table: Table) -> list[str]:
    """The columns of the Markdown table: those that some row has."""
    return [key for key in COLUMNS if any(row.get(key) is not None for row in table)]


def cells(row: dict[str, Any], keys: Iterable[str]) -> list[str]:
    """A row's numbers as text."""

    def text(key: str) -> str:
        value = row.get(key)
        if key == 'objective':
            return TITLES[value]
        if value is None:
            return '–'
        return f'{value:.3g}' if isinstance(value, float) else str(value)

    return [text(key) for key in keys]


def print_table(table: Table) -> None:
    """On standard output."""
    keys = columns(table)
    metrics.print_table('', [COLUMNS[key] for key in keys], [cells(row, keys) for row in table])


def write_table(table: Table, run_dir: Path, **more: Any) -> None:
    """`table.md`, and `table.json` with all rows and what else there is."""
    keys = columns(table)
    lines = [[COLUMNS[key] for key in keys], ['---'] * len(keys)]
    lines += [cells(row, keys) for row in table]
    (run_dir / 'table.md').write_text(''.join(f'| {" | ".join(line)} |\n' for line in lines))
    # JSON has no NaN.
    clean = json.loads(json.dumps({'rows': table, **more}), parse_constant=lambda _: None)
    (run_dir / 'table.json').write_text(json.dumps(clean, indent=1) + '\n')


def write_curves(rows: Iterable[metrics.Row], run_dir: Path) -> None:
    """`metrics.jsonl`."""
    writer = metrics.JsonLines(run_dir / 'metrics.jsonl', None)
    for row in rows:
        writer.write(row)
    writer.close()
