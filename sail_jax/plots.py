"""Convergence plots from the `metrics.jsonl` of runs."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.ticker import EngFormatter

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from sail_jax import config, configfile, files, runs, workloads
from sail_jax.errors import UserError
from sail_jax.kind import Figure
from sail_jax.sweep import Members
from sail_jax.training import metrics


class Curve(NamedTuple):
    """One run's evaluations."""

    name: str
    """Of its directory; of a member of a sweep, the sweep's."""
    run: config.Settings
    rows: list[metrics.Row]
    directory: Path | None = None
    """Where they are from."""

    @property
    def figure(self) -> Figure:
        """What is drawn of it."""
        figure = workloads.of(self.run).figure
        assert figure is not None  # `load` has seen to it.
        return figure


def load(run_dir: Path) -> list[Curve]:
    """Reads the evaluations of a run; of a sweep, of its members.

    Raises:
      UserError: no run there, one that leaves no curve, or nothing evaluated yet.
    """
    whole = runs.load(run_dir / 'config.yaml')
    kind = workloads.of(whole)
    if kind.figure is None:
        raise UserError(f'{run_dir}: a {kind.name} run leaves figures of its own')
    curves = []
    for path in Members.of(whole).directories(run_dir):
        rows = metrics.read_rows(path / 'metrics.jsonl')
        curve = Curve(run_dir.resolve().name, runs.load(path / 'config.yaml'), rows, path.resolve())
        rows = [row for row in rows if any(key in row for key in curve.figure.y)]
        if not rows:
            raise UserError(f'{path}/metrics.jsonl: no evaluation in it yet')
        curves.append(curve._replace(rows=rows))
    return curves


def load_all(run_dirs: Sequence[Path]) -> tuple[list[Curve], list[UserError]]:
    """The curves that go into one figure, those of the first run's workload, and what is wrong with
    the other runs. A run that is named twice, beside its sweep for example, is there once."""
    curves: list[Curve] = []
    refused = []
    for run_dir in run_dirs:
        try:
            found = load(run_dir)
        except UserError as error:
            refused.append(error)
            continue
        ours, theirs = (workloads.of(some[0].run).name for some in (curves or found, found))
        if theirs == ours:
            there = {curve.directory for curve in curves}
            curves += [curve for curve in found if curve.directory not in there]
        else:
            refused.append(UserError(f'{run_dir}: {theirs} beside {ours}; plot them apart'))
    return curves, refused


def group_by_settings(curves: list[Curve]) -> list[tuple[str, list[Curve]]]:
    """Runs that differ in nothing but the seed, under a name that says what sets them apart.

    A group goes by its first run's directory and the first two settings that differ from the first
    group's.
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
        apiece = 'seeds' if len({curve.run.seed for curve in group}) == len(group) else 'runs'
        seeds = f' ({len(group)} {apiece})' if len(group) > 1 else ''
        name = group[0].name
        if apart:
            name += ': ' + ', '.join(apart[:2])
        named.append((name + seeds, group))
    return named


def plot_runs(run_dirs: Sequence[str | Path], out: str | Path = 'plot.png') -> list[UserError]:
    """Draws the runs of directories into a PNG, PDF or SVG file: `load_all`, then `plot`.

    Returns:
      What is wrong with the runs that were left out.

    Raises:
      UserError: none of them can be drawn, or the file cannot be written.
    """
    curves, refused = load_all([Path(run_dir) for run_dir in run_dirs])
    if not curves:
        raise UserError('; '.join(map(str, refused)))
    plot(curves, Path(out))
    return refused


def plot(curves: list[Curve], out: Path) -> None:
    """The curves of `load_all` against the run's length, labels and wall time; seeds become a band.
    What none of them has is left out.

    The line is the mean over seeds, the band from the lowest to the highest, as far as all of them
    have come.

    Raises:
      UserError: a file that cannot be written.
    """
    groups = group_by_settings(curves)
    what = curves[0].figure
    known = {key for curve in curves for row in curve.rows for key in row}
    ys = {key: title for key, title in what.y.items() if key in known}
    figure, axes = plt.subplots(
        len(ys),
        len(what.x),
        figsize=(11, 0.5 + 2.5 * len(ys)),
        sharey='row',
        squeeze=False,
        layout='constrained',
    )
    for index, (name, group) in enumerate(groups):
        color = f'C{index % 10}'
        for row, y in enumerate(ys):
            for column, x in enumerate(what.x):
                draw(axes[row, column], group, x, y, color, name)
    for row, title in enumerate(ys.values()):
        axes[row, 0].set_ylabel(title, fontsize=8)
    for column, title in enumerate(what.x.values()):
        axes[-1, column].set_xlabel(title)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.margins(x=0.02)
        axis.xaxis.set_major_formatter(EngFormatter(sep=''))
    # Not every run has what the first axes show.
    lines = {line.get_label(): line for axis in axes.flat for line in axis.lines}
    axes[0, 0].legend(handles=list(lines.values()), fontsize=7)
    figure.suptitle(', '.join(sorted({what.subject(curve.run) for curve in curves})))
    # Not into the file: where the disk is full its writers raise whatever comes of that.
    drawn = io.BytesIO()
    try:
        figure.savefig(drawn, dpi=150, format=out.suffix[1:] or 'png')
    except (ValueError, RuntimeError) as error:  # No such format; PGF without LaTeX.
        raise UserError(f'{out}: {error}') from None
    finally:
        plt.close(figure)
    files.write(out, drawn.getvalue())


def draw(axis: Axes, curves: list[Curve], x: str, y: str, color: str, name: str) -> None:
    """One group's line and band, interpolated on common points of the x axis; nothing where no run
    has the numbers."""
    lines = []
    for curve in curves:
        points = [(row.get(x), row.get(y)) for row in curve.rows]
        points = [point for point in points if None not in point]
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
