"""How does the speed of control training change with what one may turn?

SAIL-RevKL on hopper (`spring`), a process for each point: environments side by side, lanes of a
group K (256 environments), segment length, devices (fake ones: a CPU's cores shared), seeds under
one `vmap` (64 environments each). The first curve has bare `env.step` beside it.

    python -m benchmarks.control_scaling --out benchmarks/results/control_scaling_cpu.json
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.machine import machine, make_parser, write
from benchmarks.rounds import rates, take_turns

matplotlib.use('Agg')
import matplotlib.pyplot as plt

STEPS = 65_536
"""Env steps of a timed call, at least; one update where it has more."""


def point(
    contender: str, logs: Path, rounds: int, devices: int | None = None, **options: int
) -> dict[str, Any]:
    """One process's env steps per second."""
    size = {'contexts': 32, 'group_size': 8, 'segment_length': 32} | options
    a_call = np.prod(list(size.values()))
    arguments = [f'--{key.replace("_", "-")}={value}' for key, value in size.items()]
    command = [sys.executable, '-m', 'benchmarks.control_contenders', contender, *arguments]
    command += ['--updates', str(max(STEPS // int(a_call), 1)), '--warm-up', '1']
    if devices:
        command = ['env', f'JAX_NUM_CPU_DEVICES={devices}', *command]
    outcome = take_turns({contender: command}, rounds, logs)[contender]
    return {
        **options,
        **({'devices': devices} if devices else {}),
        'env_steps_per_s': round(float(np.median(rates(outcome, 'env_steps'))), 1),
        'warm_up_s': outcome['warm_up_s'],
        'peak_mib': outcome['calls'][-1]['peak_mib'],
    }


def curves(logs: Path, rounds: int, most: int) -> dict[str, list[dict[str, Any]]]:
    """All curves.

    Args:
      most: environments side by side.
    """
    contexts = [c for c in (8, 32, 128, 512, 2048) if c * 8 <= most]
    seeds = [s for s in (1, 4, 16, 64) if s * 64 <= most]
    return {
        'steps: environments': [point('steps', logs, rounds, contexts=c) for c in contexts],
        'environments': [point('sail', logs, rounds, contexts=c) for c in contexts],
        'lanes K': [
            point('sail', logs, rounds, contexts=256 // k, group_size=k) for k in (2, 4, 8, 16)
        ],
        'segment length': [
            point('sail', logs, rounds, segment_length=t) for t in (16, 64, 250, 1000)
        ],
        'devices': [point('sail', logs, rounds, devices=d) for d in (1, 2, 4, 8)],
        'seeds': [point('sail', logs, rounds, contexts=8, seeds=s) for s in seeds],
    }


def draw(outcome: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """A panel for each curve."""
    panels = {
        'environments': lambda p: p['contexts'] * 8,
        'lanes K': lambda p: p['group_size'],
        'segment length': lambda p: p['segment_length'],
        'devices': lambda p: p['devices'],
        'seeds': lambda p: p['seeds'],
    }
    figure, axes = plt.subplots(1, 5, figsize=(13, 2.8), sharey=True, layout='constrained')
    for panel, (name, x) in zip(axes, panels.items(), strict=True):
        lines = {'training': outcome[name]}
        if name == 'environments':
            lines['bare env.step'] = outcome['steps: environments']
        for label, points in lines.items():
            y = [p['env_steps_per_s'] / 1000 for p in points]
            panel.plot([x(p) for p in points], y, marker='o', ms=4, label=label)
        values = [x(p) for p in outcome[name]]
        panel.set(xscale='log', xlabel=name, xticks=values)
        panel.set_xticklabels([f'{v:,}' for v in values], fontsize=8)
        panel.minorticks_off()
        panel.grid(alpha=0.2)
        panel.spines[['top', 'right']].set_visible(False)
    axes[0].set(ylabel='1000 env steps per second', ylim=0)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = make_parser(__doc__, needs_out=True)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--most', type=int, default=16_384, help='environments side by side')
    options = parser.parse_args()
    outcome = curves(options.out.parent / 'logs' / 'scaling', options.rounds, options.most)
    results = {'machine': machine('benchmarks.control_scaling'), 'curves': outcome}
    write(results, options.out)
    draw(outcome, options.out.with_suffix('.png'))
    for name, points in outcome.items():
        print(name, *(f'{p["env_steps_per_s"]:,.0f}' for p in points))


if __name__ == '__main__':
    main()
