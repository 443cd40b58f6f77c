"""A soft actor-critic run that is as small as can be, and rows of a replay."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs.base import Env

from sail_jax import configfile, runs
from sail_jax.control.sac.config import SacRun
from sail_jax.control.sac.replay import Transition
from sail_jax.core.types import State
from sail_jax.sweep import Members
from sail_jax.training import checkpoint, setup

SETTINGS: dict[str, Any] = {
    'workload': 'sac',
    'total_env_steps': 160,
    'updates_per_dispatch': 2,
    'env': {'episode_length': 15},
    'actor': {'hidden': [8]},
    'critic': {'hidden': [8]},
    'rollout': {'envs': 2, 'steps': 10, 'random_env_steps': 40, 'update_to_data': 0.5},
    'replay': {'capacity': 100, 'batch': 16},
    'reference': {'refresh_env_steps': 60},
    'evaluation': {'every_updates': 4, 'episodes': 2},
    'checkpoints': {'every_updates': 4},
    'logging': {'tensorboard': False},
}


REWARD: dict[str, Any] = {
    'source': 'learned',
    'segment_length': 3,
    'newest_env_steps': 24,
    'hidden': (8,),
    'members': 2,
    'learning_rate': 1e-2,
    'passes': 5,
    'questions': {'candidates': 6, 'per_round': 4, 'budget': 10, 'every_env_steps': 40},
}
"""A reward that is learned from ten answers, in three rounds."""


def run(**settings: Any) -> SacRun:
    """The configuration with other settings, by dotted keys or as sections."""
    return configfile.update(SacRun.model_validate(SETTINGS), settings)


def by_people(**settings: Any) -> SacRun:
    """The same, on a reward that people teach."""
    who = {'source': 'people', 'instruction': 'Which one is nearer?', 'repeat_every': 0}
    return run(**{'reward': REWARD, 'labeller': who} | settings)


def answers(count: int) -> Iterator[dict[str, Any]]:
    """Rows of answers about `Point`, segments of four and two steps: the first is better where it
    lies further out in all."""
    for n in range(count):
        first, second = [[n % 3 / 3, 0.0]] * 4, [[n % 2 / 2, 0.0]] * 2
        margin = sum(x for x, _ in first) - sum(x for x, _ in second)
        still = ([[0.0, 0.0]] * 4, [[0.0, 0.0]] * 2)
        yield {'obs': (first, second), 'action': still, 'choice': (1 + float(np.sign(margin))) / 2}


def saved_state(path: Path, run: SacRun, env: Env) -> State:
    """Of the newest checkpoint, replay and all."""
    members, task = Members.of(run), runs.make_task(run, env=env)
    layout = setup.Layout.of(members, task)
    with checkpoint.open_manager(path / 'checkpoints') as manager:
        return checkpoint.restore(manager, layout.state)[0]


def batch(terminated_B: jax.Array) -> Transition:
    """Of `Point`'s sizes, all sound; the first three ended."""
    B = len(terminated_B)
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), (B, *shape))
    return Transition(
        obs=draw(4, 2),
        action=jnp.tanh(draw(5, 2)),
        reward=draw(6),
        true_reward=draw(7),
        next_obs=draw(8, 2),
        terminated=terminated_B,
        ended=jnp.arange(B) < 3,
        sound=jnp.ones(B, bool),
    )


def row(
    t: int,
    envs: int = 2,
    ended: bool = False,
    sound: bool = True,
    width: int = 3,
    actions: int = 1,
) -> Transition:
    """Step t of every environment, whose numbers all say which; so many of an observation, and of
    an action."""
    number = jnp.arange(envs) + 100.0 * t
    return Transition(
        obs=jnp.tile(number[:, None], (1, width)),
        action=-jnp.tile(number[:, None], (1, actions)),
        reward=number,
        true_reward=number,
        next_obs=jnp.tile(number[:, None] + 100, (1, width)),
        terminated=jnp.zeros(envs, bool),
        ended=jnp.full(envs, ended),
        sound=jnp.full(envs, sound),
    )
