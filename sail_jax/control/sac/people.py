"""People answer a run's rounds of questions, between dispatches.

A round is a function of the state that it is asked at: who goes on with a run that waits for
answers asks the same again, and finds what has come meanwhile. Keys and times are those of the
teacher's sessions: in a run that waits, a person who says what the teacher would makes the same
run.

Axes: Q questions of a round, N of the run, C rows of the replay.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs.base import Env
from jax.sharding import Mesh

from sail_jax.control.reward import asking, beginning, questions
from sail_jax.control.reward.asking import AskedSegments, Told
from sail_jax.control.reward.questions import Proposal
from sail_jax.control.reward.state import Taught, begun_with
from sail_jax.control.sac import replay, session, update
from sail_jax.control.sac.config import SacRun
from sail_jax.control.sac.replay import Replay
from sail_jax.control.sac.update import Experience, Now, RewardFunctions
from sail_jax.core import precision
from sail_jax.core.types import Metrics, State
from sail_jax.labels.store import Answer
from sail_jax.training import devices
from sail_jax.training.task import HostExchange


class TaughtByPeople(NamedTuple):
    """`Experience.reward` of a run that people label."""

    taught: Taught
    """A question that nobody has answered yet has its place, and no weight."""
    update_N: jax.Array
    """Updates before it was asked; 0 of an empty place. Of the run's own questions alone."""
    told_N: jax.Array
    """Whether training has learned of an answer, bool; of the same."""
    numbers: Metrics
    """`session.SESSION_METRICS` of a fit that no update has told of yet, `KEPT` of them; else NaN.
    """


KEPT = ('fit_accuracy', 'fit_passes', 'answer_accuracy', 'reward_spread', 'reward_correlation')
"""Checkpoints have these; what answers came to is in `Taught`."""


class BetweenDispatches(NamedTuple):
    """What is compiled for a round, each one program: what it returns is what is shown and kept."""

    propose: Callable[[TaughtByPeople, Replay, jax.Array], Proposal]
    """`(reward, replay, key)`; the key is `UpdateKeys.ask` of the next update, as a session's."""
    place: Callable[[TaughtByPeople, Proposal, jax.Array, jax.Array], Any]
    """`(reward, proposal, step, labels) -> reward, labels`: a round without answers."""
    learn: Callable[[TaughtByPeople, Replay, Told, jax.Array], tuple[TaughtByPeople, jax.Array]]
    """`(reward, replay, told, key) -> reward, rewards [C, envs]`: answers in their places, a fit on
    all that there are, and what the replay is relabelled to."""


def make(env: Env, run: SacRun) -> RewardFunctions:
    """The functions of a run whose reward is learned from people; its updates ask nobody."""
    ensemble = beginning.make_ensemble(run.reward, env)
    N, untaught = run.reward.questions.budget, beginning.make(run, env, ensemble)

    def init(key: jax.Array) -> TaughtByPeople:
        return TaughtByPeople(
            taught=untaught(key),
            update_N=jnp.zeros(N, jnp.int32),
            told_N=jnp.zeros(N, bool),
            numbers={name: jnp.full((), jnp.nan) for name in KEPT},
        )

    def predict(reward: TaughtByPeople, obs: jax.Array, action: jax.Array) -> jax.Array:
        return session.predicted(ensemble, reward.taught, obs, action)

    def begin(state: State, now: Now, key: jax.Array) -> tuple[State, Metrics]:
        there: Experience = state.sampler
        numbers, known = (
            there.reward.numbers,
            beginning.known_before(run.reward, there.reward.taught),
        )
        new = ~jnp.isnan(numbers['fit_passes'])
        known = {name: jnp.where(new, x, jnp.nan) for name, x in known.items()}
        nothing = {name: jnp.full_like(x, jnp.nan) for name, x in numbers.items()}
        there = there._replace(reward=there.reward._replace(numbers=nothing))
        return state._replace(sampler=there), numbers | known

    return RewardFunctions(init=init, predict=predict, begin=begin)


