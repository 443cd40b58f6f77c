"""Which member of the family learns control, and how surely: a study over seeds.

Offline DPO, online DPO, SAIL and SAIL-RevKL (both directions of the KL, and with a refreshed
reference) against Brax PPO on the true reward. The others are told comparisons by a labeller that
keeps a value of its own, fitted on the true reward (`value.terminal: learned`). All start from the
same policies, run the same env steps and ask the same labels. Each method, PPO too, tries the same
number of settings, on seeds other than those reported, and is reported with its best.

    python -m benchmarks.convergence --runs runs/convergence --out benchmarks/results/convergence
    python -m benchmarks.convergence --quick --runs runs/quick --out runs/quick

What is finished in --runs is read, not repeated, so the study may be stopped and started. It may be
done an environment or a method at a time (--envs, --methods): the report in --out keeps what it has
of the others.
"""

import argparse
import itertools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import sail_jax
from benchmarks import convergence_report
from benchmarks.machine import machine, write
from sail_jax import configfile, sweep
from sail_jax.control import envs, evaluate, reference
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun
from sail_jax.core.types import Hyper, Policy
from sail_jax.sweep import Members
from sail_jax.training import devices, metrics

BASE = {
    'env': {'backend': 'spring'},
    'rollout': {'contexts': 32, 'group_size': 8, 'segment_length': 32},
    'value': {'terminal': 'learned'},
    'optimizer': {'epochs': 4, 'minibatches': 4},
    'logging': {'tensorboard': False},
}
"""What all methods share; the shipped control files' settings."""

RATES = (1e-4, 3e-4)
REFRESH = {'reference': {'refresh_env_steps': 25_000}}


class Method(NamedTuple):
    """A method, and the settings that it may choose from: all combinations of `tried`."""

    settings: dict[str, Any]
    tried: dict[str, tuple[float, ...]]


def online(response_grad: float, coefficient: float = 0.0, **sections: Any) -> dict[str, Any]:
    """SAIL-DPR's settings: online DPO without the first, SAIL without the second."""
    divergence = {'coefficient': coefficient, **sections.pop('divergence', {})}
    return {
        'objective': {'response_grad': response_grad},
        'divergence': divergence,
        **sections,
    }


METHODS = {
    'offline DPO': Method(
        {'objective': {'mixture': {'dpr': 0}}, 'divergence': {'coefficient': 0}},
        {'learning_rate': RATES, 'beta': (0.1, 1.0)},
    ),
    'online DPO': Method(online(0), {'learning_rate': RATES, 'beta': (0.1, 1.0)}),
    'SAIL': Method(online(0.3), {'learning_rate': RATES, 'response_grad': (0.3, 1.0)}),
    'SAIL-RevKL, ref to policy': Method(
        online(0.3, 0.1), {'learning_rate': RATES, 'coefficient': (0.1, 1.0)}
    ),
    'SAIL-RevKL, policy to ref': Method(
        online(0.3, 0.1, divergence={'direction': 'policy_to_ref'}),
        {'learning_rate': RATES, 'coefficient': (0.1, 1.0)},
    ),
    'online DPO, refreshed': Method(
        online(0, **REFRESH), {'learning_rate': RATES, 'beta': (0.1, 1.0)}
    ),
    'SAIL-RevKL, refreshed': Method(
        online(0.3, 0.1, **REFRESH), {'learning_rate': RATES, 'coefficient': (0.1, 1.0)}
    ),
}
PPO = 'PPO on the reward'
PPO_TRIED = {'learning_rate': (3e-4, 1e-3), 'num_updates_per_batch': (4, 8)}
TUNING_SEEDS = (1000, 1001)


class Size(NamedTuple):
    """How large the study is."""

    envs: tuple[str, ...]
    seeds: int
    env_steps: int
    tuning_env_steps: int
    """0 takes each method's first settings untried."""
    episodes: int
    """Start states of an evaluation."""
    evaluations: int = 4
    """After the first, evenly spaced."""


FULL = Size(('hopper', 'reacher', 'walker2d', 'ant'), 10, 1_000_000, 500_000, 8)
QUICK = Size(('hopper',), 3, 60_000, 0, 4, 2)


