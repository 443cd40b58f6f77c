"""Evaluation of a soft actor-critic policy: full episodes under the true reward."""

from typing import Any

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from brax.envs.base import Env
from brax.training.agents.sac.networks import SACNetworks

from sail_jax.control import rollout
from sail_jax.control.evaluate import counted_return, make_succeeded, success_rates
from sail_jax.control.lanes import World
from sail_jax.control.rollout import Episodes
from sail_jax.control.sac.config import SacRun
from sail_jax.core import precision
from sail_jax.core.keys import EVALUATE, row_keys, stream
from sail_jax.core.types import Policies, Policy
from sail_jax.training.task import Evaluate

LANES_DETERMINISTIC = (False, True)


def make(env: Env, networks: SACNetworks, run: SacRun) -> Evaluate:
    """Every call of one seed uses the same start states and noise."""
    succeeded = make_succeeded(env, run.evaluation.success)
    world = World(env, networks, run.env.episode_length, succeeded)

    @jax.jit
    @precision.traced_at(precision.resolved(run))
    def evaluate(
        policy: Policy, start: Policy, shared: Any, seed: jax.Array, hyper: Any
    ) -> dict[str, jax.Array]:
        key_B = row_keys(stream(seed, EVALUATE), run.evaluation.episodes)
        lanes = jnp.asarray(LANES_DETERMINISTIC)
        return summarise(rollout.episodes(world, Policies(policy, start), policy, lanes, key_B))

    return evaluate


def summarise(episodes: Episodes) -> dict[str, jax.Array]:
    """Numbers of an evaluation; KLs and entropy are in nats per env step of stochastic episodes,
    lengths in env steps; standard errors are over start states.

    What an episode collected until the simulator broke is no return. Such episodes are counted,
    `not_finite`, and stand as the worst sound one of their kind; where there is none, NaN.
    """
    numbers: dict[str, jax.Array] = {'not_finite': episodes.not_finite.sum()}
    for lane, kind in enumerate(('', 'deterministic_')):
        returns_B = counted_return(episodes, episodes, slice(lane, lane + 1))[:, 0]
        sound_B = ~episodes.not_finite[:, lane]
        numbers |= {
            f'{kind}return': returns_B.mean(),
            f'{kind}return_std': returns_B.std(),
            f'{kind}return_se': returns_B.std(ddof=1) / len(returns_B) ** 0.5,
            f'{kind}return_q50': jnp.percentile(returns_B, 50),
            f'{kind}length': episodes.length[:, lane].mean(where=sound_B),
        }
    steps = episodes.length[:, 0].sum()
    of_steps = ('kl_policy_to_start', 'kl_start_to_policy', 'action_std', 'entropy')
    numbers |= success_rates(episodes, slice(0, 1), slice(1, 2))
    return numbers | {key: getattr(episodes, key)[:, 0].sum() / steps for key in of_steps}
