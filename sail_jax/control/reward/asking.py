"""People are asked about segments: questions go into the run's store, answers come back, on the
host, between dispatches.

Who asks what, and what becomes of the answers, is the run's own business (`AskingRun`).

Axes: N questions, Q of the newest round, T env steps, L links.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs.base import Env

from sail_jax.control import render
from sail_jax.control.reward.ensemble import Comparisons
from sail_jax.core.types import State
from sail_jax.errors import UserError
from sail_jax.labels import exchange, payloads
from sail_jax.labels import store as label_store
from sail_jax.labels.payloads import SegmentPair
from sail_jax.labels.store import Answer, Question, Store
from sail_jax.training import hosts
from sail_jax.training.task import HostExchange


class AskedSegments(NamedTuple):
    """All questions of a run so far, on the host."""

    obs: np.ndarray
    """[N, 2, T, O]; there may be empty places after them."""
    action: np.ndarray
    """[N, 2, T, A]"""
    mask: np.ndarray
    """[N, 2, T]"""
    pose: np.ndarray
    """Of the last Q of them, [Q, 2, T + 1, L, 7]; those before are in the store already."""
    update: int
    """That asked those Q, as `Question.round`."""


class AskingRun(Protocol):
    """What a run asks, by its state."""

    def count(self, state: State, /) -> int:
        """Questions so far, those of a round that is due now included."""
        ...

    def awaited(self, state: State, /) -> int:
        """Questions, the first, whose answers the next dispatch waits for."""
        ...

    def asked(self, state: State, /) -> AskedSegments:
        """Those that `count` counts."""
        ...

    def learn(self, state: State, answers: Sequence[Answer], /) -> State:
        """The state that knows the answers."""
        ...


class Told(NamedTuple):
    """New answers, in the places of their questions."""

    prob_N: np.ndarray
    weight_N: np.ndarray
    new_N: np.ndarray


def require_drawable(run: Any, env: Env) -> None:
    """Refuses what people cannot be asked about.

    Raises:
      UserError: they cannot; naming why.
    """
    who = 'labeller.source: people'
    if render.model(env) is None:
        raise UserError(
            f'{who}: only environments of Brax and MuJoCo Playground can be drawn, not '
            f'{run.env.backend}'
        )
    hosts.require_one_process(f'runs with {who}')


def in_places(answers: Sequence[Answer], prior: int, places: int) -> Told:
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


def with_told(answers: Comparisons, told: Told) -> Comparisons:
    """The comparisons with what was said of them."""
    return answers._replace(
        prob=jnp.where(told.new_N, told.prob_N, answers.prob),
        weight=jnp.where(told.new_N, told.weight_N, answers.weight),
    )


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


class People:
    """Those who answer a run's questions, as the run knows them: by its store. A `HostExchange`."""

    def __init__(self, store: Store, run: AskingRun, budget: int):
        """`budget` is `reward.questions.budget`."""
        self._store, self._run, self.waiting = store, run, exchange.waiting(store)
        self._budget = budget
        self._published = -1
        """Questions that are known to be in the store."""

    def publish(self, state: State) -> None:
        """Writes the newest round into the store, and holds the others against it.

        Raises:
          UserError: the store has other questions than the run.
        """
        count = self._run.count(state)
        if count == self._published:
            return
        asked = self._run.asked(state)
        begin = count - len(asked.pose)
        for number in range(max(self._published, 0), count):
            segments = {name: getattr(asked, name)[number] for name in ('obs', 'action', 'mask')}
            if number < begin:
                require_same(self._store, number, segments)
                continue
            pair = SegmentPair(**segments, pose=asked.pose[number - begin])
            question = Question(number, asked.update, payloads.pack_segments(pair))
            self._store.ask([question], last=number + 1 == self._budget)
        self._published = count

    def ready(self, state: State) -> bool:
        """Whether what the next dispatch waits for is answered."""
        return self._store.has_answers(self._run.awaited(state))

    def take(self, state: State) -> State:
        """The state that knows the answers which have come."""
        answers = self._store.take(int(state.step), self._run.count(state))
        return self._run.learn(state, answers)


def open_exchange(settings: Any, env: Env, run: AskingRun, run_dir: Path) -> HostExchange:
    """How a run asks people, and learns of their answers.

    Args:
      settings: of the run.

    Raises:
      UserError: the store cannot be used.
    """
    first = jax.jit(lambda key: render.pose(env.reset(key)))(jax.random.PRNGKey(settings.seed))
    store = exchange.open_store(
        run_dir,
        settings.labeller,
        kind='segments',
        task=settings.env.subject,
        world=render.world(env, np.asarray(first)),
    )
    return People(store, run, settings.reward.questions.budget)
