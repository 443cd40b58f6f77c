"""A control run as the trainer takes it."""

import jax
from brax.envs.base import Env

from sail_jax import devices, update
from sail_jax.control import envs, evaluate, reference, workload
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun, check
from sail_jax.control.workload import SegmentReward
from sail_jax.trainer import Task

WATCH = {
    'time/env_steps_per_s': 'steps/s',
    'eval/return': 'return',
    'eval/kl_policy_to_ref': 'KL',
    'train/margin': 'margin',
}


def make(
    run: ControlRun, env: Env | None = None, segment_reward: SegmentReward | None = None
) -> Task:
    """Builds what the trainer needs.

    Args:
      run: the configuration.
      env: any environment with Brax's interface, bare; replaces `env.name` and `env.backend`.
      segment_reward: what the labeller goes by instead of the environment's reward: a JAX function
        of one segment that returns the reward of each step, or one number for the segment.

    Raises:
      UserError: settings that do not go together, unknown names, a bad reference.
    """
    check(run)
    mesh = devices.make_mesh(run.rollout.contexts)
    env = envs.make(run.env) if env is None else env
    networks = control_policy.make_networks(env, run)
    key = update.stream(run.seed, update.START)
    return Task(
        workload=workload.make(env, networks, run, mesh, segment_reward),
        mesh=mesh,
        start=lambda: reference.load(env, networks, run, key),
        abstract_policy=jax.eval_shape(
            lambda key: control_policy.init(key, env, networks, run), key
        ),
        evaluate=evaluate.make(env, networks, run, update.stream(run.seed, update.EVALUATE)),
        updates=run.dispatches * run.updates_per_dispatch,
        updates_per_dispatch=run.updates_per_dispatch,
        evaluate_every=run.evaluation.every_updates,
        env_steps_per_update=run.env_steps_per_update,
        max_labels=run.labeller.max_labels,
        watch=WATCH,
    )
