"""A soft actor-critic run as the trainer takes it."""

from functools import partial

import sail_jax.control.compat  # noqa: F401

import jax
from brax.envs.base import Env
from jax.sharding import Mesh

from sail_jax.control import envs
from sail_jax.control.evaluate import BROKEN
from sail_jax.control.reward import asking, beginning
from sail_jax.control.sac import evaluate, networks, people, session, update
from sail_jax.control.sac.config import SacRun, check
from sail_jax.control.sac.learn import SacHyper
from sail_jax.core.keys import START, stream
from sail_jax.core.types import State
from sail_jax.errors import UserError
from sail_jax.sweep import Members
from sail_jax.training import devices, program
from sail_jax.training.program import Programs
from sail_jax.training.task import Task

WATCH = {
    'time/env_steps_per_s': 'steps/s',
    'eval/return': 'return',
    'train/episode_return': 'train return',
    'train/temperature': 'temperature',
}


def make_mesh(run: SacRun, chips: devices.Chips = None) -> Mesh:
    """Devices along the members of a sweep; a run alone uses the first.

    Args:
      chips: instead of all that there are.

    Raises:
      UserError: they do not divide the members.
    """
    members = Members.of(run)
    if members.sweep:
        return devices.make_sweep_mesh(len(members.each), chips)
    first = jax.devices()[:1] if chips is None else chips[:1]
    return devices.make_mesh(1, devices=first)


def shardings(mesh: Mesh, state: State) -> State:
    """Members of a sweep over the devices; a run alone as a whole on its own."""
    if 'seed' in mesh.axis_names:
        return devices.state_sharding(mesh, state)
    return jax.tree.map(lambda _: devices.replicated(mesh), state)


def programs(run: SacRun, chips: devices.Chips = None) -> Programs:
    """What is compiled for a run; see `Kind.programs`.

    Raises:
      UserError: a run alone on several devices.
    """
    if not Members.of(run).sweep and chips is not None and len(chips) > 1:
        raise UserError(
            f'a soft actor-critic run uses one device, got {len(chips)}; '
            'seeds and sweep use several'
        )
    mesh = make_mesh(run, chips)
    return program.of_task(
        run,
        make(run, mesh=mesh),
        mesh,
        pairs=0,
        steps=run.rollout.steps,
        episode=run.env.episode_length,
    )


def make(
    run: SacRun,
    env: Env | None = None,
    mesh: Mesh | None = None,
) -> Task:
    """Builds what the trainer needs.

    Args:
      run: the configuration.
      env: any environment with Brax's interface, bare, see `contract.sound`; replaces `env.name`
        and `env.backend`.
      mesh: as of `make_mesh`.

    Raises:
      UserError: settings that do not go together, unknown names, an environment that is not what it
        should be.
    """
    check(run)
    members = Members.of(run)
    run = members.shared
    mesh = mesh or make_mesh(run)
    env = envs.make(run.env, env)
    nets = networks.make(env, run)
    learned, exchange = None, None
    if run.labeller.by_people:
        asking.require_drawable(run, env)
        learned = people.make(env, run)
        exchange = partial(people.open_exchange, run, env, mesh)
    elif run.reward.source == 'learned':
        learned = session.make(env, run)
    one = update.make_update(env, nets, run, learned)

    return Task(
        workload=None,
        init=partial(update.init_state, env, nets, run, learned),
        program=partial(update.make_dispatch, one, run, run.updates_per_dispatch),
        hyper=SacHyper.of,
        shardings=partial(shardings, mesh),
        start=lambda seed: networks.init_policy(stream(seed, START), nets),
        abstract_policy=jax.eval_shape(
            partial(networks.init_policy, networks=nets), jax.random.key(0)
        ),
        evaluate=evaluate.make(env, nets, run),
        updates=run.updates,
        updates_per_dispatch=run.updates_per_dispatch,
        evaluate_every=run.evaluation.every_updates,
        unit='env_steps',
        units_per_update=run.env_steps_per_update,
        max_labels=None,
        watch=WATCH,
        exchange=exchange,
        best=('eval/return',),
        reference_stays=run.refresh_updates is None,
        digests=lambda: beginning.digests(run.reward),
        absent=(*update.GRADIENT_METRICS, *session.SESSION_METRICS, 'episode_return'),
        smaller='lower replay.capacity, replay.batch, rollout.envs or evaluation.episodes',
        broken=BROKEN,
        stepless=stepless(run),
        unasked=unasked(run),
    )


def stepless(run: SacRun) -> str:
    """Why a run may end without a gradient step."""
    steps = run.rollout.random_env_steps
    return f'all env steps were random ones (rollout.random_env_steps: {steps:,})'


def unasked(run: SacRun) -> str | None:
    """Why the first round of questions comes after the end, if it does; of a run that explores no
    further than at random it is said that it makes no step."""
    if run.reward.source != 'learned' or run.reward.questions.budget == 0:
        return None
    if not run.random_updates < run.updates <= run.reward_updates:
        return None
    steps = run.reward_updates * run.env_steps_per_update
    return (
        f'the first come after {steps:,} env steps (rollout.random_env_steps, '
        'unsupervised.env_steps)'
    )
