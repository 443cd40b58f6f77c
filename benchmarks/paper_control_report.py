"""Tables and figures of `benchmarks.paper_control`, from its `raw.json`.

python -m benchmarks.paper_control_report DIR    draws them anew
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter

from benchmarks.convergence_figures import curve, save
from benchmarks.convergence_report import measurement
from benchmarks.convergence_statistics import (
    Interval,
    array,
    bootstrap,
    cohens_d,
    improvement,
    iqm,
)
from benchmarks.machine import write as write_json

WINDOW = 11
"""Evaluations of the paper's centred moving average."""
RIVAL = 'PEBBLE'
"""Whom the other arms are compared with."""
LAST = 0.1
"""The share of a run whose evaluations are its final return."""


def smoothed(returns: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Centred moving average over the last axis, at the ends of what there is."""
    half, points = window // 2, returns.shape[-1]
    spans = [slice(max(i - half, 0), i + half + 1) for i in range(points)]
    return np.stack([returns[..., span].mean(-1) for span in spans], -1)


def final(result: dict[str, Any], of: str = 'mode') -> np.ndarray:
    """The mean of the last evaluations, of the mode's returns or successes, [seeds]."""
    steps, numbers = array(result['env_steps']), array(result[of])
    return numbers[:, steps >= (1 - LAST) * steps[-1]].mean(-1)


def summarise(arms: dict[str, Any]) -> list[dict[str, Any]]:
    """A row an arm, on one environment."""
    rows = []
    for name, result in arms.items():
        scores = final(result)
        row = {
            'arm': name,
            'labels': result['labels'],
            'final_return': bootstrap([scores], iqm)._asdict(),
            'median': float(np.median(scores)),
            'hours': round(result['seconds'] / 3600, 2),
        }
        if 'success' in result:
            row['success_rate'] = bootstrap([final(result, 'success')], iqm)._asdict()
        if RIVAL in arms and name != RIVAL:
            rival = final(arms[RIVAL])
            row['improves_on_rival'] = bootstrap([scores, rival], improvement)._asdict()
            row['cohens_d'] = cohens_d(scores, rival)
        rows.append(row)
    return rows


def markdown(raw: dict[str, Any], tables: dict[str, list[dict[str, Any]]]) -> str:
    """A table an environment."""
    lines = []
    for env, rows in tables.items():
        arms = raw['envs'][env]
        one = next(iter(arms.values()))
        # Arms may be pieces, each of a command of its own.
        measured = dict.fromkeys(measurement(result['machine']) for result in arms.values())
        lines += [
            f'{env}, scale `{raw["scale"]}`, {len(one["mode"])} seeds, '
            f'{one["env_steps"][-1]:,} env steps.',
            '',
            *(f'* {line}' for line in measured),
            '',
            f'| arm | answers | IQM of final return, 95 % | median | P(better than {RIVAL}) '
            "| Cohen's d | hours, all seeds |",
            '|---|---|---|---|---|---|---|',
        ]
        for row in rows:
            better, d = row.get('improves_on_rival'), row.get('cohens_d')
            success = row.get('success_rate')
            share = f' (success: {Interval(**success)})' if success else ''
            lines.append(
                f'| {row["arm"]} | {row["labels"]:.0f} | {Interval(**row["final_return"])}{share} '
                f'| {row["median"]:.1f} | {Interval(**better) if better else ""} '
                f'| {"" if d is None else f"{d:.2f}"} | {row["hours"]} |'
            )
        lines.append('')
    return '\n'.join(lines)


def figure(raw: dict[str, Any], out: Path, name: str) -> None:
    """Returns of the mode against env steps, a panel an environment: `paper` is smoothed, median
    and quartiles over seeds; `ours` is not, interquartile mean with its bootstrap interval."""
    environments = raw['envs']
    drawn, axes = plt.subplots(
        1,
        len(environments),
        figsize=(4.2 * len(environments), 3.4),
        squeeze=False,
        layout='constrained',
    )
    for axis, (env, arms) in zip(axes[0], environments.items(), strict=True):
        for index, (arm, result) in enumerate(arms.items()):
            x, returns = result['env_steps'], array(result['mode'])
            if name == 'ours':
                curve(axis, x, returns, arm, color=f'C{index}')
                continue
            low, middle, high = np.percentile(smoothed(returns), (25, 50, 75), axis=0)
            axis.plot(x, middle, color=f'C{index}', label=arm)
            axis.fill_between(x, low, high, color=f'C{index}', alpha=0.15, lw=0)
        axis.set_title(env)
        axis.set_xlabel('env steps')
        axis.xaxis.set_major_formatter(EngFormatter(sep=''))
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel('return of the mode')
    handles, names = axes[0, 0].get_legend_handles_labels()
    drawn.legend(handles, names, loc='outside lower center', ncols=2 * len(environments))
    save(drawn, out, name)


def add(out: Path, scale: str, env: str, arm: str, result: dict[str, Any]) -> None:
    """Puts an arm's result beside those that `raw.json` has, and draws all of them.

    What was made at another scale is left out.
    """
    path = out / 'raw.json'
    raw = json.loads(path.read_text()) if path.exists() else {}
    if raw.get('scale') != scale:
        raw = {'scale': scale, 'envs': {}}
    raw['envs'].setdefault(env, {})[arm] = result
    write_json(raw, path, indent=None)
    draw(out)


def draw(out: Path) -> None:
    """`table.json`, `table.md`, `paper` and `ours` (PNG, PDF) of what `raw.json` has."""
    raw = json.loads((out / 'raw.json').read_text())
    tables = {env: summarise(arms) for env, arms in raw['envs'].items()}
    write_json({'scale': raw['scale'], 'envs': tables}, out / 'table.json')
    (out / 'table.md').write_text(markdown(raw, tables))
    for name in ('paper', 'ours'):
        figure(raw, out, name)


if __name__ == '__main__':
    draw(Path(sys.argv[1]))
