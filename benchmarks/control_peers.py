"""How fast is control training, and how fast is what one would use instead?

Env steps per second on one machine, each contender in a process of its own, in turn (see
`benchmarks.rounds`), compilation apart:

* `steps`: bare `env.step` with random actions, a device for each core: the limit;
* `rollouts`: the training's groups of segments and their labels, without learning;
* `sail`: SAIL-RevKL with 16 gradient steps a batch, as the shipped files have; `sail-1`: with 1;
* `brax-ppo`: Brax's PPO as it comes, with batches, networks and gradient steps of the same size;
  `brax-ppo-cores`: the same with a device for each core; `brax-ppo-published`: with the settings
  that its repository trains the environment with, and its default networks (ant);
* `gymnasium`: the same algorithm in PyTorch on Gymnasium's MuJoCo environments, where installed.

`live_steps` leaves out what was simulated after a lane's end; ratios to `gymnasium`, which does not
step dead lanes, are of live steps. Ratios are medians over rounds of the ratio within a round.

    python -m benchmarks.control_peers --out benchmarks/results/control_peers_cpu.json

Of environments that --envs leaves out, --out keeps what it has.
"""

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks import ENVS
from benchmarks.control_contenders import PUBLISHED
from benchmarks.machine import machine, make_parser, write
from benchmarks.rounds import rates, row, take_turns

matplotlib.use('Agg')
import matplotlib.pyplot as plt

CONTENDERS = {
    'steps': 'benchmarks.control_contenders steps',
    'rollouts': 'benchmarks.control_contenders rollouts',
    'sail-1': 'benchmarks.control_contenders sail --passes 1',
    'sail': 'benchmarks.control_contenders sail',
    'brax-ppo': 'benchmarks.control_contenders brax-ppo',
    'brax-ppo-cores': 'benchmarks.control_contenders brax-ppo-cores',
    'brax-ppo-published': 'benchmarks.control_contenders brax-ppo-published',
    'gymnasium': 'benchmarks.gymnasium_contender',
}
LABELS = {
    'steps': 'bare env.step (the limit)',
    'rollouts': 'rollouts without learning',
    'sail-1': 'SAIL-RevKL, 1 gradient step',
    'sail': 'SAIL-RevKL, 16 gradient steps',
    'brax-ppo': 'Brax PPO, as it comes',
    'brax-ppo-cores': 'Brax PPO, a device for each core',
    'brax-ppo-published': 'Brax PPO, its published settings',
    'gymnasium': 'PyTorch + Gymnasium MuJoCo',
}
MARKERS = 'osD^v<>PX'
CONTEXTS = 32

# Of ours, of what, goal.
RATIOS = (
    ('rollouts', 'steps', None),
    ('sail-1', 'steps', 0.9),
    ('sail', 'steps', None),
    ('sail', 'brax-ppo', 2.0),
    ('sail', 'brax-ppo-cores', None),
    ('sail', 'brax-ppo-published', 2.0),
    ('sail', 'gymnasium', 5.0),
)


def measure(env: str, options: argparse.Namespace) -> dict[str, Any]:
    """All contenders on one environment."""
    arguments = ['--env', env, '--updates', str(options.updates)]
    ours = ['--contexts', str(options.contexts)]
    commands = {
        name: [
            *[sys.executable, '-m', *CONTENDERS[name].split(), *arguments],
            *(ours if name != 'gymnasium' else ()),
        ]
        for name in options.contenders
        if (name != 'gymnasium' or (find_spec('gymnasium') and options.contexts == CONTEXTS))
        and (name != 'brax-ppo-published' or env in PUBLISHED)
    }
    outcome = take_turns(commands, options.rounds, options.out.parent / 'logs' / env)
    for result in outcome.values():
        for counted in ('env_steps', 'live_steps'):
            if counted in result['calls'][0]:
                result[f'{counted}_per_s'] = round(float(np.median(rates(result, counted))), 1)
        result['peak_mib'] = result['calls'][-1]['peak_mib']
    return outcome


def rows(envs: dict[str, Any]) -> list[dict[str, Any]]:
    """The ratios, as `benchmarks.__main__` prints them and `benchmarks.regressions` compares."""
    outcome = []
    for env, results in envs.items():
        for ours, theirs, goal in RATIOS:
            if ours not in results or theirs not in results:
                continue
            counted = 'live_steps' if theirs == 'gymnasium' else 'env_steps'
            mine, other = (
                rates(results[ours], counted),
                rates(results[theirs], 'env_steps'),
            )
            speeds = np.median(mine), np.median(other)
            name, unit = f'{env}: {ours} / {theirs}', f'{counted.replace("_", " ")}/s'
            outcome.append(row(name, unit, *speeds, np.median(mine / other), goal))
    return outcome


def draw(envs: dict[str, Any], path: Path) -> None:
    """Env steps per second, a row an environment and a mark a contender."""
    figure, axes = plt.subplots(figsize=(9, 3.6), layout='constrained')
    places = np.arange(len(envs))
    for i, name in enumerate(CONTENDERS):
        counted = 'live_steps_per_s' if name == 'gymnasium' else 'env_steps_per_s'
        values = [results.get(name, {}).get(counted, np.nan) for results in envs.values()]
        if np.isnan(values).all():
            continue
        # Contenders that are equally fast lie side by side.
        lift = ((len(CONTENDERS) - 1) / 2 - i) * 0.09
        axes.plot(values, places - lift, MARKERS[i], label=LABELS[name], color=plt.cm.tab10(i))
    # On a logarithmic axis a bar's length would mean nothing: there is no zero for it to start at.
    axes.set(
        xscale='log', xlabel='env steps per second', yticks=places, ylim=(len(envs) - 0.5, -0.5)
    )
    axes.set_yticklabels(list(envs))
    axes.grid(axis='x', which='both', alpha=0.2)
    for place in places[1:]:
        axes.axhline(place - 0.5, color='0.85', linewidth=0.8)
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside lower center', ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = make_parser(__doc__, needs_out=True)
    parser.add_argument('--envs', nargs='+', choices=ENVS, default=ENVS)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--updates', type=int, default=4, help='in a timed call')
    parser.add_argument('--contexts', type=int, default=CONTEXTS, help='8 environments each')
    parser.add_argument(
        '--contenders', nargs='+', choices=list(CONTENDERS), default=list(CONTENDERS)
    )
    options = parser.parse_args()
    results: dict[str, Any] = {'machines': {}, 'envs': {}}
    if options.out.exists():
        results = json.loads(options.out.read_text())
    for env in options.envs:
        results['machines'][env] = machine('benchmarks.control_peers')
        results['envs'][env] = measure(env, options)
        results['rows'] = rows(results['envs'])
        write(results, options.out)
        draw(results['envs'], options.out.with_suffix('.png'))
        for name, result in results['envs'][env].items():
            print(f'{env:12} {name:15} {result["env_steps_per_s"]:>10,.0f} env steps/s', flush=True)


if __name__ == '__main__':
    main()
