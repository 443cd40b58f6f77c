"""A control run as the trainer takes it."""

from functools import partial
from typing import Any

import sail_jax.control.compat  # noqa: F401

import jax
from brax.envs.base import Env
from jax.sharding import Mesh

from sail_jax.control import envs, evaluate, reference, workload
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun, check
from sail_jax.control.judgement import SegmentReward
from sail_jax.control.reward import beginning, people, rounds
from sail_jax.control.reward.state import ContextsAndReward, ContextsRewardAndAsked
from sail_jax.sweep import Members
from sail_jax.training import devices, program
from sail_jax.training.program import Programs
from sail_jax.training.task import OF_PAIRS, Task

WATCH = {
    'time/env_steps_per_s': 'steps/s',
    'eval/return': 'return',
    'eval/kl_policy_to_start': 'KL',
    'train/margin': 'margin',
}


def batch_bytes(env: Env, run: ControlRun) -> int:
    """States of the simulator and observations of the segments, or of an evaluation's episodes."""
    state = control_policy.abstract_state(env)
    rollout, lanes = run.rollout, run.rollout.group_size + run.extra_lanes
    states = (rollout.contexts_at_once or rollout.contexts) * lanes * devices.size(state)
    obs = rollout.contexts * lanes * rollout.segment_length * devices.size(state.obs)
    episodes = len(evaluate.LANES_DETERMINISTIC) * run.evaluation.episodes * devices.size(state)
    return max(states + obs, episodes)


def make_mesh(run: ControlRun, chips: devices.Chips = None) -> Mesh:
    """Devices along the members of a sweep, or along the contexts.

    Args:
      chips: instead of all that there are.

    Raises:
      UserError: they do not divide what is split over them.
    """
    members = Members.of(run)
    if members.sweep:
        return devices.make_sweep_mesh(len(members.each), chips)
    apart = '' if run.rollout.contexts_at_once is None else ' / rollout.contexts_at_once'
    rows_key = f'rollout.contexts{apart}'
    return devices.make_mesh(run.rollout.parts, rows_key=rows_key, devices=chips)


def shardings(mesh: Mesh, state: Any) -> Any:
    """The contexts lie split over the devices; a learned reward is on all of them."""
    layout = devices.state_sharding(mesh, state)
    learned = isinstance(state.sampler, ContextsAndReward | ContextsRewardAndAsked)
    if learned and 'seed' not in mesh.axis_names:
        everywhere = jax.tree.map(lambda _: devices.replicated(mesh), state.sampler)
        sampler = everywhere._replace(contexts=layout.sampler.contexts)
        layout = layout._replace(sampler=sampler)
    return layout


def programs(run: ControlRun, chips: devices.Chips = None) -> Programs:
    """What is compiled for a run; see `Kind.programs`."""
    mesh = make_mesh(run, chips)
    pairs = run.rollout.contexts * run.rollout.group_size * (run.rollout.group_size - 1) // 2
    return program.of_task(
        run,
        make(run, mesh=mesh),
        mesh,
        pairs=pairs,
        steps=run.rollout.segment_length,
        episode=run.env.episode_length,
    )


def make(
    run: ControlRun,
    env: Env | None = None,
    segment_reward: SegmentReward | None = None,
    mesh: Mesh | None = None,
) -> Task:
    """Builds what the trainer needs.

    Args:
      run: the configuration.
      env: any environment with Brax's interface, bare, see `contract.sound`; replaces `env.name`
        and `env.backend`.
      segment_reward: what the labeller goes by instead of the environment's reward: a JAX function
        of one segment that returns the reward of each step, or one number for the segment.
      mesh: as of `make_mesh`.

    Raises:
      UserError: settings that do not go together, unknown names, an environment or a
        `segment_reward` that is not what it should be.
    """
    check(run)
    members = Members.of(run)
    run = members.shared
    mesh = mesh or make_mesh(run)
    env = envs.make(run.env, env)
    networks = control_policy.make_networks(env, run)
    exchange = None
    if run.labeller.by_people:
        people.require_drawable(run, env, segment_reward)
        exchange = partial(people.open_exchange, run, env, mesh)
    return Task(
        workload=workload.make(env, networks, run, mesh, segment_reward),
        shardings=partial(shardings, mesh),
        start=partial(reference.load, env, networks, run),
        abstract_policy=jax.eval_shape(
            lambda key: control_policy.init(key, env, networks, run), jax.random.key(0)
        ),
        evaluate=evaluate.make(env, networks, run, mesh),
        updates=run.updates,
        updates_per_dispatch=run.updates_per_dispatch,
        evaluate_every=run.evaluation.every_updates,
        unit='env_steps',
        units_per_update=run.env_steps_per_update,
        max_labels=run.labeller.max_labels,
        watch=WATCH,
        best=('eval/return',),
        batch_bytes=lambda: batch_bytes(env, run),
        exchange=exchange,
        absent=(*OF_PAIRS, *rounds.ABSENT),
        reference_stays=run.refresh_updates is None,
        digests=lambda: beginning.digests(run.reward),
        smaller='lower rollout.contexts, rollout.group_size, rollout.segment_length or '
        'evaluation.episodes',
        broken=evaluate.BROKEN,
    )