def between_dispatches(env: Env, run: SacRun, mesh: Mesh) -> BetweenDispatches:
    """The programs of a run."""
    settings, ensemble = run.reward, beginning.make_ensemble(run.reward, env)

    def compiled(function: Any) -> Any:
        function = precision.traced_at(precision.resolved(run))(function)
        return jax.jit(function, out_shardings=devices.replicated(mesh))

    def propose(reward: TaughtByPeople, there: Replay, key: jax.Array) -> Proposal:
        keys = session.round_keys(key)
        candidates = session.shown(run, there, keys.show)
        return questions.proposed(settings, ensemble, reward.taught, candidates, keys.pick)

    def place(
        reward: TaughtByPeople, proposal: Proposal, step: jax.Array, labels: jax.Array
    ) -> tuple[TaughtByPeople, jax.Array]:
        budget, asked = settings.questions.budget, reward.taught.asked
        number = jnp.minimum(settings.questions.per_round, budget - asked)
        taught = questions.placed(settings, reward.taught, proposal, None, number)
        number_N = jnp.arange(budget)
        new_N = (number_N >= asked) & (number_N < taught.asked)
        update_N = jnp.where(new_N, step, reward.update_N)
        return reward._replace(taught=taught, update_N=update_N), labels + new_N.sum()

    def learn(
        reward: TaughtByPeople, there: Replay, told: Told, key: jax.Array
    ) -> tuple[TaughtByPeople, jax.Array]:
        keys = session.round_keys(key)
        answers = asking.with_told(reward.taught.answers, told)
        candidates = session.shown(run, there, keys.show)
        taught, numbers = session.refitted(
            run, ensemble, reward.taught._replace(answers=answers), candidates, keys.fit
        )
        predict = partial(session.predicted, ensemble, taught)
        reward = reward._replace(
            taught=taught,
            told_N=reward.told_N | told.new_N[begun_with(settings, taught) :],
            numbers={name: numbers[name] for name in KEPT},
        )
        return reward, replay.relabelled(there, predict, there.written)

    return BetweenDispatches(*map(compiled, (propose, place, learn)))


class AskingReplay:
    """What a run asks about its replay; see `asking.AskingRun`."""

    def __init__(self, run: SacRun, programs: BetweenDispatches):
        self._run, self._settings, self._programs = run, run.reward.questions, programs
        self._proposal: tuple[int, Proposal] | None = None
        """The newest round, and the update that it comes before."""

    def count(self, state: State) -> int:
        asked = int(state.sampler.reward.taught.asked)
        due = min(self._settings.per_round, self._settings.budget - asked)
        return asked + due * self._due(state)

    def awaited(self, state: State) -> int:
        """Without `labeller.wait` the first round, if there is nothing to learn from before it."""
        count, reward = self.count(state), self._run.reward
        if self._run.labeller.wait:
            return count
        knows = reward.path is not None or reward.answers is not None
        return 0 if knows else min(count, self._settings.per_round)

    def asked(self, state: State) -> AskedSegments:
        taught = jax.device_get(state.sampler.reward.taught)
        prior, steps = begun_with(self._run.reward, taught), self._run.reward.segment_length
        before, number = int(taught.asked), self.count(state)
        new: Any = self._round(state).pairs if number > before else None
        both = lambda name: (
            getattr(taught.answers, name)[prior : prior + before, :, :steps],
            *(() if new is None else [getattr(new, name)[: number - before]]),
        )
        links = jax.eval_shape(lambda steps: steps.pose, state.sampler.replay.steps).shape[3:]
        nothing = np.zeros((0, 2, steps + 1, *links), np.float32)
        return AskedSegments(
            obs=np.concatenate(both('obs')),
            action=np.concatenate(both('action')),
            mask=np.concatenate(both('mask')),
            pose=nothing if new is None else np.asarray(new.pose[: number - before]),
            update=int(state.step),
        )

    def learn(self, state: State, answers: Sequence[Answer]) -> State:
        """As of `AskingRun`; before the first update it fits what the run began with."""
        there: Experience = state.sampler
        key = update.update_keys(state).ask
        reward, labels = there.reward, state.labels
        if self._due(state):
            reward, labels = self._programs.place(reward, self._round(state), state.step, labels)
        known_N = np.asarray(reward.told_N)
        new = [answer for answer in answers if not known_N[answer.number]]
        prior = begun_with(self._run.reward, reward.taught)
        fitted = np.isfinite(reward.numbers['fit_passes'])
        if new or (prior and int(state.step) == 0 and not fitted):
            told = asking.in_places(new, prior, len(reward.taught.margin_N))
            reward, rewards = self._programs.learn(reward, there.replay, told, key)
            there = there._replace(replay=replay.with_rewards(there.replay, rewards))
        return state._replace(sampler=there._replace(reward=reward), labels=labels)

    def _due(self, state: State) -> bool:
        """Whether a round comes before the state's next update: one at a time, and each once."""
        reward, step = state.sampler.reward, int(state.step)
        asked, update_N, told_N = jax.device_get(
            (reward.taught.asked, reward.update_N, reward.told_N)
        )
        return bool(
            session.on_time(self._run, step)
            and step < self._run.updates
            and asked < self._settings.budget
            and update_N.max(initial=0) < step
            and told_N[:asked].all()
        )

    def _round(self, state: State) -> Proposal:
        """The round that is due, which is proposed once."""
        step = int(state.step)
        if self._proposal is None or self._proposal[0] != step:
            key = update.update_keys(state).ask
            there: Experience = state.sampler
            self._proposal = step, self._programs.propose(there.reward, there.replay, key)
        return self._proposal[1]


def open_exchange(run: SacRun, env: Env, mesh: Mesh, run_dir: Path) -> HostExchange:
    """As of `asking.open_exchange`."""
    asker = AskingReplay(run, between_dispatches(env, run, mesh))
    return asking.open_exchange(run, env, asker, run_dir)
