"""Does our soft actor-critic learn as Brax's does?

Returns of the stochastic policy at equal env steps: equal networks, gradient steps, batches,
learning rates, discount, temperature and target entropy. What differs: an episode's limit, which
ours bootstraps and Brax leaves out of the critics' loss; the map to the standard deviation, ours
the authors'; and Brax's actor goes by the critics of before the gradient step.

    python -m benchmarks.sac_returns --out benchmarks/results/sac_returns_cpu.json
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import sail_jax.control.compat

import numpy as np
from brax import envs
from brax.training.agents.sac import networks
from brax.training.agents.sac import train as brax_sac

import sail_jax
from benchmarks.machine import machine, make_parser, write
from sail_jax.control.sac.config import SacRun
from sail_jax.sweep import Members
from sail_jax.training import metrics

HIDDEN, LEARNING_RATE, BATCH = (64, 64), 1e-3, 256
ENVS, RANDOM_ENV_STEPS, EPISODE, EPISODES = 4, 1000, 200, 16
EVALUATIONS = 10


def ours(options: argparse.Namespace) -> list[list[dict[str, float]]]:
    """`env_steps` and `return` of the evaluations of each seed."""
    net = {'hidden': HIDDEN, 'init': 'lecun_uniform'}
    run = SacRun.model_validate(
        {
            'total_env_steps': options.env_steps,
            'updates_per_dispatch': 1,
            'env': {'name': options.env, 'backend': options.backend, 'episode_length': EPISODE},
            'actor': net,
            'critic': net | {'target_every': 1},
            # Brax's, which are not settings there.
            'temperature': {'initial': 1.0, 'learning_rate': 3e-4, 'target_entropy': -0.5},
            'rollout': {'envs': ENVS, 'steps': 50, 'random_env_steps': RANDOM_ENV_STEPS},
            'replay': {'capacity': options.env_steps, 'batch': BATCH},
            'divergence': {'coefficient': 0.0},
            'optimizer': {'learning_rate': LEARNING_RATE},
            'evaluation': {
                'every_updates': options.env_steps // (50 * ENVS * EVALUATIONS),
                'episodes': EPISODES,
            },
            'checkpoints': {'every_updates': 2**20},
            'logging': {'tensorboard': False},
            'seeds': tuple(range(options.seeds)),
        }
    )
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / 'run'
        sail_jax.train(run, run_dir, quiet=True)
        return [
            [
                {'env_steps': row['env_steps'], 'return': row['eval/return']}
                for row in metrics.read_rows(path / 'metrics.jsonl')
                if 'eval/return' in row
            ]
            for path in Members.of(run).directories(run_dir)
        ]


def brax(options: argparse.Namespace) -> list[list[dict[str, float]]]:
    """The same of Brax's."""

    def train(seed: int) -> list[dict[str, float]]:
        rows: list[dict[str, float]] = []
        brax_sac.train(
            envs.get_environment(options.env, backend=options.backend),
            num_timesteps=options.env_steps,
            episode_length=EPISODE,
            num_envs=ENVS,
            num_eval_envs=EPISODES,
            learning_rate=LEARNING_RATE,
            discounting=0.99,
            seed=seed,
            batch_size=BATCH,
            num_evals=EVALUATIONS + 1,
            min_replay_size=RANDOM_ENV_STEPS,
            max_replay_size=options.env_steps,
            grad_updates_per_step=ENVS,
            network_factory=partial(networks.make_sac_networks, hidden_layer_sizes=HIDDEN),
            progress_fn=lambda env_steps, numbers: rows.append(
                {'env_steps': env_steps, 'return': float(numbers['eval/episode_reward'])}
            ),
        )
        return rows

    return [train(seed) for seed in range(options.seeds)]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('--env', default='inverted_pendulum')
    parser.add_argument('--backend', default='generalized')
    parser.add_argument('--env-steps', type=int, default=16_000)
    parser.add_argument('--seeds', type=int, default=3)
    options = parser.parse_args()
    results: dict[str, Any] = {'machine': machine('benchmarks.sac_returns')}
    for name, train in (('ours', ours), ('brax', brax)):
        results[name] = train(options)
        last = [rows[-1]['return'] for rows in results[name]]
        print(f'{name}: {np.round(last, 1).tolist()} at the end', flush=True)
        write(results, options.out)


if __name__ == '__main__':
    main()
