"""Convergence plots from the `metrics.jsonl` of runs."""

import io
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter

from sail_jax import files, scalars, terminal
from sail_jax.curves import Curve, Group, group_by_settings, load_all
from sail_jax.errors import UserError

Band = Literal['range', 'bootstrap']
BANDS: dict[Band, str] = {
    'range': 'lines: mean of the runs of a setting; bands: lowest to highest',
    'bootstrap': 'lines: interquartile mean of the runs of a setting; bands: 95 % bootstrap',
}
"""What the figure says of its lines and bands."""
RESAMPLES = 2_000
AT_ONCE = 2_048
"""Points whose bootstrap is computed at once."""
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00', '#000000')
"""Okabe and Ito's, which the colour-blind tell apart, without yellow, which is faint on white."""
DASHES = ('-', (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
MARKED = 40
"""A line of no more points shows them."""
LEGEND = 100
"""Characters in a line of the legend."""


class Style(NamedTuple):
    """How rows become lines."""

    smooth: int = 1
    """Points of a run that each point is the mean of, itself and those before it."""
    band: Band = 'range'


PLAIN = Style()


class Picture(Figure):
    """A Matplotlib figure, which a notebook's cell shows whatever its settings."""

    left_out: tuple[UserError, ...] = ()
    """What is wrong with the runs that are not in it."""

    def write(self, path: str | Path) -> None:
        """Writes a PNG, PDF, SVG or what else Matplotlib knows, by the name's end.

        Raises:
          UserError: no such format; the file cannot be written.
        """
        path = files.named(path, 'out')
        # Not into the file: where the disk is full its writers raise whatever comes of that.
        drawn = io.BytesIO()
        try:
            self.savefig(drawn, dpi=150, format=path.suffix[1:] or 'png')
        except (ValueError, RuntimeError) as error:  # No such format; PGF without LaTeX.
            raise UserError(f'{path}: {error}') from None
        files.write(path, drawn.getvalue())

    def png(self) -> bytes:
        """A picture of about 900 pixels' width."""
        drawn = io.BytesIO()
        self.savefig(drawn, dpi=80, format='png')
        return drawn.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()


def plot(
    runs: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    metrics: str | Sequence[str] = (),
    smooth: int = 1,
    band: Band = 'range',
) -> Picture:
    """Draws the evaluations of runs against their length, their labels and wall time.

    A notebook's cell that ends with it shows it. What cannot be drawn beside the others is named on
    stderr and left out.

    Args:
      runs: a run directory, or several; runs that differ in the seed alone become a band.
      out: the file to write to: PNG, PDF, SVG; none writes nothing.
      metrics: keys of `metrics.jsonl`, `train/margin` for example; by default return or reward and
        both policies' distance, of the KL also the direction that the run penalises.
      smooth: each point becomes the mean of so many, itself and those before it.
      band: `range` draws the mean of runs and a band from the lowest to the highest; `bootstrap`
        their interquartile mean and its 95 % bootstrap interval (arXiv 2108.13264).

    Returns:
      A Matplotlib figure.

    Raises:
      UserError: none of them can be drawn, or the file cannot be written.
    """
    several = isinstance(runs, Iterable) and not isinstance(runs, str | bytes | Path)
    listed: Any = runs if several else [runs]
    run_dirs = [files.named(run_dir, 'runs') for run_dir in listed]
    keys = [metrics] if isinstance(metrics, str) else list(metrics)
    smooth = scalars.integer('smooth', smooth, at_least=1)
    if band not in get_args(Band):
        raise UserError(f'band: should be {" or ".join(get_args(Band))}, got {band!r:.80}')
    curves, refused = load_all(run_dirs, keys)
    if not curves:
        raise UserError('; '.join(map(str, refused)) or 'runs: none to draw')
    picture = draw_all(curves, keys, Style(smooth, band))
    picture.left_out = tuple(refused)
    if out is not None:
        picture.write(out)
    for error in refused:
        terminal.error(f'not drawn: {error}')
    return picture


def draw_all(curves: Sequence[Curve], keys: Sequence[str] = (), style: Style = PLAIN) -> Picture:
    """The curves of `load_all` against the run's length, labels and wall time. What none of them
    has is left out.

    Args:
      keys: of metrics; none are what the workload draws.
    """
    groups, x = group_by_settings(curves), curves[0].figure.x
    titles = {key: title for curve in curves for key, title in curve.titles.items()}
    there = {key for curve in curves for row in curve.rows for key in row}
    y = {key: titles.get(key, key) for key in keys or titles if key in there}
    legend = 0.25 * len(groups) + 0.35
    picture = Picture(figsize=(11, 0.5 + 2.4 * len(y) + legend), layout='constrained')
    axes = picture.subplots(len(y), len(x), sharey='row', sharex='col', squeeze=False)
    for index, group in enumerate(groups):
        for row, y_key in enumerate(y):
            for column, x_key in enumerate(x):
                draw(axes[row, column], group, (x_key, y_key), look(index), style)
    _label(picture, axes, list(x.values()), list(y.values()))
    subject = curves[0].figure.subject
    picture.suptitle(', '.join(dict.fromkeys(subject(curve.run) for curve in curves)))
    _add_legend(picture, groups, style)
    for text in picture.findobj(Text):  # Names may have dollars; they are no formulas.
        text.set_parse_math(False)
    return picture


def look(index: int) -> dict[str, Any]:
    """How a group's line differs from the others': by colour and dashes, for up to 28 groups."""
    return {'color': COLORS[index % len(COLORS)], 'linestyle': DASHES[index % len(DASHES)]}


def draw(
    axis: Axes, group: Group, keys: tuple[str, str], look: dict[str, Any], style: Style
) -> None:
    """One group's line and band, interpolated on common points of the x axis, from where all of its
    runs have numbers and as far as all have come; nothing where no run has any.

    Args:
      keys: metrics of the x and the y axis.
    """
    lines = [_points(curve, keys, style.smooth) for curve in group.curves]
    lines = [line for line in lines if line.size]
    if not lines:
        return
    grid = np.unique(np.concatenate([line[0] for line in lines]))
    first, last = max(line[0].min() for line in lines), min(line[0].max() for line in lines)
    grid = grid[(grid >= first) & (grid <= last)]
    values = np.stack([np.interp(grid, *line) for line in lines])
    marker = '.' if len(grid) <= MARKED else None
    if style.band == 'range':
        middle, low, high = values.mean(0), values.min(0), values.max(0)
    else:
        middle, (low, high) = iqm(values), bootstrap(values)
    axis.plot(grid, middle, label=group.name, lw=1.6, marker=marker, markersize=5, **look)
    if len(lines) > 1:
        axis.fill_between(grid, low, high, color=look['color'], alpha=0.18, lw=0)


def _points(curve: Curve, keys: tuple[str, str], smooth: int) -> np.ndarray:
    """A run's points, [2, N]; of N rows those that have both numbers."""
    points = [(row.get(keys[0]), row.get(keys[1])) for row in curve.rows]
    x, y = np.asarray([point for point in points if None not in point], float).reshape(-1, 2).T
    if smooth > 1:
        total = np.concatenate([[0.0], np.cumsum(y)])
        first = np.maximum(np.arange(len(y)) + 1 - smooth, 0)
        last = np.arange(len(y)) + 1
        y = (total[last] - total[first]) / (last - first)
    return np.stack([x, y])


def iqm(values_RxN: np.ndarray) -> np.ndarray:
    """The mean of the middle half of R runs; of fewer than four, of all."""
    cut = len(values_RxN) // 4
    return np.sort(values_RxN, 0)[cut : len(values_RxN) - cut].mean(0)


def bootstrap(values_RxN: np.ndarray) -> np.ndarray:
    """The 95 % interval of the interquartile mean over R runs resampled, [2, N]."""
    generator = np.random.default_rng(0)  # The same picture of the same numbers.
    runs_SxR = generator.integers(0, len(values_RxN), (RESAMPLES, len(values_RxN)))

    def interval(values_RxP: np.ndarray) -> np.ndarray:
        return np.percentile([iqm(values_RxP[runs]) for runs in runs_SxR], (2.5, 97.5), axis=0)

    # Not at once: of twenty seeds with all their updates it would be gigabytes.
    starts = range(0, max(values_RxN.shape[1], 1), AT_ONCE)
    return np.concatenate([interval(values_RxN[:, i : i + AT_ONCE]) for i in starts], axis=1)


def _label(picture: Picture, axes: np.ndarray, x: Sequence[str], y: Sequence[str]) -> None:
    for row, title in enumerate(y):
        axes[row, 0].set_ylabel(title.replace(', ', ',\n'), fontsize=9)
    for column, title in enumerate(x):
        axes[-1, column].set_xlabel(title)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.margins(x=0.02)
        axis.spines[['top', 'right']].set_visible(False)
        axis.xaxis.set_major_formatter(EngFormatter(sep=''))


def _add_legend(picture: Picture, groups: Sequence[Group], style: Style) -> None:
    """Below the axes, whatever it covers there; not every run has what the first axes show."""
    lines = {str(line.get_label()): line for axis in picture.axes for line in axis.lines}
    several = any(len(group.curves) > 1 for group in groups)
    narrow = max(map(len, lines)) <= LEGEND // 2
    picture.legend(
        handles=list(lines.values()),
        labels=[textwrap.fill(name, LEGEND) for name in lines],
        title=BANDS[style.band] if several else None,
        loc='outside lower center',
        ncols=2 if narrow and len(lines) > 3 else 1,
        fontsize=8,
        title_fontsize=8,
        handlelength=3.5,
        frameon=False,
    )
