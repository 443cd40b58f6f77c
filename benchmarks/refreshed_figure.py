"""The figure of `benchmarks.refreshed`."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.patches import Circle

from sail_jax.bandit.figures import COLORS, STYLE

SHADES = ('#0072B2', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
"""Okabe and Ito's colours."""


def draw(
    found: dict[str, Any],
    betas: np.ndarray,
    coefficients: np.ndarray,
    shown: tuple[float, ...],
    path: Path,
) -> None:
    """Two rows: the landscapes of the sequence; distance, contraction and samples."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(11, 6.6), layout='constrained')
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.2))
        _planes(above.subplots(1, 5), found['plane'])
        axes = below.subplots(1, 3)
        _distance(axes[0], found, betas, coefficients, shown)
        _contraction(axes[1], found, betas, coefficients)
        _samples(axes[2], found['samples'])
        figure.savefig(path)
        plt.close(figure)


def _planes(axes: Any, plane: dict[str, Any]) -> None:
    axis, path = plane['axis'], plane['path']
    radius = axis[-1]
    titles = ['SAIL, no penalty', 'RevKL, first reference']
    titles += [f'after {n} refreshes' for n in plane['shown'][1:]]
    ends = [None, *plane['shown']]
    for panel, title, value, n in zip(
        axes, titles, [plane['sail'], *plane['values']], ends, strict=True
    ):
        inside = np.hypot(*np.meshgrid(axis, axis)) <= radius
        levels = np.unique(np.quantile(value[inside], np.linspace(0, 1, 18) ** 0.6))
        ball = Circle((0, 0), radius, fill=False, color='k', lw=0.8)
        panel.add_patch(ball)
        norm = BoundaryNorm(levels, 256, extend='both')
        panel.contourf(
            axis, axis, value, levels, norm=norm, cmap='Greys', extend='both'
        ).set_clip_path(ball)
        if n is None:
            panel.plot(*path[0], 'o', color=COLORS[0], ms=5)
        else:
            panel.plot(*path[: n + 2].T, '.-', color=COLORS[1], lw=1, ms=4)
            panel.plot(*path[n], 'o', color=COLORS[0], ms=5)
            panel.plot(*path[n + 1], '*', color='gold', mec='k', mew=0.7, ms=11, zorder=5)
        panel.set_title(title)
        panel.set_aspect('equal')
        panel.set_xlim(-1.05 * radius, 1.05 * radius)
        panel.set_ylim(-1.05 * radius, 1.05 * radius)
        panel.spines[:].set_visible(False)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.grid(False)


def _distance(
    axis: Axes,
    found: dict[str, Any],
    betas: np.ndarray,
    coefficients: np.ndarray,
    shown: tuple[float, ...],
) -> None:
    for index, coefficient in enumerate(shown):
        distance_PxN = np.maximum(found['distance'][index], 1e-8)
        x = np.arange(distance_PxN.shape[1])
        label = rf'$\lambda$ = {coefficient:g}'
        axis.fill_between(
            x, distance_PxN.min(0), distance_PxN.max(0), color=SHADES[index], alpha=0.15, lw=0
        )
        axis.semilogy(x, np.median(distance_PxN, 0), color=SHADES[index], label=label)
    axis.set_ylim(1e-4, 10)
    axis.set_xlabel('refreshes')
    axis.set_ylabel('distance of the reference to its limit')
    axis.set_title(rf'exact sequences, $\beta$ = {betas[0]:g}, 8 problems')
    axis.legend(loc='lower left')


def _contraction(
    axis: Axes, found: dict[str, Any], betas: np.ndarray, coefficients: np.ndarray
) -> None:
    for b, beta in enumerate(betas):
        rate = found['contraction'][b]
        axis.fill_between(coefficients, rate.min(1), rate.max(1), color=SHADES[b], alpha=0.2, lw=0)
        label = rf'$\beta$ = {beta:g}'
        axis.semilogx(coefficients, np.median(rate, 1), color=SHADES[b], label=label)
        height = 0.04 + 0.06 * (len(betas) - 1 - b)
        for name, style in (('sharp', '-'), ('certified', ':')):
            ends = found[name][b].min(), found[name][b].max()
            axis.plot(ends, [height] * 2, color=SHADES[b], ls=style, marker='|', lw=2, ms=7)
    axis.plot([], [], 'k-', label='strongly concave above, searched')
    axis.plot([], [], 'k:', label='strongly concave above, proven')
    axis.set_ylim(0, 1.02)
    axis.set_xlabel(r'$\lambda$')
    axis.set_ylabel('contraction per refresh, at the limit')
    axis.set_title('closed form; ranges over problems')
    axis.legend(loc='lower left', fontsize=7, bbox_to_anchor=(0, 0.2))


def _samples(axis: Axes, samples: dict[str, Any]) -> None:
    low, high = samples['fixed'].min(), samples['fixed'].max()
    axis.axhspan(low, high, color='k', alpha=0.1, lw=0, label='maximum without refresh, exact')
    for index, (every, curve_PxM) in enumerate(samples['curves'].items()):
        title = 'never refreshed' if every is None else f'refreshed each {every} updates'
        color = COLORS[0] if every is None else SHADES[index - 1]
        curve_PxM = np.maximum(curve_PxM, 1e-6)
        axis.loglog(samples['labels'], curve_PxM.T, color=color, lw=0.5, alpha=0.3)
        mean = np.exp(np.log(curve_PxM).mean(0))
        axis.loglog(samples['labels'], mean, color=color, lw=2, label=title)
    axis.set_xlabel('preference labels')
    axis.set_ylabel('P(limit beats the policy) - 1/2')
    axis.set_title('sampled, last iterate; thick: geometric mean')
    axis.legend(loc='lower left', fontsize=7)
