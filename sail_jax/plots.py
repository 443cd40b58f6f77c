"""Convergence plots from the `metrics.jsonl` of runs."""

from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.ticker import EngFormatter

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from sail_jax import config, metrics, runs
from sail_jax.errors import UserError
from sail_jax.recorder import directories

X_AXES = {'env_steps': 'env steps', 'labels': 'labels', 'wall_s': 'wall time (s)'}
Y_AXES = {
    'eval/return': 'return (stochastic policy)',
    'eval/deterministic_return': 'return (deterministic policy)',
    'eval/kl_policy_to_ref': 'KL(policy || start), nats per step',
}


class Curve(NamedTuple):
    """One run's evaluations."""

    name: str
    run: config.Run
    rows: list[metrics.Row]


def expand(run_dir: Path) -> list[Path]:
    """A run's directory; of a sweep, those of its runs.

    Raises:
      UserError: no run there.
    """
    run = runs.load(run_dir / 'config.yaml')
    return directories(run, run_dir) if isinstance(run, config.Run) else [run_dir]


def load(run_dir: Path) -> Curve:
    """Reads a run's evaluations.

    Raises:
      UserError: no run there, or nothing evaluated yet.
    """
    run = runs.load(run_dir / 'config.yaml')
    rows = metrics.read_rows(run_dir / 'metrics.jsonl')
    rows = [row for row in rows if any(key in row for key in Y_AXES)]
    if not rows:
        raise UserError(f'{run_dir}/metrics.jsonl: no evaluation in it yet')
    return Curve(run_dir.name, run, rows)


def group_by_settings(curves: list[Curve]) -> list[tuple[str, list[Curve]]]:
    """Runs that differ in nothing but the seed, under a name that says what sets them apart.

    A group goes by its first run's directory (by its environment, where it is the only one), and
    the first two settings that differ from the first group's.
    """
    groups: list[list[Curve]] = []
    for curve in curves:
        for group in groups:
            if not config.differences(curve.run, group[0].run, ignore=('seed',)):
                group.append(curve)
                break
        else:
            groups.append([curve])
    first = config.flatten(groups[0][0].run)
    named = []
    for group in groups:
        settings = config.flatten(group[0].run)
        apart = [
            f'{key} {value}'
            for key, value in settings.items()
            if key != 'seed' and value != first.get(key)
        ]
        seeds = f' ({len(group)} seeds)' if len(group) > 1 else ''
        name = settings['env.name'] if len(groups) == 1 else group[0].name
        if apart:
            name += ': ' + ', '.join(apart[:2])
        named.append((name + seeds, group))
    return named


def plot(run_dirs: list[Path], out: Path) -> None:
    """Return and KL against env steps, labels and wall time; seeds become a band.

    The line is the mean over seeds, the band from the lowest to the highest, as far as all of them
    have come.

    Raises:
      UserError: a run that cannot be read, or a file that cannot be written.
    """
    groups = group_by_settings([load(path) for run_dir in run_dirs for path in expand(run_dir)])
    figure, axes = plt.subplots(
        len(Y_AXES), len(X_AXES), figsize=(11, 8), sharey='row', layout='constrained'
    )
    for index, (name, curves) in enumerate(groups):
        color = f'C{index % 10}'
        for row, y in enumerate(Y_AXES):
            for column, x in enumerate(X_AXES):
                draw(axes[row, column], curves, x, y, color, name)
    for row, title in enumerate(Y_AXES.values()):
        axes[row, 0].set_ylabel(title, fontsize=8)
    for column, title in enumerate(X_AXES.values()):
        axes[-1, column].set_xlabel(title)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.margins(x=0.02)
        axis.xaxis.set_major_formatter(EngFormatter(sep=''))
    axes[0, 0].legend(fontsize=7)
    environments = sorted({f'{c.run.env.name} ({c.run.env.backend})' for _, g in groups for c in g})
    figure.suptitle(', '.join(environments))
    try:
        figure.savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f'{out}: {error}') from None
    finally:
        plt.close(figure)


def draw(axis: plt.Axes, curves: list[Curve], x: str, y: str, color: str, name: str) -> None:
    """One group's line and band, interpolated on common points of the x axis."""
    lines = []
    for curve in curves:
        points = [(row[x], row[y]) for row in curve.rows if row.get(y) is not None]
        lines.append(np.asarray(points, float).T)
    grid = np.unique(np.concatenate([line[0] for line in lines]))
    grid = grid[grid <= min(line[0].max() for line in lines)]
    values = np.stack([np.interp(grid, *line) for line in lines])
    axis.plot(grid, values.mean(0), color=color, label=name, marker='.', markersize=4)
    if len(lines) > 1:
        axis.fill_between(grid, values.min(0), values.max(0), color=color, alpha=0.2, lw=0)
