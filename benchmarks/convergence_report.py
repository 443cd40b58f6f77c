"""Tables and figures of `benchmarks.convergence`.

Scores are normalised per environment: 0 is the reference that a seed starts from (mean over
seeds), 1 is PPO on the true reward, whose batches are larger, so that its curve is read at the env
steps of the others. Interquartile means with 95 % stratified bootstrap intervals,
seeds resampled within each environment (Agarwal et al. 2021, arXiv 2108.13264).
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.ticker import EngFormatter
from scipy import stats

from benchmarks.machine import write as write_json

matplotlib.use('Agg')
import matplotlib.pyplot as plt

PPO = 'PPO on the reward'
RESAMPLES = 2000


class Interval(NamedTuple):
    """A statistic with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f'{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]'


def bootstrap(samples: list[np.ndarray], statistic: Any) -> Interval:
    """Percentile bootstrap; every sample is resampled on its own.

    Args:
      samples: one array of seeds for each stratum.
      statistic: of these arrays, over their last axis.
    """
    value = float(statistic(*samples, axis=-1))
    if min(map(len, samples)) < 2:
        return Interval(value, float('nan'), float('nan'))
    outcome = stats.bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        method='percentile',
        rng=np.random.default_rng(0),
    )
    return Interval(value, *map(float, outcome.confidence_interval))


