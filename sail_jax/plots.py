"""Convergence plots from the `metrics.jsonl` of runs."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.ticker import EngFormatter

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from sail_jax import config, configfile, metrics, runs
from sail_jax.errors import UserError
from sail_jax.language.config import LanguageRun
from sail_jax.recorder import directories


class Figure(NamedTuple):
    """What is drawn of a workload's runs."""

    x: dict[str, str]
    """Metrics and their titles."""
    y: dict[str, str]
    subject: Callable[[config.Run], str]
    """What a run is about: runs of one subject compare."""


CONTROL = Figure(
    {'env_steps': 'env steps', 'labels': 'labels', 'wall_s': 'wall time (s)'},
    {
        'eval/return': 'return (stochastic policy)',
        'eval/deterministic_return': 'return (deterministic policy)',
        'eval/kl_policy_to_ref': 'KL(policy || start), nats per step',
    },
    lambda run: f'{run.env.name} ({run.env.backend})',
)
LANGUAGE = Figure(
    {'prompts': 'prompts', 'labels': 'labels', 'wall_s': 'wall time (s)'},
    {
        'eval/reward': 'reward',
        'eval/pair_accuracy': 'accuracy on held-out pairs',
        'eval/response_kl_policy_to_ref': 'KL(policy || start), nats per response',
    },
    lambda run: run.model.path.name,
)


def figure_of(run: config.Run) -> Figure:
    """What is drawn of a run."""
    return LANGUAGE if isinstance(run, LanguageRun) else CONTROL


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
    rows = [row for row in rows if any(key in row for key in figure_of(run).y)]
    if not rows:
        raise UserError(f'{run_dir}/metrics.jsonl: no evaluation in it yet')
    return Curve(run_dir.name, run, rows)


def group_by_settings(curves: list[Curve]) -> list[tuple[str, list[Curve]]]:
    """Runs that differ in nothing but the seed, under a name that says what sets them apart.

    A group goes by its first run's directory (by its subject, where it is the only one), and
    the first two settings that differ from the first group's.
    """
    groups: list[list[Curve]] = []
    for curve in curves:
        for group in groups:
            if not configfile.differences(curve.run, group[0].run, ignore=('seed',)):
                group.append(curve)
                break
        else:
            groups.append([curve])
    first = configfile.flatten(groups[0][0].run)
    named = []
    for group in groups:
        settings = configfile.flatten(group[0].run)
        apart = [
            f'{key} {value}'
            for key, value in settings.items()
            if key != 'seed' and value != first.get(key)
        ]
        seeds = f' ({len(group)} seeds)' if len(group) > 1 else ''
        run = group[0].run
        name = figure_of(run).subject(run) if len(groups) == 1 else group[0].name
        if apart:
            name += ': ' + ', '.join(apart[:2])
        named.append((name + seeds, group))
    return named


def plot(run_dirs: list[Path], out: Path) -> None:
    """Return or reward, and KL, against the run's length, labels and wall time; seeds become a
    band. Of language runs, what none of them has is left out.

    The line is the mean over seeds, the band from the lowest to the highest, as far as all of them
    have come.

    Raises:
      UserError: a run that cannot be read, runs that do not compare, or a file that cannot be
        written.
    """
    groups = group_by_settings([load(path) for run_dir in run_dirs for path in expand(run_dir)])
    every = [curve.run for _, curves in groups for curve in curves]
    if any(figure_of(run) is not figure_of(every[0]) for run in every):
        raise UserError('plot: control and language runs do not compare; plot them apart')
    what = figure_of(every[0])
    known = {key for _, curves in groups for c in curves for row in c.rows for key in row}
    ys = {key: title for key, title in what.y.items() if key in known}
    figure, axes = plt.subplots(
        len(ys),
        len(what.x),
        figsize=(11, 0.5 + 2.5 * len(ys)),
        sharey='row',
        squeeze=False,
        layout='constrained',
    )
    for index, (name, curves) in enumerate(groups):
        color = f'C{index % 10}'
        for row, y in enumerate(ys):
            for column, x in enumerate(what.x):
                draw(axes[row, column], curves, x, y, color, name)
    for row, title in enumerate(ys.values()):
        axes[row, 0].set_ylabel(title, fontsize=8)
    for column, title in enumerate(what.x.values()):
        axes[-1, column].set_xlabel(title)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.margins(x=0.02)
        axis.xaxis.set_major_formatter(EngFormatter(sep=''))
    axes[0, 0].legend(fontsize=7)
    figure.suptitle(', '.join(sorted({what.subject(run) for run in every})))
    try:
        figure.savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f'{out}: {error}') from None
    finally:
        plt.close(figure)


def draw(axis: plt.Axes, curves: list[Curve], x: str, y: str, color: str, name: str) -> None:
    """One group's line and band, interpolated on common points of the x axis; nothing where no run
    has the numbers."""
    lines = []
    for curve in curves:
        points = [(row[x], row[y]) for row in curve.rows if row.get(y) is not None]
        if points:
            lines.append(np.asarray(points, float).T)
    if not lines:
        return
    grid = np.unique(np.concatenate([line[0] for line in lines]))
    grid = grid[grid <= min(line[0].max() for line in lines)]
    values = np.stack([np.interp(grid, *line) for line in lines])
    axis.plot(grid, values.mean(0), color=color, label=name, marker='.', markersize=4)
    if len(lines) > 1:
        axis.fill_between(grid, values.min(0), values.max(0), color=color, alpha=0.2, lw=0)