def configuration(
    env: str, settings: dict[str, Any], env_steps: int, size: Size, **extra: Any
) -> ControlRun:
    """The run of a method, with evaluations evenly spaced and nothing saved on the way."""
    data = {**BASE, **settings, 'total_env_steps': env_steps, **extra}
    data['env'] = {**BASE['env'], 'name': env}
    updates = ControlRun.model_validate(data)
    every = max(-(-env_steps // updates.env_steps_per_update // size.evaluations), 1)
    data |= {
        'updates_per_dispatch': every,
        'total_env_steps': every * size.evaluations * updates.env_steps_per_update,
        'evaluation': {'every_updates': every, 'episodes': size.episodes},
        'checkpoints': {'every_updates': every, 'keep': 1},
    }
    return ControlRun.model_validate(data)


def train(run: ControlRun, run_dir: Path) -> list[list[metrics.MetricsRow]]:
    """Evaluations of every member; goes on with, or reads, what is there."""
    finished = run_dir / 'finished'
    if not finished.exists():
        sail_jax.train(run, run_dir, resume=(run_dir / 'config.yaml').exists())
        finished.touch()
    rows = [
        metrics.read_rows(path / 'metrics.jsonl') for path in Members.of(run).directories(run_dir)
    ]
    return [[row for row in member if 'eval/return' in row] for member in rows]


def tune(env: str, name: str, method: Method, size: Size, runs: Path) -> dict[str, float]:
    """The settings of the best mean return over the tuning seeds, at the end of shorter runs."""
    first = {key: values[0] for key, values in method.tried.items()}
    if not size.tuning_env_steps:
        return first
    run = configuration(
        env,
        method.settings,
        size.tuning_env_steps,
        size._replace(evaluations=1),
        seeds=TUNING_SEEDS,
        sweep=method.tried,
    )
    evaluations = train(run, runs / env / slug(name) / 'tuning')
    by_settings: dict[tuple, list[float]] = {}
    for member, rows in zip(Members.of(run).each, evaluations, strict=True):
        data = configfile.flatten(member.run)
        key = tuple(data[f'{sweep.SECTIONS[name]}.{name}'] for name in method.tried)
        by_settings.setdefault(key, []).append(rows[-1]['eval/return'] or -np.inf)
    best = max(by_settings, key=lambda key: np.mean(by_settings[key]))
    return dict(zip(method.tried, best, strict=True))


def study(env: str, name: str, method: Method, size: Size, runs: Path) -> dict[str, Any]:
    """One method on one environment, all seeds at once."""
    chosen = tune(env, name, method, size, runs)
    sweep = {key: (value,) for key, value in chosen.items()}
    run = configuration(env, method.settings, size.env_steps, size, seeds=size.seeds, sweep=sweep)
    evaluations = train(run, runs / env / slug(name) / 'reported')
    keys = {
        'return': 'eval/return',
        'deterministic_return': 'eval/deterministic_return',
        'kl_policy_to_ref': 'eval/kl_policy_to_start',
        'kl_ref_to_policy': 'eval/kl_start_to_policy',
        'J': 'train/preference',
    }
    column = lambda key: [[row.get(key) for row in member] for member in evaluations]
    return {
        'settings': chosen,
        'env_steps': [row['env_steps'] for row in evaluations[0]],
        'labels': [row['labels'] for row in evaluations[0]],
        'skipped': [member[-1]['train/skipped'] for member in evaluations],
        **{title: column(key) for title, key in keys.items()},
    }


def ppo_rows(
    env_name: str, seed: int, settings: dict[str, float], env_steps: int, size: Size, path: Path
) -> dict[int, metrics.MetricsRow]:
    """Brax PPO of one seed, judged as the others are, by env steps; read, if `path` has it."""
    if not path.exists():
        run = configuration(env_name, {}, env_steps, size)
        env = envs.make(run.env)
        networks = control_policy.make_networks(env, run)
        judge = evaluate.make(env, networks, run, devices.make_mesh(run.rollout.contexts))
        start = reference.load(env, networks, run, seed)
        identity = np.uint32(seed), Hyper.of(run)
        points = {0: judge(start, start, (), *identity)}

        def note(step: int, params: tuple[Any, Any]) -> None:
            if step:
                policy = Policy({**start.params, 'policy': params[1]}, params[0])
                points[int(step)] = judge(policy, start, (), *identity)

        watch = reference.Watch(note, size.evaluations)
        reference.train_ppo(env, run, env_steps, seed, watch, **settings)
        rows = {
            step: {key: float(value) for key, value in jax.device_get(row).items()}
            for step, row in points.items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))
    return {int(step): row for step, row in json.loads(path.read_text()).items()}


def study_ppo(env: str, size: Size, runs: Path) -> dict[str, Any]:
    """Brax PPO for the same env steps, after the same tuning."""
    runs = runs / env / 'ppo'
    tried = [
        dict(zip(PPO_TRIED, values, strict=True))
        for values in itertools.product(*PPO_TRIED.values())
    ]
    chosen, length = tried[0], size.tuning_env_steps
    if length:
        one = size._replace(evaluations=1)

        def score(settings: dict[str, float]) -> float:
            name = '-'.join(f'{value:g}' for value in settings.values())
            ends = [
                ppo_rows(env, seed, settings, length, one, runs / f'tuning-{name}-{seed}.json')
                for seed in TUNING_SEEDS
            ]
            return float(np.mean([rows[max(rows)]['return'] for rows in ends]))

        chosen = max(tried, key=score)
    outcome = [
        ppo_rows(env, seed, chosen, size.env_steps, size, runs / f'seed-{seed}.json')
        for seed in range(size.seeds)
    ]
    column = lambda key: [[row[key] for row in rows.values()] for rows in outcome]
    return {
        'settings': chosen,
        'env_steps': list(outcome[0]),
        'return': column('return'),
        'deterministic_return': column('deterministic_return'),
        'kl_policy_to_ref': column('kl_policy_to_ref'),
        'kl_ref_to_policy': column('kl_ref_to_policy'),
    }


def reported(path: Path, size: Size) -> dict[str, Any]:
    """What --out has of other environments and methods, if it is of the same size."""
    of_size = {key: value for key, value in size._asdict().items() if key != 'envs'}
    if path.exists():
        raw = json.loads(path.read_text())
        if raw['size'] == of_size:
            return raw
    return {'size': of_size, 'envs': {}}


def keep_compiled() -> None:
    """Keeps compiled programs between runs, unless JAX_COMPILATION_CACHE_DIR says where."""
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path.home() / '.cache' / 'sail_jax'
        jax.config.update('jax_compilation_cache_dir', str(cache))


def slug(name: str) -> str:
    return name.lower().replace(',', '').replace(' ', '-')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--runs', type=Path, required=True, help='directory of the runs')
    parser.add_argument('--out', type=Path, required=True, help='directory of the report')
    parser.add_argument('--envs', nargs='+', help='environments; default: those of the study')
    methods = [*METHODS, PPO]
    parser.add_argument('--methods', nargs='+', choices=methods, default=methods, metavar='METHOD')
    parser.add_argument('--seeds', type=int, help='reported seeds')
    parser.add_argument('--env-steps', type=int, help='of a reported run; tuning gets half')
    parser.add_argument('--quick', action='store_true', help='hopper, 3 seeds, nothing tuned')
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    if options.envs:
        size = size._replace(envs=tuple(options.envs))
    if options.seeds:
        size = size._replace(seeds=options.seeds)
    if options.env_steps:
        tuning = options.env_steps // 2 if size.tuning_env_steps else 0
        size = size._replace(env_steps=options.env_steps, tuning_env_steps=tuning)
    # What divides the members of a tuning sweep, the reported seeds and the contexts.
    devices.use_cores(math.gcd(8, size.seeds, BASE['rollout']['contexts']))
    keep_compiled()
    options.out.mkdir(parents=True, exist_ok=True)
    raw = reported(options.out / 'raw.json', size)
    for env in size.envs:
        results = raw['envs'].setdefault(env, {})
        for name in options.methods:
            if name == PPO:
                outcome = study_ppo(env, size, options.runs)
            else:
                outcome = study(env, name, METHODS[name], size, options.runs)
            results[name] = outcome | {'machine': machine('benchmarks.convergence')}
            # Each PPO compiles programs of its own; after 50 of them LLVM has no room for more.
            jax.clear_caches()
        if set(results) != set(methods):
            parser.exit(message=f'{env}: {len(results)} of {len(methods)} methods; no report\n')
        write(raw, options.out / 'raw.json', indent=None)
        convergence_report.write(raw, options.out)


if __name__ == '__main__':
    main()