def iqm(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """Interquartile mean of all samples together."""
    return stats.trim_mean(np.concatenate(samples, axis), 0.25, axis=axis)


def improvement(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """P(X > Y), ties half, averaged over environments; the first half of the samples are X's."""
    half = len(samples) // 2
    wins = [
        (1 + np.sign(x[..., :, None] - y[..., None, :]).mean((-2, -1))) / 2
        for x, y in zip(samples[:half], samples[half:], strict=True)
    ]
    return np.mean(wins, axis=0)


def cohens_d(x: np.ndarray, y: np.ndarray) -> float:
    """Difference of the means over the pooled standard deviation; NaN of fewer than two seeds."""
    if min(len(x), len(y)) < 2:
        return float('nan')
    spread = (len(x) - 1) * x.var(ddof=1) + (len(y) - 1) * y.var(ddof=1)
    return float((x.mean() - y.mean()) / np.sqrt(spread / (len(x) + len(y) - 2)))


def array(values: list) -> np.ndarray:
    """Numbers with nulls as NaN."""
    return np.asarray(values, float)


def last(results: dict[str, Any], name: str) -> np.ndarray:
    """Returns of a method on one environment at the end of the preference methods, [seeds]."""
    end = min(result['env_steps'][-1] for result in results.values())
    returns = array(results[name]['return'])
    return np.asarray([np.interp(end, results[name]['env_steps'], seed) for seed in returns])


def normalised(results: dict[str, Any], name: str) -> np.ndarray:
    """The same between reference and PPO, [seeds]."""
    zero, one = array(results[name]['return'])[:, 0].mean(), last(results, PPO).mean()
    return (last(results, name) - zero) / (one - zero)


def collapsed(returns: np.ndarray) -> np.ndarray:
    """Seeds that end nearer to their start than to their best, or below their start, [seeds]."""
    start, best, last = returns[:, 0], returns.max(1), returns[:, -1]
    return (last < start) | (last - start < (best - start) / 2)


def summarise(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a method, over all environments."""
    environments = raw['envs']
    names = list(next(iter(environments.values())))
    scores = {
        name: [normalised(results, name) for results in environments.values()] for name in names
    }
    rival = 'SAIL-RevKL, ref to policy'
    rows = []
    for name in names:
        fallen = [collapsed(array(results[name]['return'])) for results in environments.values()]
        better = bootstrap(scores[rival] + scores[name], improvement) if name != rival else None
        kl = [array(results[name]['kl_policy_to_ref'])[:, -1] for results in environments.values()]
        rows.append(
            {
                'method': name,
                'iqm': bootstrap(scores[name], iqm)._asdict(),
                'rival_improves': better and better._asdict(),
                'collapsed': float(np.concatenate(fallen).mean()),
                'kl_policy_to_ref': float(np.nanmedian(np.concatenate(kl))),
                'envs': {
                    env: {
                        'return': bootstrap([last(results, name)], iqm)._asdict(),
                        'start': float(array(results[name]['return'])[:, 0].mean()),
                        'normalised': float(iqm(normalised(results, name))),
                        'collapsed': float(collapsed(array(results[name]['return'])).mean()),
                        'settings': results[name].get('settings'),
                    }
                    for env, results in environments.items()
                },
            }
        )
    return rows


def machines(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What an environment's methods were measured on, each once."""
    outcome = {json.dumps(result['machine']): result['machine'] for result in results.values()}
    return list(outcome.values())


def measurement(machine: dict[str, Any]) -> str:
    return (
        f'`{machine["command"]}`, {machine["cpu_cores"]} {machine["platform"]} cores, '
        f'jax {machine["versions"]["jax"]}, {machine["date"]}'
    )


def markdown(raw: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The tables."""
    size = raw['size']
    interval = lambda x: str(Interval(**x)) if x else ''
    lines = [
        f'{size["seeds"]} seeds, {size["env_steps"]:,} env steps, rounded up to whole evaluations.',
        '',
        '| method | IQM of normalised return | P(SAIL-RevKL, ref to policy, is better) | collapsed '
        '| KL(policy to start), nats per step |',
        '|---|---|---|---|---|',
    ]
    for row in rows:
        lines.append(
            f'| {row["method"]} | {interval(row["iqm"])} | {interval(row["rival_improves"])} '
            f'| {row["collapsed"]:.0%} | {row["kl_policy_to_ref"]:.3g} |'
        )
    for env in raw['envs']:
        start = rows[0]['envs'][env]['start']
        measured = '; '.join(map(measurement, machines(raw['envs'][env])))
        lines += ['', f'{env}: reference {start:.1f}. {measured}', '']
        lines += [
            '| method | IQM of return | normalised | collapsed | settings |',
            '|---|---|---|---|---|',
        ]
        for row in rows:
            numbers = row['envs'][env]
            value = Interval(**numbers['return'])
            settings = ', '.join(f'{k} {v:g}' for k, v in (numbers['settings'] or {}).items())
            lines.append(
                f'| {row["method"]} | {value.value:.0f} [{value.low:.0f}, {value.high:.0f}] '
                f'| {numbers["normalised"]:.2f} | {numbers["collapsed"]:.0%} | {settings} |'
            )
    return '\n'.join(lines) + '\n'


def curve(axis: plt.Axes, x: list[float], returns: np.ndarray, color: str, label: str) -> None:
    """IQM over seeds with its interval, at each evaluation."""
    points = [bootstrap([column], iqm) for column in returns.T]
    axis.plot(x, [p.value for p in points], color=color, label=label, marker='.', markersize=4)
    axis.fill_between(
        x, [p.low for p in points], [p.high for p in points], color=color, alpha=0.15, lw=0
    )


def figure_returns(raw: dict[str, Any], out: Path) -> None:
    """Return against env steps, labels and J, a row an environment."""
    environments = raw['envs']
    figure, axes = plt.subplots(
        len(environments),
        3,
        figsize=(11, 2.9 * len(environments)),
        squeeze=False,
        sharey='row',
        layout='constrained',
    )
    for row, (env, results) in zip(axes, environments.items(), strict=True):
        for index, (name, result) in enumerate(results.items()):
            color = 'black' if name == PPO else f'C{index}'
            returns = array(result['return'])
            curve(row[0], result['env_steps'], returns, color, name)
            if name == PPO:
                continue
            curve(row[1], result['labels'], returns, color, name)
            J = np.nanmean(array(result['J'])[:, 1:], 0)
            row[2].plot(J, iqm(returns.T[1:]), color=color, marker='.', markersize=4, lw=1)
            row[2].plot(J[-1:], iqm(returns.T[-1:]), color=color, marker='o')
        # J goes from -log 2 towards 0, and far below where the margins have the wrong sign.
        row[2].set_xscale('symlog', linthresh=1)
        row[2].set_xlim(right=0)
        row[0].set_ylabel(f'{env}: return')
        for axis, title in zip(
            row, ('env steps', 'labels', 'J, training batches (end of run: disc)'), strict=True
        ):
            axis.grid(alpha=0.3)
            if axis in axes[-1]:
                axis.set_xlabel(title)
        for axis in row[:2]:
            axis.xaxis.set_major_formatter(EngFormatter(sep=''))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside lower center', ncols=4)
    save(figure, out, 'returns')


def figure_summary(rows: list[dict[str, Any]], out: Path) -> None:
    """Normalised return and share of collapsed seeds, a bar a method."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout='constrained')
    for index, row in enumerate(reversed(rows)):
        color = 'black' if row['method'] == PPO else f'C{len(rows) - 1 - index}'
        value = Interval(**row['iqm'])
        left.barh(index, value.value, color=color, alpha=0.6)
        left.plot([value.low, value.high], [index, index], color='black', lw=1.5)
        right.barh(index, row['collapsed'], color=color, alpha=0.6)
    left.set_yticks(range(len(rows)), [row['method'] for row in reversed(rows)], fontsize=8)
    left.set_xlabel('IQM of return (reference 0, PPO 1), 95 % interval')
    right.set_xlabel('share of collapsed seeds')
    right.set_xlim(0, 1)
    for axis in (left, right):
        axis.grid(alpha=0.3, axis='x')
    save(figure, out, 'summary')


def save(figure: plt.Figure, out: Path, name: str) -> None:
    for suffix in ('png', 'pdf'):
        figure.savefig(out / f'{name}.{suffix}', dpi=150)
    plt.close(figure)


def write(raw: dict[str, Any], out: Path) -> None:
    """`table.json`, `table.md`, `returns` and `summary` (PNG, PDF) in `out`."""
    rows = summarise(raw)
    measured = {env: machines(results) for env, results in raw['envs'].items()}
    write_json({'machines': measured, 'methods': rows}, out / 'table.json')
    (out / 'table.md').write_text(markdown(raw, rows))
    figure_returns(raw, out)
    figure_summary(rows, out)
