"""People answer: questions go from the state into the run's store, answers come back, on the host.

Between dispatches alone: an update asks (`rounds`), and goes by what there was before it.

Axes: N questions of the run, Q of a round, T env steps, L links.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs.base import Env
from jax.sharding import Mesh

from sail_jax.control import policy as control_policy
from sail_jax.control import render
from sail_jax.control.config import ControlRun
from sail_jax.control.reward import ensemble as reward_ensemble
from sail_jax.control.reward import rounds
from sail_jax.control.reward.state import AskedPeople, LearnedReward
from sail_jax.core import precision
from sail_jax.core.keys import ANSWERS, stream
from sail_jax.core.types import State
from sail_jax.errors import UserError
from sail_jax.labels import payloads
from sail_jax.labels import store as label_store
from sail_jax.labels.payloads import SegmentPair
from sail_jax.labels.store import Answer, Question, Store
from sail_jax.training import devices, hosts
from sail_jax.training.task import HostExchange


class Told(NamedTuple):
    """New answers, in the places of their questions."""

    prob_N: np.ndarray
    weight_N: np.ndarray
    new_N: np.ndarray


Learn = Callable[[LearnedReward, AskedPeople, Told, jax.Array], tuple[LearnedReward, AskedPeople]]
"""Puts answers into their places, and fits the ensemble on all that there are."""


def require_drawable(run: ControlRun, env: Env, segment_reward: Any) -> None:
    """Refuses what people cannot be asked about.

    Raises:
      UserError: they cannot; naming why.
    """
    who = 'labeller.source: people'
    if segment_reward is not None:
        raise UserError(f'segment_reward: not used by {who}, who go by what they see')
    if render.model(env) is None:
        raise UserError(
            f'{who}: only environments of Brax and MuJoCo Playground can be drawn, not '
            f'{run.env.backend}'
        )
    hosts.require_one_process(f'runs with {who}')


def make_learn(run: ControlRun, env: Env, mesh: Mesh) -> Learn:
    """The compiled function."""
    obs_shape = control_policy.observation_shape(env)
    ensemble = reward_ensemble.make(run.reward, obs_shape, env.action_size)

    @partial(jax.jit, out_shardings=devices.replicated(mesh))
    @precision.traced_at(precision.resolved(run))
    def learn(
        reward: LearnedReward, asked: AskedPeople, told: Told, key: jax.Array
    ) -> tuple[LearnedReward, AskedPeople]:
        answers = reward.answers._replace(
            prob=jnp.where(told.new_N, told.prob_N, reward.answers.prob),
            weight=jnp.where(told.new_N, told.weight_N, reward.answers.weight),
        )
        reward = rounds.fitted(ensemble, reward._replace(answers=answers), key)
        return reward, asked._replace(waiting=asked.waiting - told.new_N.sum())

    return learn


def require_same(store: Store, number: int, segments: dict[str, np.ndarray]) -> None:
    """Raises:
    UserError: the question of that number in the store compares others.
    """
    there = payloads.unpack_segments(store.payload(number))
    for name, array in segments.items():
        if not np.array_equal(getattr(there, name), array):
            raise UserError(
                f'{store.path}: question {number} compares other segments than this run; the file '
                'is of another run'
            )


def in_places(answers: list[Answer], prior: int, places: int) -> Told:
    """Answers as arrays.

    Args:
      prior: answers that the run began with, whose places are the first.
      places: N.
    """
    told = Told(np.zeros(places, np.float32), np.zeros(places, np.float32), np.zeros(places, bool))
    for answer in answers:
        place = prior + answer.number
        told.prob_N[place] = label_store.PROB[answer.choice]
        told.weight_N[place] = answer.choice != 'skip'
        told.new_N[place] = True
    return told


class People:
    """Those who answer a run's questions, as the run knows them: by its store."""

    def __init__(self, store: Store, run: ControlRun, learn: Learn):
        self._store, self._learn, self._settings = store, learn, run.labeller
        self._steps, self._budget = run.rollout.segment_length, run.reward.questions.budget
        self._published = -1
        """Questions that are known to be in the store."""

    def publish(self, state: State) -> None:
        """Writes the newest round into the store, and holds the others against it.

        Raises:
          UserError: the store has other questions than the run.
        """
        count = int(state.sampler.reward.asked)
        if count == self._published:
            return
        reward, asked = jax.device_get((state.sampler.reward, state.sampler.asked))
        prior = len(reward.update_N) - self._budget
        newest = int(reward.update_N.max())
        begin = count - int((reward.update_N == newest).sum())
        for number in range(max(self._published, 0), count):
            segments = {
                name: getattr(reward.answers, name)[prior + number, :, : self._steps]
                for name in ('obs', 'action', 'mask')
            }
            if number < begin:
                require_same(self._store, number, segments)
                continue
            pair = SegmentPair(**segments, pose=asked.pose_Qx2xTxLx7[number - begin])
            self._store.ask([Question(number, newest, payloads.pack_segments(pair))])
        self._published = count

    def ready(self, state: State) -> bool:
        """Whether all questions are answered, where training waits for that."""
        count = int(state.sampler.reward.asked)
        return not self._settings.wait or self._store.has_answers(count)

    def take(self, state: State) -> State:
        """The state that knows the answers which have come."""
        reward, step = state.sampler.reward, int(state.step)
        places = len(reward.update_N)
        prior = places - self._budget
        answers = self._store.take(step, int(reward.asked))
        if not answers and (step > 0 or not prior):
            return state
        told = in_places(answers, prior, places)
        key = jax.random.fold_in(stream(state.seed, ANSWERS), step)
        reward, asked = self._learn(reward, state.sampler.asked, told, key)
        return state._replace(sampler=state.sampler._replace(reward=reward, asked=asked))


def open_exchange(run: ControlRun, env: Env, mesh: Mesh, run_dir: Path) -> HostExchange:
    """How a run asks people, and learns of their answers.

    Raises:
      UserError: the store cannot be used.
    """
    first = jax.jit(lambda key: render.pose(env.reset(key)))(jax.random.PRNGKey(run.seed))
    about = {
        'kind': 'segments',
        'task': run.env.subject,
        'instruction': run.labeller.instruction,
        'repeat_every': run.labeller.repeat_every,
        'world': render.world(env, np.asarray(first)),
    }
    store = Store.of_run(run_dir / label_store.NAME, about)
    people = People(store, run, make_learn(run, env, mesh))
    return HostExchange(
        publish=people.publish,
        ready=people.ready,
        take=people.take,
        waiting=f'waiting for answers: sail-jax label {run_dir}',
    )
