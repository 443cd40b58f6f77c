"""One contender of `benchmarks.control_peers` and `benchmarks.control_scaling`, told by standard
input when to go on.

By default all run the same number of environments side by side, for as many steps in a batch, with
networks of the same size: B = 32 contexts of K = 8 lanes, 32 steps (`configs/quickstart.yaml`).
"""

import argparse
import functools
from typing import Any

import jax
from brax.training.agents.ppo import networks as ppo_networks
from brax.training.agents.ppo import train as ppo

import sail_jax
from benchmarks.control_throughput import bare_steps, rollouts
from benchmarks.rounds import Turn, serve
from sail_jax.control import envs
from sail_jax.control import policy as control_policy
from sail_jax.control import task as control_task
from sail_jax.control.config import ControlRun
from sail_jax.core import update
from sail_jax.sweep import Members
from sail_jax.training import devices, setup


def configuration(options: argparse.Namespace) -> ControlRun:
    """The quickstart's, but for what the options say."""
    base = sail_jax.load('configs/quickstart.yaml').model_dump()
    rollout = {
        'contexts': options.contexts,
        'group_size': options.group_size,
        'segment_length': options.segment_length,
    }
    optimizer = {'epochs': options.passes, 'minibatches': options.passes}
    changed = {
        'env': base['env'] | {'name': options.env},
        'rollout': base['rollout'] | rollout,
        'optimizer': base['optimizer'] | optimizer,
        'seeds': options.seeds,
    }
    return ControlRun.model_validate(base | changed)


def sail(run: ControlRun, updates: int, warm_up: int) -> None:
    """Training, through the program that `sail-jax train` runs."""
    task, members = control_task.make(run), Members.of(run)
    shardings = setup.Layout.of(members, task).shardings
    dispatch = update.make_dispatch(task.workload, run, updates, shardings, members.sweep)
    state = setup.initial_state(members, task, setup.start_policy(members, task))
    env_steps = updates * run.env_steps_per_update * len(members.each)

    def call() -> dict[str, float]:
        nonlocal state
        state, metrics = jax.block_until_ready(dispatch(state))
        return {'env_steps': env_steps, 'live_steps': env_steps * float(metrics['live'].mean())}

    for _ in range(warm_up):
        call()
    serve(call)


def of_ours(run: ControlRun) -> dict[str, Any]:
    """Brax PPO's settings with batches, networks and gradient steps of our size."""
    contexts, minibatches = run.rollout.contexts, run.optimizer.minibatches
    return {
        'num_envs': contexts * run.rollout.group_size,
        'unroll_length': run.rollout.segment_length,
        'num_minibatches': minibatches,
        'batch_size': contexts * run.rollout.group_size // minibatches,
        'num_updates_per_batch': run.optimizer.epochs,
        'network_factory': functools.partial(
            ppo_networks.make_ppo_networks, **control_policy.network_factory(run)
        ),
    }


PUBLISHED = {
    'ant': {
        'num_envs': 4096,
        'unroll_length': 5,
        'num_minibatches': 32,
        'batch_size': 2048,
        'num_updates_per_batch': 4,
    }
}
"""Brax PPO's settings in `notebooks/training.ipynb` of its repository; its default networks."""


def brax_ppo(run: ControlRun, settings: dict[str, Any], updates: int, warm_up: int) -> None:
    """Brax's PPO. Its epochs stand for the calls; it is timed from outside, around each."""
    turn, epochs = Turn(), 0
    batch = settings['batch_size'] * settings['num_minibatches'] * settings['unroll_length']
    env_steps_per_call = updates * batch

    def between(env_steps: int, *_) -> None:
        nonlocal epochs
        if not env_steps:
            return
        epochs += 1
        if epochs > warm_up:
            turn.done(env_steps=env_steps_per_call)
        if epochs >= warm_up:
            turn.wait()

    calls = 100_000  # More than anyone waits for.
    ppo.train(
        environment=envs.make(run.env),
        num_timesteps=calls * env_steps_per_call,
        num_evals=calls + 1,
        run_evals=False,
        policy_params_fn=between,
        episode_length=run.env.episode_length,
        normalize_observations=True,
        **settings,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """What contenders of every kind understand."""
    parser.add_argument('--env', default='hopper')
    parser.add_argument(
        '--passes', type=int, default=4, help='over a batch, in as many minibatches each'
    )
    parser.add_argument('--updates', type=int, default=5, help='in a call')
    parser.add_argument('--warm-up', type=int, default=2, help='calls')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    brax = ('brax-ppo', 'brax-ppo-cores', 'brax-ppo-published')
    parser.add_argument('contender', choices=('steps', 'rollouts', 'sail', *brax))
    add_options(parser)
    parser.add_argument('--contexts', type=int, default=32)
    parser.add_argument('--group-size', type=int, default=8)
    parser.add_argument('--segment-length', type=int, default=32)
    parser.add_argument('--seeds', type=int)
    options = parser.parse_args()
    run = configuration(options)
    if options.contender not in ('brax-ppo', 'brax-ppo-published'):
        devices.use_cores(options.seeds or run.rollout.contexts)
    match options.contender:
        case 'steps' | 'rollouts' as limit:
            program = (bare_steps if limit == 'steps' else rollouts)(run, options.updates)
            program()
            serve(program)
        case 'sail':
            sail(run, options.updates, options.warm_up)
        case 'brax-ppo-published':
            brax_ppo(run, PUBLISHED[options.env], 1, 1)
        case _:
            brax_ppo(run, of_ours(run), options.updates, options.warm_up)


if __name__ == '__main__':
    main()
