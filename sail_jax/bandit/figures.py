"""Figures of the two studies, each as PNG and PDF."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D

from sail_jax.bandit.config import Landscape, SampleComplexity
from sail_jax.bandit.landscape import GAP_FLOOR
from sail_jax.bandit.measure import OBJECTIVES, Measured, Slice, Swept
from sail_jax.bandit.stochastic import FIT_LAST, Curves

STYLE = {
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
        _save(_slice(plane, run), run_dir / 'slice')
        _save(_sweep(swept, run), run_dir / 'sweep')


def sample_complexity(
    curves: Curves, table: list[dict], run: SampleComplexity, run_dir: Path
) -> None:
    """Suboptimality against labels."""
    with plt.rc_context(STYLE):
        _save(_samples(curves, table, run), run_dir / 'sample_complexity')


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path.with_suffix('.png'))
    figure.savefig(path.with_suffix('.pdf'))
    plt.close(figure)


def _convergence(measured: Measured, run: Landscape) -> plt.Figure:
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.9), sharey=True, layout='constrained')
    for o, axis in enumerate(axes):
        gap_SxT = measured.best[0, o] - measured.path.value[0, o]
        axis.semilogy(np.maximum(gap_SxT, 1e-16).T, color=COLORS[o], lw=0.7, alpha=0.45)
        axis.set_title(NAMES[o])
        axis.set_xlabel('iterations of projected ascent')
        axis.set_xlim(0, _settled(measured, run))
        reached = (gap_SxT[:, -1] < 1e-8).mean()
        axis.annotate(
            f'{reached:.0%} of {run.starts} starts\nreach the maximum',
            (0.97, 0.95) if o else (0.97, 0.05),
            xycoords='axes fraction',
            ha='right',
            va='top' if o else 'bottom',
        )
    axes[0].set_ylim(1e-14, 3)
    axes[0].set_ylabel(GAP)
    return figure


def _settled(measured: Measured, run: Landscape) -> int:
    """An iteration by which RevKL's paths have come down to rounding."""
    gap = measured.best[0, 1:, None, None] - measured.path.value[0, 1:]
    above = np.flatnonzero((gap > 1e-13).any((0, 1)))
    return int(min(run.iterations, 1.1 * above[-1] + 10))


def _pl_ratio(measured: Measured, length_N: np.ndarray) -> plt.Figure:
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
    axes[0].set_title('over the ball')
    axes[1].set_title('along the paths of ascent')
    figure.legend(handles=handles, loc='outside lower center', ncols=4)
    return figure


def _curvature(measured: Measured, length_N: np.ndarray) -> plt.Figure:
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
    axes[0].set_title('one problem')
    problems = len(measured.curvature)
    for o in range(3):
        axes[1].plot(np.arange(problems), measured.curvature[:, o], 'o', ms=5, color=COLORS[o])
    axes[1].set_title('largest over the ball, every problem')
    axes[1].set_xlabel('problem')
    axes[1].set_xticks(range(problems))
    for axis in axes:
        axis.axhline(0, color='k', lw=0.8)
        axis.set_yscale('symlog', linthresh=1e-3, linscale=0.7)
        axis.set_ylabel(r'largest eigenvalue of $\nabla^2 J_\lambda$')
    handles = [Line2D([], [], color=COLORS[o], marker='o', ls='', label=NAMES[o]) for o in range(3)]
    figure.legend(handles=handles, loc='outside lower center', ncols=3)
    return figure


def _slice(plane: Slice, run: Landscape) -> plt.Figure:
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.3), sharey=True, layout='constrained')
    for o, axis in enumerate(axes):
        value = plane.value[o]
        # Levels by quantile show the shape near the maxima, where SAIL is nearly flat.
        levels = np.unique(np.nanquantile(value, np.linspace(0, 1, 22) ** 0.7))
        rank = np.searchsorted(levels, value).astype(float)
        rank[np.isnan(value)] = np.nan
        axis.contourf(
            plane.axis, plane.axis, rank, levels=len(levels), cmap='Greys', alpha=0.75, zorder=0
        )
        for path in plane.path[o]:
            axis.plot(*path.T, color=COLORS[o], lw=0.8, alpha=0.9)
            axis.plot(*path[0], '.', color=COLORS[o], ms=3)
        maxima = plane.maxima[o]
        axis.plot(*maxima.T, '*', color='gold', mec='k', mew=0.7, ms=12, zorder=5, clip_on=False)
        axis.add_patch(plt.Circle((0, 0), run.radius, fill=False, color='k', lw=0.8))
        axis.set_title(f'{NAMES[o]}\n{_count(len(maxima))}')
        axis.set_xlabel('$u_1$')
        axis.set_aspect('equal')
        axis.grid(False)
    axes[0].set_ylabel('$u_2$')
    return figure


def _count(maxima: int) -> str:
    return f'{maxima} local maximum' if maxima == 1 else f'{maxima} local maxima'


def _sweep(swept: Swept, run: Landscape) -> plt.Figure:
    betas, coefficients = np.array(run.sweep.betas), np.array(run.sweep.coefficients)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout='constrained')
    for d, axis in enumerate(axes[:2]):
        spread = np.maximum(swept.spread[d], 1e-16).T
        mesh = axis.pcolormesh(
            betas, coefficients, spread, norm=LogNorm(1e-15, 1), cmap='magma_r', shading='nearest'
        )
        axis.set_title(f'{NAMES[1 + d]}: spread over starts')
        concave = swept.curvature[d].T < 0
        y, x = np.nonzero(concave)
        axis.plot(betas[x], coefficients[y], 'o', ms=3, mfc='none', mec='#0072B2', mew=0.9)
    figure.colorbar(mesh, ax=axes[:2], label=r'$J^\star_\lambda$ $-$ worst local maximum', pad=0.01)
    axes[2].fill_between(
        betas, swept.sharp.min(0), swept.sharp.max(0), color=COLORS[1], alpha=0.25, lw=0
    )
    axes[2].plot(betas, np.median(swept.sharp, 0), color=COLORS[1])
    axes[2].fill_between(
        betas, swept.certified.min(0), swept.certified.max(0), color='k', alpha=0.15, lw=0
    )
    axes[2].plot(betas, np.median(swept.certified, 0), 'k--')
    axes[2].plot(run.beta, run.coefficient, '*', color='gold', mec='k', ms=11)
    axes[2].set_title(r'where strong concavity begins')
    for axis in axes:
        axis.set_xscale('log')
        axis.set_yscale('log')
        axis.set_xlabel(r'$\beta$')
        axis.set_ylabel(r'$\lambda$')
    return figure


def _samples(curves: Curves, table: list[dict], run: SampleComplexity) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(5.6, 4), layout='constrained')
    for o, name in enumerate(OBJECTIVES):
        gap_PxM = np.maximum(curves.gap[o].mean(1), GAP_FLOOR)
        (slope,) = (row for row in table if (row['problem'], row['objective']) == ('all', name))
        interval = f'[{slope["slope_low"]:.2f}, {slope["slope_high"]:.2f}]'
        axis.loglog(curves.labels, gap_PxM.T, color=COLORS[o], lw=0.6, alpha=0.4)
        axis.loglog(
            curves.labels,
            np.exp(np.log(gap_PxM).mean(0)),
            color=COLORS[o],
            lw=2.2,
            label=f'{NAMES[o]}: slope ${slope["slope"]:.2f}$ {interval}'.replace(
                '-', '\N{MINUS SIGN}'
            ),
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
