"""What makes SAIL-RevKL reach PPO's return? Single changes to the shipped control settings.

Hypotheses, each a program of a few members, without tuning, on a few seeds: (a) a larger learning
rate; (b) what the penalty does to the spread of the actions: either direction of the KL, none, and
one that falls to 0; (c) less of the response-score term, and one that falls to 0; (e) labels that
are probabilities, by the spread of a group's returns, so that a hair's breadth does not weigh as
much as a mile; and a labeller's value that looks less far ahead. All with the reference refreshed
every 25k env steps. For longer runs: a penalty, and a step size, that fall until their end.

    python -m benchmarks.recipe --runs runs/recipe --out runs/recipe.json --envs reacher ant
    python -m benchmarks.recipe --runs runs/long --out runs/long.json --envs hopper \\
        --env-steps 1000000 --programs 'coefficient falls to 0 at the end'

What is finished in --runs is read, and what was stopped goes on.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sail_jax
from benchmarks import convergence
from benchmarks.convergence_arms import BASE, REFRESH, TO_REF, Arm, online
from benchmarks.convergence_statistics import array, collapsed
from benchmarks.convergence_tuning import slug
from benchmarks.machine import machine, write
from sail_jax import configfile
from sail_jax.config import Teacher
from sail_jax.core import labellers
from sail_jax.core.types import Preferences
from sail_jax.sweep import SECTIONS, Members
from sail_jax.training import devices


def relative(key_B: jax.Array, returns: labellers.Returns, settings: Teacher) -> Preferences:
    """A teacher whose rationality is per standard deviation of the returns of a group."""
    spread_Bx1 = returns.perceived_BxK.std(1, keepdims=True)
    perceived_BxK = returns.perceived_BxK / jnp.maximum(spread_Bx1, 1e-9)
    return labellers.teacher(key_B, returns._replace(perceived_BxK=perceived_BxK), settings)


sail_jax.LABELLERS['relative'] = relative


def soft(rationality: float) -> Arm:
    """Probabilities of `relative` in the place of labels."""
    labeller = {'kind': 'relative', 'rationality': rationality, 'soft': True}
    return Arm(online(0.3, 0.1, **REFRESH, labeller=labeller), {})


def looking_ahead(discount: float) -> Arm:
    """A penalty that falls to 0 by half of the run, and a value of this discount per env step."""
    value = BASE['value'] | {'discount': discount}
    return Arm(online(0.3, 0.1, **REFRESH, value=value), {}, falling={'coefficient': 0.5})


FALLING_STEP = {'optimizer': {**BASE['optimizer'], 'decay': 'linear'}}
CONSTANT = Arm(online(0.3, 0.1, **REFRESH), {})
FALLING = Arm(online(0.3, 0.1, **REFRESH, **FALLING_STEP), {})
RATES_AND_SCORE = {
    'learning_rate': (1e-3, 3e-3, 1e-2),
    'response_grad': (0.0, 0.3),
    'coefficient': (0.1,),
}
CONSTANT_RATES_AND_SCORE = RATES_AND_SCORE | {'learning_rate': (1e-3, 3e-3)}

Programs = dict[str, tuple[Arm, dict[str, tuple[float, ...]]]]
PROGRAMS: Programs = {
    'ref to policy, and no penalty': (
        CONSTANT,
        {'learning_rate': (1e-3,), 'response_grad': (0.0, 0.3), 'coefficient': (0.0, 0.1)},
    ),
    'policy to ref': (
        Arm(online(0.3, 0.1, **TO_REF, **REFRESH), {}),
        {'learning_rate': (1e-3,), 'response_grad': (0.0, 0.3), 'coefficient': (0.1,)},
    ),
    'response_grad falls to 0': (
        CONSTANT._replace(falling={'response_grad': 0.5}),
        {'learning_rate': (1e-3,), 'response_grad': (0.3, 1.0), 'coefficient': (0.1,)},
    ),
    'coefficient falls to 0': (
        CONSTANT._replace(falling={'coefficient': 0.5}),
        {'learning_rate': (1e-3,), 'response_grad': (0.0,), 'coefficient': (0.1, 1.0)},
    ),
    'coefficient falls to 0 at the end': (
        CONSTANT._replace(falling={'coefficient': 1.0}),
        {
            'learning_rate': (1e-3, 3e-3),
            'response_grad': (0.0, 0.3),
            'coefficient': (0.03, 0.1, 0.3, 1.0),
        },
    ),
    'step size falls to 0': (
        FALLING,
        RATES_AND_SCORE,
    ),
    'step size and coefficient fall to 0': (
        FALLING._replace(falling={'coefficient': 1.0}),
        RATES_AND_SCORE,
    ),
    'step size falls to 0, penalty after penalty': (
        FALLING,
        {
            'learning_rate': (1e-2, 2e-2),
            'response_grad': (0.3,),
            'coefficient': (0.1, 0.3, 1.0, 3.0),
        },
    ),
    'step size falls to 0, no penalty': (
        FALLING,
        {'learning_rate': (1e-2, 2e-2), 'response_grad': (0.0, 0.3), 'coefficient': (0.0,)},
    ),
    'one rate after the other': (
        CONSTANT,
        {
            'learning_rate': (3e-4, 1e-3, 3e-3),
            'response_grad': (0.0, 0.3),
            'coefficient': (0.0, 0.1),
        },
    ),
    **{
        f'probabilities as labels, rationality {rationality:g} per standard deviation': (
            soft(rationality),
            CONSTANT_RATES_AND_SCORE,
        )
        for rationality in (1.0, 3.0)
    },
    **{
        f'coefficient falls to 0, discount {discount:g}': (
            looking_ahead(discount),
            CONSTANT_RATES_AND_SCORE,
        )
        for discount in (0.95, 0.97, 0.99)
    },
    'larger beta': (
        CONSTANT,
        {'learning_rate': (1e-3,), 'response_grad': (0.0, 0.3), 'beta': (0.3, 1.0)},
    ),
}
"""Arms, and the values that all combinations are trained of, in the order they are done."""


def members(
    env: str, name: str, size: convergence.Size, seeds: tuple[int, ...], runs: Path
) -> list[dict[str, Any]]:
    """A row of numbers for each setting of a program, over the seeds."""
    arm, box = PROGRAMS[name]
    run = convergence.configuration(env, arm, size.env_steps, size, seeds=seeds, sweep=box)
    directory = slug({**box, 'seeds': seeds})
    trained = convergence.train(run, runs / env / convergence.slug(name) / directory)
    by_settings: dict[tuple, list[list[dict[str, Any]]]] = {}
    for member, rows in zip(Members.of(run).each, trained.evaluations, strict=True):
        data = configfile.flatten(member.run)
        point = tuple(data[f'{SECTIONS[key]}.{key}'] for key in box)
        by_settings.setdefault(point, []).append(rows)
    return [
        {
            'program': name,
            'settings': dict(zip(box, point, strict=True)),
            'seeds': seeds,
            'env_steps': [row['env_steps'] for row in each[0]],
            **{
                title: [[row.get(key) for row in rows] for rows in each]
                for title, key in (convergence.COLUMNS | convergence.OF_TRAINING).items()
            },
            'minutes_of_the_program': trained.minutes,
        }
        for point, each in by_settings.items()
    ]


def line(row: dict[str, Any]) -> str:
    """The end of a row's curves, means over the seeds."""
    ends = lambda key: array(row[key])[:, -1]
    settings = ', '.join(f'{key} {value:g}' for key, value in row['settings'].items())
    returns = ' '.join(f'{x:.0f}' for x in ends('return'))
    return (
        f'{row["program"]}: {settings}: returns {returns}, mean {ends("return").mean():.0f}; mode '
        f'{ends("deterministic_return").mean():.0f}; standard deviation of actions '
        f'{ends("action_std").mean():.3f}; entropy {ends("entropy").mean():.2f}; KL to start '
        f'{ends("kl_policy_to_start").mean():.2f}; collapsed '
        f'{int(collapsed(array(row["return"])).sum())} of {len(row["seeds"])}'
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--runs', type=Path, required=True, help='directory of the runs')
    parser.add_argument('--out', type=Path, required=True, help='JSON file')
    parser.add_argument('--envs', nargs='+', default=['reacher', 'ant'])
    parser.add_argument('--programs', nargs='+', choices=PROGRAMS, default=[*PROGRAMS])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--env-steps', type=int, default=250_000)
    options = parser.parse_args()
    size = convergence.Size(options.env_steps, 0, 8, 2)
    seeds = tuple(options.seeds)
    counts = [len(seeds) * math.prod(map(len, PROGRAMS[x][1].values())) for x in options.programs]
    devices.use_cores(math.gcd(*counts))
    convergence.keep_compiled()
    results: dict[str, Any] = {'machine': machine('benchmarks.recipe'), 'envs': {}}
    for env in options.envs:
        results['envs'][env] = []
        for name in options.programs:
            rows = members(env, name, size, seeds, options.runs)
            results['envs'][env] += rows
            print(f'{env}: start {np.mean(array(rows[0]["return"])[:, 0]):.0f}')
            print('\n'.join(map(line, rows)), flush=True)
            write(results, options.out, indent=None)
            jax.clear_caches()


if __name__ == '__main__':
    main()
