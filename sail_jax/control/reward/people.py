"""People answer about the segments of updates: an update asks (`rounds`), and goes by what there
was before it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import sail_jax.control.compat  # noqa: F401

import jax
import numpy as np
from brax.envs.base import Env
from jax.sharding import Mesh

from sail_jax.control.config import ControlRun
from sail_jax.control.reward import asking, beginning, rounds
from sail_jax.control.reward.asking import AskedSegments, Told
from sail_jax.control.reward.ensemble import Comparisons
from sail_jax.control.reward.state import AskedPeople, LearnedReward, begun_with
from sail_jax.core import precision
from sail_jax.core.keys import ANSWERS, stream
from sail_jax.core.types import State
from sail_jax.errors import UserError
from sail_jax.labels.store import Answer
from sail_jax.training import devices
from sail_jax.training.task import HostExchange

Learn = Callable[[LearnedReward, AskedPeople, Told, jax.Array], tuple[LearnedReward, AskedPeople]]
"""Puts answers into their places, and fits the ensemble on all that there are."""


def require_drawable(run: ControlRun, env: Env, segment_reward: Any) -> None:
    """Refuses what people cannot be asked about.

    Raises:
      UserError: they cannot; naming why.
    """
    if segment_reward is not None:
        raise UserError(
            'segment_reward: not used by labeller.source: people, who go by what they see'
        )
    asking.require_drawable(run, env)


def make_learn(run: ControlRun, env: Env, mesh: Mesh) -> Learn:
    """The compiled function."""
    ensemble = beginning.make_ensemble(run.reward, env)

    @partial(jax.jit, out_shardings=devices.replicated(mesh))
    @precision.traced_at(precision.resolved(run))
    def learn(
        reward: LearnedReward, asked: AskedPeople, told: Told, key: jax.Array
    ) -> tuple[LearnedReward, AskedPeople]:
        answers = asking.with_told(reward.answers, told)
        reward = beginning.foretold(run.reward, ensemble, reward._replace(answers=answers), key)
        reward = rounds.fitted(ensemble, reward, key)
        return reward, asked._replace(waiting=asked.waiting - told.new_N.sum())

    return learn


def unknown(answers: Sequence[Answer], prior: int, there: Comparisons) -> list[Answer]:
    """Those that training does not know. A store that was put back from an older copy gives others
    once more; were they counted again, no round would ever be due.

    Args:
      prior: as of `asking.in_places`.
      there: what was told so far; see `questions.unanswered` and `store.PROB`.
    """
    told_N = (np.asarray(there.prob) != 0) | (np.asarray(there.weight) != 0)
    return [answer for answer in answers if not told_N[prior + answer.number]]


class AskingUpdates:
    """What the updates of a run have asked: it is in the state; see `asking.AskingRun`."""

    def __init__(self, run: ControlRun, env: Env, mesh: Mesh):
        self._run, self._learn = run, make_learn(run, env, mesh)

    def count(self, state: State) -> int:
        return int(state.sampler.reward.asked)

    def awaited(self, state: State) -> int:
        return self.count(state) if self._run.labeller.wait else 0

    def asked(self, state: State) -> AskedSegments:
        reward, asked = jax.device_get((state.sampler.reward, state.sampler.asked))
        prior, steps = begun_with(self._run.reward, reward), self._run.rollout.segment_length
        newest = int(reward.update_N.max())
        answers = reward.answers
        return AskedSegments(
            obs=answers.obs[prior:, :, :steps],
            action=answers.action[prior:, :, :steps],
            mask=answers.mask[prior:, :, :steps],
            pose=asked.pose_Qx2xTxLx7[: int((reward.update_N == newest).sum())],
            update=newest,
        )

    def learn(self, state: State, answers: Sequence[Answer]) -> State:
        """As of `AskingRun`; before the first update it fits what the run began with."""
        reward, step = state.sampler.reward, int(state.step)
        prior = begun_with(self._run.reward, reward)
        answers = unknown(answers, prior, reward.answers)
        if not answers and (step > 0 or not prior or reward.passes > 0):
            return state
        told = asking.in_places(answers, prior, len(reward.update_N))
        key = jax.random.fold_in(stream(state.seed, ANSWERS), step)
        reward, asked = self._learn(reward, state.sampler.asked, told, key)
        return state._replace(sampler=state.sampler._replace(reward=reward, asked=asked))


def open_exchange(run: ControlRun, env: Env, mesh: Mesh, run_dir: Path) -> HostExchange:
    """As of `asking.open_exchange`."""
    return asking.open_exchange(run, env, AskingUpdates(run, env, mesh), run_dir)
