"""Brax PPO as an arm of `benchmarks.convergence`."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sail_jax.control import envs, evaluate, reference
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun
from sail_jax.core.types import Hyper, Policy
from sail_jax.training import devices, metrics


def rows(
    run: ControlRun, seed: int, settings: dict[str, float], evaluations: int, runs: Path
) -> dict[int, metrics.MetricsRow]:
    """PPO of one seed, judged as the others are, by env steps; read, if it is in `runs`.

    Args:
      run: length, environment, networks and evaluation of the other arms.
      settings: of PPO, in the place of `reference.PPO`.
      evaluations: after the first, evenly spaced.
    """
    name = '-'.join(f'{key}-{value:g}' for key, value in settings.items())
    path = runs / f'{name}-{run.total_env_steps}-seed-{seed}.json'
    if not path.exists():
        numbers = _train(run, seed, settings, evaluations)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix('.part')
        part.write_text(json.dumps(numbers))
        part.replace(path)
        jax.clear_caches()
    return {int(step): row for step, row in json.loads(path.read_text()).items()}


def _train(
    run: ControlRun, seed: int, settings: dict[str, float], evaluations: int
) -> dict[int, metrics.MetricsRow]:
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

    watch = reference.Watch(note, evaluations)
    whole = {
        key: int(value) if key.startswith('num_') else value for key, value in settings.items()
    }
    reference.train_ppo(env, run, run.total_env_steps, seed, watch, **whole)
    return {
        step: {key: float(value) for key, value in jax.device_get(row).items()}
        for step, row in points.items()
    }
