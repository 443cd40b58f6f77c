"""Figures of the two studies, each as PNG and PDF."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

from sail_jax.bandit.config import Landscape, SampleComplexity
from sail_jax.bandit.landscape import GAP_FLOOR
from sail_jax.bandit.measure import OBJECTIVES, Measured, Slice, Swept
from sail_jax.bandit.stochastic import FIT_LAST, Curves

STYLE: dict[Any, Any] = {
    'font.size': 9,
    'axes.titlesize': 9.5,
    'axes.labelsize': 9,
    'legend.fontsize': 8,
    'legend.frameon': False,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.alpha': 0.25,
    'grid.linewidth': 0.5,
    'pdf.fonttype': 42,
    'savefig.dpi': 200,
}
# Okabe and Ito's colours, told apart by colour-blind readers.
COLORS = ('#D55E00', '#0072B2', '#009E73')
NAMES = (
    'SAIL',
    r'RevKL, $\mathrm{KL}(\pi_\mathrm{ref}\Vert\pi)$',
    r'RevKL, $\mathrm{KL}(\pi\Vert\pi_\mathrm{ref})$',
)
GAP = r'$J_\lambda^\star - J_\lambda$'


def landscape(
    measured: Measured,
    points_NxD: np.ndarray,
    plane: Slice,
    swept: Swept,
    run: Landscape,
    run_dir: Path,
) -> None:
    """All figures of the landscape study; those of single problems show the first."""
    length_N = np.linalg.norm(points_NxD, axis=-1)
    with plt.rc_context(STYLE):
        _save(_convergence(measured, run), run_dir / 'convergence')
        _save(_pl_ratio(measured, length_N), run_dir / 'pl_ratio')
        _save(_curvature(measured, length_N), run_dir / 'curvature')
        _save(slice_figure(plane, run), run_dir / 'slice')
        _save(_sweep(swept, run), run_dir / 'sweep')


def sample_complexity(
    curves: Curves, table: list[dict], run: SampleComplexity, run_dir: Path
) -> None:
    """Suboptimality against labels."""
    with plt.rc_context(STYLE):
        _save(_samples(curves, table, run), run_dir / 'sample_complexity')


def _save(figure: Figure, path: Path) -> None:
    for suffix in ('.png', '.pdf'):
        figure.savefig(path.with_suffix(suffix), bbox_inches='tight')
    plt.close(figure)


def _convergence(measured: Measured, run: Landscape) -> Figure:
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.9), sharey=True, layout='constrained')
    for o, axis in enumerate(axes):
        gap_SxT = measured.best[0, o] - measured.path.value[0, o]
        axis.semilogy(np.maximum(gap_SxT, 1e-16).T, color=COLORS[o], lw=0.7, alpha=0.45)
        axis.set_title(NAMES[o])
        axis.set_xlabel('iterations of projected ascent')
        axis.set_xlim(0, settled(measured, run))
        reached = (gap_SxT[:, -1] < 1e-8).mean()
        axis.annotate(
            f'{reached:.0%} of {run.starts} starts\nreach the maximum\n'
            f'in {run.iterations} iterations',
            (0.97, 0.95) if o else (0.97, 0.05),
            xycoords='axes fraction',
            ha='right',
            va='top' if o else 'bottom',
        )
    axes[0].set_ylim(1e-14, 3)
    axes[0].set_ylabel(GAP)
    return figure


def settled(measured: Measured, run: Landscape) -> int:
    """An iteration by which RevKL's paths have come down to rounding."""
    gap = measured.best[0, 1:, None, None] - measured.path.value[0, 1:]
    above = np.flatnonzero((gap > 1e-13).any((0, 1)))
    return int(min(run.iterations, 1.1 * max(above, default=0) + 10))


