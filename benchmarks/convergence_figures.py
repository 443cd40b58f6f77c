"""Figures of `benchmarks.convergence`: curves over env steps, a row an environment."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ticker import EngFormatter

from benchmarks.convergence_arms import PPO
from benchmarks.convergence_statistics import bootstrap, iqm

matplotlib.use('Agg')
import matplotlib.pyplot as plt

COLUMNS = {
    'returns': {
        'return': 'return',
        'deterministic_return': 'return of the mode',
        'J': 'J, training batches',
    },
    'spread': {
        'action_std': 'standard deviation of actions',
        'entropy': 'entropy, nats a step',
        'kl_policy_to_start': 'KL(policy to start), nats a step',
    },
}
"""What each figure draws."""
FAR = ('J', 'kl_policy_to_start')
"""What can be orders of magnitude from 0, where margins have the wrong sign or actions hardly any
spread."""
REFRESHED = ', refreshed'


def curve(axis: plt.Axes, x: np.ndarray, values: np.ndarray, label: str, **style: str) -> None:
    """IQM over seeds with its interval, at each evaluation; the style has a `color`."""
    points = [bootstrap([column], iqm) for column in values.T]
    axis.plot(x, [p.value for p in points], label=label, marker='.', markersize=4, **style)
    axis.fill_between(
        x, [p.low for p in points], [p.high for p in points], color=style['color'], alpha=0.12, lw=0
    )


def styles(arms: list[str]) -> dict[str, dict[str, str]]:
    """A colour a method, whose line is broken where the reference is fixed; PPO is black."""
    methods = list(dict.fromkeys(arm.replace(REFRESHED, '') for arm in arms if arm != PPO))
    return {
        arm: {'color': 'black', 'ls': '-'}
        if arm == PPO
        else {
            'color': f'C{methods.index(arm.replace(REFRESHED, ""))}',
            'ls': '-' if REFRESHED in arm else '--',
        }
        for arm in arms
    }


def draw(environments: dict[str, dict[str, dict[str, np.ndarray]]], out: Path) -> None:
    """`returns` and `spread`.

    Args:
      environments: of each its arms, and of these `env_steps` [evaluations] and the columns,
        [seeds, evaluations].
    """
    arms = list(dict.fromkeys(arm for numbers in environments.values() for arm in numbers))
    for name, columns in COLUMNS.items():
        figure, axes = plt.subplots(
            len(environments),
            len(columns),
            figsize=(12, 2.9 * len(environments)),
            squeeze=False,
            layout='constrained',
        )
        for row, (env, numbers) in zip(axes, environments.items(), strict=True):
            row[0].set_title(env, loc='left')
            for axis, (key, title) in zip(row, columns.items(), strict=True):
                for arm, style in styles(arms).items():
                    if arm in numbers and key in numbers[arm]:
                        x, values = numbers[arm]['env_steps'], numbers[arm][key]
                        there = np.isfinite(values).all(0)
                        curve(axis, x[there], values[:, there], arm, **style)
                axis.set_ylabel(title)
                axis.grid(alpha=0.3)
                axis.xaxis.set_major_formatter(EngFormatter(sep=''))
                if key in FAR and np.abs(axis.get_ylim()).max() > 50:
                    axis.set_yscale('symlog', linthresh=1)
        for axis in axes[-1]:
            axis.set_xlabel('env steps')
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside lower center', ncols=3)
        save(figure, out, name)


def save(figure: plt.Figure, out: Path, name: str) -> None:
    for suffix in ('png', 'pdf'):
        figure.savefig(out / f'{name}.{suffix}', dpi=150)
    plt.close(figure)
