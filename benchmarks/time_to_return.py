"""How long until the policy is any good? SAIL-RevKL from comparisons, Brax's PPO on the reward.

Seconds of training until the stochastic policy's return (64 start states, true reward) is above
some levels; compilation and evaluation do not count, compilation is given apart. SAIL-RevKL with
`configs/quickstart.yaml`, PPO with the settings that `benchmarks.convergence` chose for it on
hopper; both with a device for each core, by turns over seeds.

    python -m benchmarks.time_to_return --out benchmarks/results/time_to_return_cpu.json
"""

from typing import Any, NamedTuple

import jax
import numpy as np

import sail_jax
from benchmarks.machine import machine, make_parser, write
from benchmarks.rounds import stopwatch
from sail_jax.control import envs, evaluate, reference
from sail_jax.control import policy as control_policy
from sail_jax.control import task as control_task
from sail_jax.control.config import ControlRun
from sail_jax.core import update
from sail_jax.core.types import Hyper, Policy
from sail_jax.sweep import Members
from sail_jax.training import devices, setup

LEVELS = (100, 200, 300, 400)

# benchmarks/results/convergence/table.json, "PPO on the reward", hopper.
PPO_CHOSEN = {'learning_rate': 1e-3, 'num_updates_per_batch': 4}


class Point(NamedTuple):
    """A moment of training."""

    env_steps: int
    seconds: float
    episode_return: float


def sail(run: ControlRun, seed: int, judge: Any) -> tuple[float, list[Point]]:
    """Seconds of compilation, and the moments after each evaluation interval."""
    run = run.model_copy(update={'seed': seed})
    task, updates = control_task.make(run), run.evaluation.every_updates
    start = task.start(seed)
    taken = stopwatch()
    shardings = setup.Layout.of(Members.of(run), task).shardings
    dispatch = update.make_dispatch(task.workload, run, updates, shardings)
    state = setup.initial_state(Members.of(run), task, start)
    dispatch = dispatch.lower(state).compile()
    compile_s, seconds, points = taken(), 0.0, []
    for _ in range(task.updates // updates):
        taken = stopwatch()
        state, _ = jax.block_until_ready(dispatch(state))
        seconds += taken()
        env_steps = int(state.step) * run.env_steps_per_update
        points.append(Point(env_steps, seconds, judge(state.policy, start, seed)))
    return compile_s, points


def ppo(run: ControlRun, seed: int, judge: Any, env: Any, networks: Any) -> tuple[float, list]:
    """The same of PPO; its first interval holds its compilation and is told apart by the others."""
    start = reference.load(env, networks, run, seed)
    taken, points = stopwatch(), []

    def note(env_steps: int, params: tuple[Any, Any]) -> None:
        nonlocal taken
        if env_steps:
            seconds = taken()
            policy = Policy({**start.params, 'policy': params[1]}, params[0])
            points.append(Point(int(env_steps), seconds, judge(policy, start, seed)))
        taken = stopwatch()

    notes = run.updates // run.evaluation.every_updates
    watch = reference.Watch(note, notes)
    reference.train_ppo(env, run, run.total_env_steps, seed, watch, **PPO_CHOSEN)
    lengths = np.asarray([point.seconds for point in points])
    compile_s = lengths[0] - np.median(lengths[1:])
    lengths[0] -= compile_s
    spent = np.cumsum(lengths)
    return compile_s, [p._replace(seconds=float(s)) for p, s in zip(points, spent, strict=True)]


def reached(points: list[Point]) -> dict[str, float | None]:
    """Seconds until the return was first above each level."""
    return {
        str(level): next((round(p.seconds, 2) for p in points if p.episode_return > level), None)
        for level in LEVELS
    }


def main() -> None:
    parser = make_parser(__doc__, needs_out=True)
    parser.add_argument('--seeds', type=int, default=5)
    options = parser.parse_args()
    run = sail_jax.load('configs/quickstart.yaml')
    evaluation = run.evaluation.model_copy(update={'episodes': 64, 'every_updates': 10})
    run = run.model_copy(update={'evaluation': evaluation})
    devices.use_cores(run.rollout.contexts)
    env = envs.make(run.env)
    networks = control_policy.make_networks(env, run)
    numbers = evaluate.make(env, networks, run, devices.make_mesh(run.rollout.contexts))

    def judge(policy: Policy, start: Policy, seed: int) -> float:
        return float(numbers(policy, start, (), np.uint32(seed), Hyper.of(run))['return'])

    found: dict[str, list] = {'SAIL-RevKL': [], 'Brax PPO': []}
    for seed in range(options.seeds):
        for name, train in (
            ('SAIL-RevKL', lambda seed: sail(run, seed, judge)),
            ('Brax PPO', lambda seed: ppo(run, seed, judge, env, networks)),
        ):
            compile_s, points = train(seed)
            found[name].append(
                {
                    'seed': seed,
                    'compile_s': round(float(compile_s), 1),
                    'seconds_to_return': reached(points),
                    'points': points,
                }
            )
            print(name, seed, reached(points), f'end {points[-1].episode_return:.0f}', flush=True)
    results = {'machine': machine('benchmarks.time_to_return'), 'runs': found}
    write(results, options.out)


if __name__ == '__main__':
    main()
