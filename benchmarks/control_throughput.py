"""How much of the simulator's speed does training keep?

Env steps per second, compile time apart, of the same batch in one process:

* `step`: a scan of bare `env.step` with random actions - the limit;
* `rollout`: the training's own groups of segments, without learning;
* `train_1`: training with one gradient step a batch;
* `train_config`: training with the configuration's own number of gradient steps.

Rounds go through all four in turn, so that a slow moment of the machine hits all; the figures are
medians over rounds, the ratios medians of the ratios within a round.

    python -m benchmarks.control_throughput configs/quickstart.yaml --out benchmarks/results/x.json
"""

import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import sail_jax
from benchmarks.machine import machine, make_parser, write
from benchmarks.rounds import rates, row, stopwatch, take_turns_here
from sail_jax.control import envs, rollout
from sail_jax.control import task as control_task
from sail_jax.control.config import ControlRun
from sail_jax.core import update
from sail_jax.core.keys import row_keys
from sail_jax.core.types import State
from sail_jax.sweep import Members
from sail_jax.training import devices, setup


class Program:
    """A compiled program that takes and returns its own carry, donated."""

    def __init__(self, fn: Callable[[Any], Any], carry: Any, env_steps: int) -> None:
        """`env_steps` are those of a call."""
        taken = stopwatch()
        self._run = jax.jit(fn, donate_argnums=0).lower(carry).compile()
        self.compile_s = taken()
        self._carry, self._env_steps = carry, env_steps

    def __call__(self) -> dict[str, int]:
        self._carry = jax.block_until_ready(self._run(self._carry))
        return {'env_steps': self._env_steps}


def bare_steps(run: ControlRun, updates: int) -> Program:
    """`env.step` alone, on as many environments and for as many steps as the training."""
    env, mesh = envs.make(run.env), devices.make_mesh(run.rollout.contexts)
    parallel = run.env_steps_per_update // run.rollout.segment_length
    key_N = row_keys(jax.random.key(run.seed), parallel)
    state = jax.jit(lambda: rollout.reset(env, key_N), out_shardings=devices.by_rows(mesh))()

    def steps(carry):
        def step(carry, _):
            state, key = carry
            key, action_key = jax.random.split(key)
            action = jax.random.uniform(action_key, (parallel, env.action_size), minval=-1)
            return (jax.vmap(env.step)(state, action), key), None

        return jax.lax.scan(step, carry, length=updates * run.rollout.segment_length)[0]

    return Program(steps, (state, jax.random.key(run.seed)), updates * run.env_steps_per_update)


def rollouts(run: ControlRun, updates: int) -> Program:
    """Sampling and labelling as in training, but the policy stays."""
    task = control_task.make(run)

    def sample(state: State) -> State:
        def body(state, _):
            step = state.step + 1
            key = jax.random.fold_in(jax.random.key(state.seed), step)
            sampled = task.workload.sample(state.policies, state.sampler, key, state.labels)
            # The labels are used, so that nothing of the sampling is optimised away.
            labels = state.labels + sampled.batch.labels.prob_BxKxK.sum().astype(int)
            policy = state.policy._replace(statistics=sampled.statistics)
            state = state._replace(policy=policy, sampler=sampled.sampler)
            return state._replace(step=step, labels=labels), None

        return jax.lax.scan(body, state, length=updates)[0]

    state = setup.initial_state(Members.of(run), task, task.start(run.seed))
    return Program(sample, state, updates * run.env_steps_per_update)


def training(run: ControlRun, updates: int) -> Program:
    task, members = control_task.make(run), Members.of(run)
    shardings = setup.Layout.of(members, task).shardings
    dispatch = update.make_dispatch(task.workload, run, updates, shardings)
    state = setup.initial_state(members, task, task.start(run.seed))
    return Program(lambda state: dispatch(state)[0], state, updates * run.env_steps_per_update)


def measure(run: ControlRun, updates: int, rounds: int) -> dict[str, Any]:
    """Throughput of the four programs, and their ratios to bare steps."""
    one_step = run.optimizer.model_copy(update={'epochs': 1, 'minibatches': 1})
    programs = {
        'step': bare_steps(run, updates),
        'rollout': rollouts(run, updates),
        'train_1': training(run.model_copy(update={'optimizer': one_step}), updates),
        'train_config': training(run, updates),
    }
    passes = run.optimizer.epochs * run.optimizer.minibatches
    gradient_steps = {'step': 0, 'rollout': 0, 'train_1': 1, 'train_config': passes}
    results = take_turns_here(programs, rounds)
    speed = {name: rates(result, 'env_steps') for name, result in results.items()}
    return {
        name: {
            'env_steps_per_s': round(float(np.median(values)), 1),
            'ratio_to_step': round(float(np.median(values / speed['step'])), 3),
            'gradient_steps_per_update': gradient_steps[name],
            'compile_s': round(programs[name].compile_s, 2),
            'rounds_env_steps_per_s': np.round(values, 1).tolist(),
        }
        for name, values in speed.items()
    }


def rows(configs: dict[str, Any]) -> list[dict[str, Any]]:
    """Training over bare steps, as `benchmarks.__main__` prints it."""
    outcome = []
    for path, numbers in configs.items():
        programs = numbers['programs']
        for name, goal in (('train_1', 0.9), ('train_config', None)):
            ours, limit = (programs[key]['env_steps_per_s'] for key in (name, 'step'))
            ratio, unit = programs[name]['ratio_to_step'], 'env steps/s'
            outcome.append(row(f'{path}: {name} / step', unit, ours, limit, ratio, goal))
    return outcome


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('config', nargs='+', help='configurations to measure')
    parser.add_argument('--updates', type=int, default=10, help='updates in one timed call')
    parser.add_argument('--rounds', type=int, default=5, help='timed calls of each program')
    options = parser.parse_args()
    runs = {path: sail_jax.load(path) for path in options.config}
    devices.use_cores(math.gcd(*(run.rollout.contexts for run in runs.values())))
    results = {'machine': machine('benchmarks.control_throughput'), 'configs': {}}
    for path, run in runs.items():
        parallel = run.env_steps_per_update // run.rollout.segment_length
        results['configs'][path] = {
            'env': run.env.subject,
            'parallel_envs': parallel,
            'segment_length': run.rollout.segment_length,
            'env_steps_per_call': options.updates * run.env_steps_per_update,
            'programs': measure(run, options.updates, options.rounds),
        }
        for name, numbers in results['configs'][path]['programs'].items():
            print(
                f'{path} {name:13} {numbers["env_steps_per_s"]:>12,.0f} env steps/s '
                f'{numbers["ratio_to_step"]:.2f}',
                file=sys.stderr,
            )
    results['rows'] = rows(results['configs'])
    write(results, options.out)


if __name__ == '__main__':
    main()
