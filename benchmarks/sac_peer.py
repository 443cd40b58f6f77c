"""How fast is soft actor-critic, and how fast is it in PyTorch?

Env steps and gradient steps per second on MuJoCo Playground's CheetahRun, one gradient step for
each env step of one environment, networks and batches of equal sizes; one seed and ten. Ours is the
program that `sail-jax train` runs, its simulator MJX; PyTorch's (`benchmarks.torch_sac`) has
MuJoCo's C engine on the same model; of one seed the faster of one thread and all counts. Each is a
process of its own, in turn (`benchmarks.rounds`),
compilation apart; ratios are medians over rounds of the ratio within a round. Beside it what the
matrix products of a gradient step take by themselves, which no program that forms them is under.

    python -m benchmarks.sac_peer --out benchmarks/results/sac_peer_cpu.json
    python -m benchmarks.sac_peer --seeds 1 2 --hidden 16 16 --batch 16 --steps 20 --rounds 1
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine, make_parser, write
from benchmarks.rounds import rates, row, serve, take_turns

GOALS = {1: 2.0, 10: 5.0}
"""Of so many seeds, how many times as fast ours is to be."""


def ours(options: argparse.Namespace) -> None:
    """The contender."""
    import jax

    import sail_jax
    from sail_jax import configfile, runs
    from sail_jax.control.sac.config import SacRun
    from sail_jax.sweep import Members
    from sail_jax.training import devices, setup

    file = sail_jax.load('configs/control/sac/cheetah_run.yaml')
    assert isinstance(file, SacRun)
    settings: dict[str, Any] = {
        'updates_per_dispatch': 1,
        'actor.hidden': options.hidden,
        'critic.hidden': options.hidden,
        'rollout': {'steps': options.steps, 'random_env_steps': 1},
        'replay': {'capacity': options.capacity, 'batch': options.batch},
    }
    many = {'seeds': options.seeds} if options.seeds > 1 else {}
    run = configfile.update(file, settings | many)
    devices.use_cores(options.seeds)
    members, task = Members.of(run), runs.make_task(run)
    dispatch = setup.make_program(members, task, setup.Layout.of(members, task).shardings)
    state = setup.initial_state(members, task, setup.start_policy(members, task))
    total = options.steps * options.seeds

    def call() -> dict[str, int]:
        nonlocal state
        state, _ = jax.block_until_ready(dispatch(state))
        return {'env_steps': total, 'gradient_steps': total}

    for _ in range(2):  # The first is of random steps.
        call()
    serve(call)


def measure(options: argparse.Namespace, seeds: int, logs: Path) -> dict[str, Any]:
    """Both at so many seeds."""
    arguments = ['--seeds', str(seeds), '--steps', str(options.steps)]
    arguments += ['--batch', str(options.batch), '--capacity', str(options.capacity)]
    arguments += ['--hidden', *map(str, options.hidden)]
    commands = {
        'ours': [sys.executable, '-m', 'benchmarks.sac_peer', '--contender', *arguments],
        'torch': [options.torch_python, '-m', 'benchmarks.torch_sac', *arguments],
    }
    if seeds == 1:  # Threads do not always pay.
        commands['torch-1-thread'] = [*commands['torch'], '--threads', '1']
    outcome = take_turns(commands, options.rounds, logs / f'sac_{seeds}')
    for result in outcome.values():
        for counted in ('env_steps', 'gradient_steps'):
            rate = float(np.median(rates(result, counted)))
            result[f'{counted}_per_s'] = round(rate, 1)
    return outcome


def products(options: argparse.Namespace) -> dict[str, float]:
    """What the matrix products of one seed's gradient step take by themselves: their operations, at
    the speed of a layer's product many times over in one program."""
    import jax
    import jax.numpy as jnp

    from benchmarks import matrix_products
    from benchmarks.language_throughput import seconds

    cheetah = {'obs': 17, 'action': 6}
    step = matrix_products.gradient_step(options.batch, **cheetah, hidden=options.hidden)
    operations = sum(2 * x.rows * x.inner * x.columns * times for x, times in step.items())
    width, layers = options.hidden[0], 500
    x, matrix = jnp.ones((options.batch, width)), jnp.eye(width)
    chain = jax.jit(lambda x: jax.lax.fori_loop(0, layers, lambda _, x: x @ matrix, x))
    speed = layers * 2 * options.batch * width**2 / seconds(lambda: chain(x))
    ms = 1000 * operations / speed
    return {'operations': operations, 'operations_per_s': round(speed), 'ms': round(ms, 3)}


def rows(by_seeds: dict[str, Any]) -> list[dict[str, Any]]:
    """As `benchmarks.__main__` prints them."""
    outcome = []
    for seeds, results in by_seeds.items():
        mine, *others = (rates(result, 'gradient_steps') for result in results.values())
        other = max(others, key=np.median)
        outcome.append(
            row(
                f'soft actor-critic, seeds: {seeds}',
                'env and gradient steps/s',
                np.median(mine),
                np.median(other),
                np.median(mine / other),
                GOALS.get(int(seeds)),
            )
        )
    return outcome


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('--contender', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--seeds', type=int, nargs='+', default=[1, 10])
    parser.add_argument('--steps', type=int, default=200, help='of each seed in a timed call')
    parser.add_argument('--hidden', type=int, nargs='+', default=[256, 256])
    parser.add_argument('--batch', type=int, default=256)
    parser.add_argument('--capacity', type=int, default=100_000)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--torch-python', default=sys.executable, help='with torch and mujoco')
    options = parser.parse_args()
    if options.contender:
        (options.seeds,) = options.seeds
        ours(options)
        return
    logs = (options.out.parent if options.out else Path('runs')) / 'logs'
    results: dict[str, Any] = {'machine': machine('benchmarks.sac_peer'), 'seeds': {}}
    for seeds in options.seeds:
        results['seeds'][str(seeds)] = outcome = measure(options, seeds, logs)
        results['rows'] = rows(results['seeds'])
        write(results, options.out)
        for name, result in outcome.items():
            rate = result['gradient_steps_per_s']
            print(f'{seeds} seeds: {name:6} {rate:>10,.1f} env and gradient steps/s', flush=True)
    # Last: a GPU that this process has taken is not there for the others.
    results['products'] = products(options)
    write(results, options.out)
    print(f'matrix products of a gradient step: {results["products"]["ms"]} ms', flush=True)


if __name__ == '__main__':
    main()
