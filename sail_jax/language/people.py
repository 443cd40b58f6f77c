"""People compare a run's responses: questions go into the run's store, answers come back.

The responses of an update are a function of the state before it. So nothing is kept of a question
but its number: who goes on with a run draws the same responses again, and finds the answers.

Axes: B prompts, K responses to each, P = K (K - 1) / 2 pairs of them.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sail_jax.core.types import Preferences, State
from sail_jax.labels import exchange, payloads
from sail_jax.labels import store as label_store
from sail_jax.labels.payloads import ResponsePair
from sail_jax.labels.store import Answer, Question, Store
from sail_jax.language.config import LanguageRun
from sail_jax.language.data.rows import Prompt
from sail_jax.language.kind import start_model
from sail_jax.language.samples import prompt_text
from sail_jax.training import hosts
from sail_jax.training.task import HostExchange


class Unlabelled(NamedTuple):
    """The texts of an update."""

    prompts: Sequence[Prompt]
    groups: Sequence[Sequence[str]]
    """[B][K]"""
    asked_B: np.ndarray
    """Whose pairs are put to people."""


class Pair(NamedTuple):
    """Two responses of a group that are compared."""

    number: int
    """Of its question."""
    row: int
    first: int
    second: int


def pairs(step: int, rows: int, group_size: int) -> Iterator[Pair]:
    """All pairs of an update, numbered on from those of the updates before.

    Those of every other question are turned round: who always says "left" prefers neither the
    first response of a group nor its last, which may be the reference's.

    Args:
      step: updates before it.
      rows: B.
    """
    both = list(itertools.combinations(range(group_size), 2))
    every = itertools.product(range(rows), both)
    for number, (row, (i, j)) in enumerate(every, step * rows * len(both)):
        yield Pair(number, row, *((j, i) if number % 2 else (i, j)))


def preferences(answers: Sequence[Answer], places: Iterator[Pair], shape: tuple) -> Preferences:
    """Answers as labels; pairs without one have no weight.

    Args:
      shape: B, K, K.
    """
    prob, weight = np.full(shape, 0.5, np.float32), np.zeros(shape, np.float32)
    choices = {answer.number: answer.choice for answer in answers}
    for number, row, i, j in places:
        choice = choices.get(number, 'skip')
        prob[row, i, j] = label_store.PROB[choice]
        prob[row, j, i] = 1 - label_store.PROB[choice]
        weight[row, [i, j], [j, i]] = choice != 'skip'
    arrays: tuple[Any, Any] = prob, weight
    return Preferences(*arrays)


class ResponseQuestions:
    """What a run asks people, and what they say, by its store. A `HostExchange` once it is open."""

    def __init__(
        self,
        run: LanguageRun,
        draw: Callable[[State], Any],
        texts: Callable[[State, Any], Unlabelled],
    ):
        """Args:
          draw: a batch of the state's next update.
          texts: of a state and its batch.

        Raises:
          UserError: there are several processes.
        """
        hosts.require_one_process('runs with labeller.source: people')
        self._run, self._draw, self._texts = run, draw, texts
        self._batch: tuple[int, Any] | None = None
        self._answers: list[Answer] = []
        self._store: Store | None = None
        self.waiting = ''

    def open(self, run_dir: Path) -> HostExchange:
        """How a run asks people, and learns of their answers.

        Raises:
          UserError: the store cannot be used.
        """
        self._store = exchange.open_store(
            run_dir, self._run.labeller, kind='responses', task=start_model(self._run)
        )
        self.waiting = exchange.waiting(self._store)
        return self

    def draw(self, state: State) -> Any:
        """The batch of a state, which is drawn once."""
        step = int(state.step)
        if self._batch is None or self._batch[0] != step:
            self._batch = step, self._draw(state)
        return self._batch[1]

    def publish(self, state: State) -> None:
        """Draws the next update's responses and asks which are better.

        Two that read the same are not asked about, and have no label.

        Raises:
          UserError: the store has other questions than the run.
        """
        step = int(state.step)
        if step >= self._run.updates:
            return
        prompts, groups, asked_B = self._texts(state, self.draw(state))
        left = self._left(state)
        asked = [pair for pair in self._pairs(step) if asked_B[pair.row]][:left]
        self._opened.ask(
            [
                Question(number, step + 1, _payload(prompts[row], groups[row][i], groups[row][j]))
                for number, row, i, j in asked
                if groups[row][i] != groups[row][j]
            ],
            last=step + 1 >= self._run.updates or len(asked) == left,
        )

    def ready(self, state: State) -> bool:
        """Whether all questions are answered."""
        return self._opened.has_answers(self._end(state))

    def take(self, state: State) -> State:
        """The state as it is; its update is learned from the answers that there are now."""
        self._answers = self._opened.take(int(state.step), self._end(state))
        return state

    def label(self, state: State, batch: Any) -> tuple[Preferences, dict[str, Any]]:
        """What people said of the batch; and metrics."""
        B, K = self._run.prompts_per_update, self._run.group_size
        return preferences(self._answers, self._pairs(int(state.step)), (B, K, K)), {}

    def _pairs(self, step: int) -> Iterator[Pair]:
        return pairs(step, self._run.prompts_per_update, self._run.group_size)

    def _end(self, state: State) -> int:
        """Questions of this update and those before have numbers below it."""
        K = self._run.group_size
        return (int(state.step) + 1) * self._run.prompts_per_update * K * (K - 1) // 2

    def _left(self, state: State) -> int | None:
        """Comparisons that the budget still covers."""
        budget = self._run.labeller.max_labels
        return None if budget is None else budget - int(state.labels)

    @property
    def _opened(self) -> Store:
        assert self._store is not None  # The loop opens it before it asks for anything.
        return self._store


def _payload(prompt: Prompt, first: str, second: str) -> bytes:
    turns = None if isinstance(prompt, str) else tuple((turn.role, turn.content) for turn in prompt)
    return payloads.pack_responses(ResponsePair(prompt_text(prompt), (first, second), turns))