def _pl_ratio(measured: Measured, length_N: np.ndarray) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.3), sharey=True, layout='constrained')
    order = (0, 2, 1)
    for o in order:
        gap_N = measured.best[0, o] - measured.point_value[0, o]
        ratio_N = measured.point_pl_gain[0, o] / np.maximum(gap_N, GAP_FLOOR)
        axes[0].semilogy(length_N, ratio_N, '.', ms=1.5, color=COLORS[o], rasterized=True)
        gap_SxT = measured.best[0, o] - measured.path.value[0, o]
        ratio_SxT = np.where(
            gap_SxT > 100 * GAP_FLOOR,
            measured.path.pl_gain[0, o] / np.maximum(gap_SxT, GAP_FLOOR),
            np.nan,
        )
        axes[1].loglog(
            np.arange(1, ratio_SxT.shape[-1] + 1), ratio_SxT.T, color=COLORS[o], lw=0.6, alpha=0.5
        )
    handles = [Line2D([], [], color=COLORS[o], lw=2, label=NAMES[o]) for o in range(3)]
    margin = -measured.curvature[0, 1]
    if margin > 0:
        for axis in axes:
            axis.axhline(margin, color='k', ls='--', lw=1)
        handles.append(
            Line2D(
                [],
                [],
                color='k',
                ls='--',
                lw=1,
                label=r'bound $\mu$ for $\pi_\mathrm{ref}\Vert\pi$',
            )
        )
    axes[0].set_ylim(1e-10, 1)
    axes[0].set_xlabel(r'$\Vert\theta\Vert$ of points in the ball')
    axes[1].set_xlabel('iteration + 1')
    axes[0].set_ylabel('PL ratio')
    axes[0].set_title('at points of the ball')
    axes[1].set_title('along the paths of ascent')
    figure.legend(handles=handles, loc='outside lower center', ncols=4, columnspacing=1.2)
    return figure


def _curvature(measured: Measured, length_N: np.ndarray) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.3), layout='constrained')
    for o in (2, 0, 1):
        axes[0].plot(
            length_N,
            measured.point_curvature[0, o],
            '.',
            ms=1.5,
            color=COLORS[o],
            rasterized=True,
        )
    axes[0].set_xlabel(r'$\Vert\theta\Vert$ of points in the ball')
    axes[0].set_title('at points of the ball, problem 0')
    problems = len(measured.curvature)
    for o in range(3):
        axes[1].plot(np.arange(problems), measured.curvature[:, o], 'o', ms=5, color=COLORS[o])
    axes[1].set_title('largest over the ball')
    axes[1].set_xlabel('problem')
    axes[1].set_xticks(range(problems))
    for axis in axes:
        axis.axhline(0, color='k', lw=0.8)
        axis.set_yscale('symlog', linthresh=1e-3, linscale=0.7)
        axis.margins(y=0.08)
        axis.set_ylabel(r'largest eigenvalue of $\nabla^2 J_\lambda$')
    handles = [Line2D([], [], color=COLORS[o], marker='o', ls='', label=NAMES[o]) for o in range(3)]
    figure.legend(handles=handles, loc='outside lower center', ncols=3)
    return figure


def slice_figure(plane: Slice, run: Landscape) -> Figure:
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.6), sharey=True, layout='constrained')
    for o, axis in enumerate(axes):
        value = plane.value[o]
        # Levels by quantile show the shape near the maxima, where SAIL is nearly flat.
        inside = value[np.hypot(*np.meshgrid(plane.axis, plane.axis)) <= run.radius]
        levels = np.unique(np.quantile(inside, np.linspace(0, 1, 20) ** 0.6))
        if len(levels) == 1:  # Flat, to rounding.
            levels = levels + np.array([-1.0, 1.0])
        ball = Circle((0, 0), run.radius, fill=False, color='k', lw=0.8)
        axis.add_patch(ball)
        axis.contourf(
            plane.axis,
            plane.axis,
            value,
            levels,
            norm=BoundaryNorm(levels, 256, extend='both'),
            cmap='Greys',
            extend='both',
        ).set_clip_path(ball)
        for path in plane.path[o]:
            axis.plot(*path.T, color=COLORS[o], lw=0.8, alpha=0.9)
            axis.plot(*path[0], '.', color=COLORS[o], ms=3)
        maxima = plane.maxima[o]
        axis.plot(*maxima.T, '*', color='gold', mec='k', mew=0.7, ms=12, zorder=5, clip_on=False)
        axis.set_title(f'{NAMES[o]}\n{_count(len(maxima))}')
        axis.set_xlabel('$u_1$')
        axis.set_aspect('equal')
        axis.set_xlim(-1.05 * run.radius, 1.05 * run.radius)
        axis.set_ylim(-1.05 * run.radius, 1.05 * run.radius)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        axis.grid(False)
    axes[0].set_ylabel('$u_2$')
    return figure


def _count(maxima: int) -> str:
    return f'{maxima} local maximum' if maxima == 1 else f'{maxima} local maxima'


