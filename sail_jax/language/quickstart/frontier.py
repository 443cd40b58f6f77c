"""Reward against KL: what each method pays for what it gains."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sail_jax.errors import UserError
from sail_jax.training import metrics


class Point(NamedTuple):
    """An evaluation of an alignment."""

    prompts: int
    """Trained on so far."""
    reward: float
    """Mean over the held-out prompts."""
    reward_se: float
    kl: float
    """KL(policy || start), nats per response."""
    win_rate: float
    """Against the start policy."""
    length: float
    """Tokens of a response."""


KEYS = {
    'prompts': 'prompts',
    'reward': 'eval/reward',
    'reward_se': 'eval/reward_se',
    'kl': 'eval/response_kl_policy_to_start',
    'win_rate': 'eval/win_rate',
    'length': 'eval/response_length',
}
"""Fields of `Point`, and what `metrics.jsonl` calls them."""


def points(run_dir: Path) -> list[Point]:
    """A run's evaluations, in order.

    Raises:
      UserError: there is none.
    """
    path = run_dir / 'metrics.jsonl'
    evaluations = []
    for row in metrics.read_rows(path):
        numbers: dict[str, Any] = {name: row.get(key) for name, key in KEYS.items()}
        if None not in numbers.values():
            evaluations.append(Point(**numbers))
    if not evaluations:
        raise UserError(f'{path}: no evaluation in it')
    return evaluations


def write(curves: Mapping[str, Sequence[Point]], directory: Path) -> None:
    """`frontier.json` and `frontier.png` of each method's points."""
    numbers = {name: [point._asdict() for point in curve] for name, curve in curves.items()}
    (directory / 'frontier.json').write_text(json.dumps(numbers, indent=1) + '\n', encoding='utf-8')
    draw({name: [curve] for name, curve in curves.items()}, directory / 'frontier.png')


def draw(curves: Mapping[str, Sequence[Sequence[Point]]], out: Path) -> None:
    """Reward over KL, over training, of one or several seeds of each method.

    The line is the mean over seeds of both; one seed has its standard error over prompts as bars,
    several are drawn thin.
    """
    import matplotlib  # Takes a second, which other commands need not wait.

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, (frontier, progress) = plt.subplots(
        1, 2, figsize=(8.4, 3.6), sharey=True, layout='constrained'
    )
    for index, (name, seeds) in enumerate(curves.items()):
        reward, kl, prompts = (
            np.asarray([[getattr(point, key) for point in seed] for seed in seeds])
            for key in ('reward', 'kl', 'prompts')
        )
        error = [point.reward_se for point in seeds[0]] if len(seeds) == 1 else None
        style = {'color': f'C{index}', 'marker': '.', 'lw': 1.5, 'capsize': 2, 'elinewidth': 0.8}
        for axis, x in ((frontier, kl), (progress, prompts)):
            axis.errorbar(x.mean(0), reward.mean(0), error, label=name, **style)
            if len(seeds) > 1:
                axis.plot(x.T, reward.T, color=f'C{index}', lw=0.5, alpha=0.4)
    frontier.set_xlabel('KL(policy || start), nats per response')
    frontier.set_ylabel('mean sentiment of the responses')
    progress.set_xlabel('prompts')
    frontier.legend(frameon=False, loc='lower right')
    for axis in (frontier, progress):
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=150)
    plt.close(figure)