def _sweep(swept: Swept, run: Landscape) -> Figure:
    betas, coefficients = np.array(run.sweep.betas), np.array(run.sweep.coefficients)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.5), sharex=True, layout='constrained')
    edges, meshes = (_edges(betas), _edges(coefficients)), []
    for d, axis in enumerate(axes[:2]):
        spread = np.maximum(swept.spread[d], 1e-16).T
        norm = LogNorm(1e-16, 1)
        meshes.append(axis.pcolormesh(*edges, spread, norm=norm, cmap='Oranges'))
        axis.set_title(f'{NAMES[1 + d]}, problem 0')
        axis.set_xlim(_edges(betas)[[0, -1]])
        axis.set_ylim(_edges(coefficients)[[0, -1]])
        axis.grid(False)
    figure.colorbar(meshes[-1], ax=axes[:2], label=f'{GAP} at the worst local maximum', pad=0.01)
    axes[0].plot(betas, swept.sharp[0], color=COLORS[1], lw=1.8)
    _write(axes[0], 'strongly concave', (0.05, 0.93), COLORS[1])
    if (swept.curvature[1] >= 0).all():
        _write(axes[1], 'strongly concave nowhere', (0.05, 0.93), 'k')
    for numbers, color, style, name in (
        (swept.certified, 'k', '--', 'proven to suffice'),
        (swept.sharp, COLORS[1], '-', r'sharp (searched), $\lambda^\star(\beta)$'),
    ):
        axes[2].fill_between(betas, numbers.min(0), numbers.max(0), color=color, alpha=0.2, lw=0)
        axes[2].plot(betas, np.median(numbers, 0), color=color, ls=style, label=name)
    axes[2].set_title(f'strong concavity, {len(swept.sharp)} problems')
    for axis in axes:
        axis.loglog(run.beta, run.coefficient, '*', color='gold', mec='k', mew=0.7, ms=11)
        axis.set_xlabel(r'$\beta$')
        axis.set_ylabel(r'$\lambda$')
    axes[2].plot([], [], '*', color='gold', mec='k', mew=0.7, ms=11, ls='', label='this study')
    axes[2].legend(loc='lower right')
    return figure


def _edges(centres: np.ndarray) -> np.ndarray:
    """Borders of the cells around points on a log axis."""
    log = np.log(centres)
    middle = (log[1:] + log[:-1]) / 2
    return np.exp(np.concatenate([[2 * log[0] - middle[0]], middle, [2 * log[-1] - middle[-1]]]))


def _write(axis: Axes, text: str, at: tuple[float, float], color: str) -> None:
    axis.annotate(text, at, xycoords='axes fraction', color=color, va='top', fontsize=8.5)


def _samples(curves: Curves, table: list[dict], run: SampleComplexity) -> Figure:
    figure, axis = plt.subplots(figsize=(5.6, 4), layout='constrained')
    for o, name in enumerate(OBJECTIVES):
        gap_PxM = np.maximum(curves.gap[o].mean(1), GAP_FLOOR)
        (slope,) = (row for row in table if (row['problem'], row['objective']) == ('all', name))
        numbers = [f'${slope[key]:.2f}$' for key in ('slope', 'slope_low', 'slope_high')]
        axis.loglog(curves.labels, gap_PxM.T, color=COLORS[o], lw=0.6, alpha=0.4)
        axis.loglog(
            curves.labels,
            np.exp(np.log(gap_PxM).mean(0)),
            color=COLORS[o],
            lw=2.2,
            label='{}: slope {} [{}, {}]'.format(NAMES[o], *numbers),
        )
    axis.axvspan(curves.labels[-1] / FIT_LAST, curves.labels[-1], color='k', alpha=0.05, lw=0)
    right = curves.labels[curves.labels >= curves.labels[-1] / FIT_LAST]
    anchor = np.exp(np.log(curves.gap[1, ..., -1].mean(1)).mean()) / 3
    axis.loglog(
        right, anchor * right[-1] / right, 'k:', lw=1.2, label=r'$\propto 1/\mathrm{labels}$'
    )
    axis.set_xlabel('preference labels')
    axis.set_ylabel(f'{GAP}, mean over {curves.gap.shape[2]} seeds')
    axis.set_title(f'{curves.gap.shape[1]} problems (thin) and their geometric mean (thick)')
    axis.legend(loc='lower left')
    return figure
