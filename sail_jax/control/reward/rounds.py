"""Rounds of questions within a run: pairs are chosen, the teacher answers, the ensemble is fitted.

What the teacher goes by, the true reward, is read here alone: of the pairs that a round asks about.

Axes: B contexts, K segments from each, C candidates, Q questions of a round, N of the run.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sail_jax.config import Teacher
from sail_jax.control import judgement, render
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun
from sail_jax.control.judgement import SegmentReward
from sail_jax.control.lanes import World
from sail_jax.control.reward import beginning, questions, state
from sail_jax.control.reward.ensemble import OF_ANSWERS, Ensemble
from sail_jax.control.reward.questions import Shown
from sail_jax.control.reward.state import AskedPeople, LearnedReward, begun_with
from sail_jax.control.rollout import Segments
from sail_jax.core import labellers
from sail_jax.core.keys import row_keys
from sail_jax.core.types import Metrics
from sail_jax.errors import UserError
from sail_jax.training import devices


class Rewarded(NamedTuple):
    """What became of an update's segments."""

    reward: LearnedReward
    segments: Segments
    """Their rewards are the ensemble's: nothing that comes after sees the true ones."""
    metrics: Metrics
    asked: AskedPeople | None
    """Of people; None where a teacher answers at once."""


class Learning(NamedTuple):
    """The functions of a run whose reward is learned."""

    init: Callable[[jax.Array], tuple[LearnedReward, AskedPeople | None]]
    """`key -> LearnedReward, AskedPeople`: before any question; None where a teacher answers."""
    learn: Callable[[LearnedReward, AskedPeople | None, Segments, jax.Array], Rewarded]
    """`(reward, asked, segments, key) -> Rewarded`: asks and fits where a round is due, then
    rewards the segments."""


# lines: what there is before a run, then its two functions
def make(
    world: World, run: ControlRun, mesh: Mesh, segment_reward: SegmentReward | None
) -> Learning:
    """The functions of a run; arguments as of `workload.make`.

    Raises:
      UserError: a file that the reward begins with cannot be used; observations are no vectors.
    """
    env, K = world.env, run.rollout.group_size
    seen = control_policy.observed(control_policy.observation_shape(env))
    if len(seen) != 1:
        raise UserError(
            f'labeller.source: reward: observations of shape {seen}; a learned reward needs vectors'
        )
    ensemble = beginning.make_ensemble(run.reward, env)
    untaught, ask = beginning.make(run, env, ensemble), make_ask(run, ensemble, mesh)
    postprocess = world.networks.parametric_action_distribution.postprocess

    def init(key: jax.Array) -> tuple[LearnedReward, AskedPeople | None]:
        reward = state.begun(untaught(key))
        return reward, nobody_asked(env, run) if run.labeller.by_people else None

    def learn(
        reward: LearnedReward, asked: AskedPeople | None, segments: Segments, key: jax.Array
    ) -> Rewarded:
        obs, action = control_policy.observed(segments.obs), postprocess(segments.raw_action)
        true_reward = judgement.judged_rewards(world.networks, segments, segment_reward)
        shown = Shown(
            obs=obs,
            action=action,
            mask=segments.mask,
            true_reward=true_reward,
            not_finite=segments.not_finite,
            pose=segments.pose,
        )
        shown = jax.tree.map(lambda x: x[:, :K], shown)
        reward, asked = ask(reward, asked, shown, key)
        reward_MxBxLxT = ensemble.predict(reward.fitted.params, obs, action) * segments.mask
        numbers = metrics(run, reward, reward_MxBxLxT[:, :, :K], shown)
        if asked is not None:  # The fit was before the update, which has told of it now.
            reward = reward._replace(passes=jnp.zeros_like(reward.passes))
        return Rewarded(
            reward=reward,
            segments=segments._replace(reward=reward_MxBxLxT.mean(0)),
            metrics=numbers,
            asked=asked,
        )

    return Learning(init=init, learn=learn)


def nobody_asked(env: Any, run: ControlRun) -> AskedPeople:
    """Before people are asked anything."""
    links = jax.eval_shape(render.pose, control_policy.abstract_state(env)).shape
    Q, T = run.reward.questions.per_round, run.rollout.segment_length
    pose = jnp.zeros((Q, 2, T + 1, *links))
    return AskedPeople(pose_Qx2xTxLx7=pose, waiting=jnp.zeros((), jnp.int32))


# lines: a round, and when there is one
def make_ask(
    run: ControlRun, ensemble: Ensemble, mesh: Mesh
) -> Callable[
    [LearnedReward, AskedPeople | None, Shown, jax.Array], tuple[LearnedReward, AskedPeople | None]
]:
    """The function that an update begins with: a round where one is due, else nothing.

    A teacher answers at once, and the ensemble is fitted; people answer before another dispatch,
    see `people.AskingUpdates`. Answers of a file are fitted by the first update.
    """
    settings = run.reward

    def asking(
        reward: LearnedReward,
        asked: AskedPeople | None,
        shown: Shown,
        key: jax.Array,
        number: jax.Array,
    ) -> tuple[LearnedReward, AskedPeople | None]:
        """The questions of a round beside the earlier ones, with a teacher's answers."""
        draw_key, pick_key, answer_key = jax.random.split(key, 3)
        candidates = _candidates(shown, draw_key, settings.questions.candidates, mesh)
        proposal = questions.proposed(settings, ensemble, reward, candidates, pick_key)
        said = None
        if asked is None:
            said = teacher(run.labeller, answer_key, proposal.pairs)
        else:
            pose: Any = proposal.pairs.pose
            asked = AskedPeople(pose_Qx2xTxLx7=pose, waiting=asked.waiting + number)
        after = questions.placed(settings, reward, proposal, said, number)
        number_N = jnp.arange(len(reward.margin_N)) - begun_with(settings, reward)
        new_N = (number_N >= reward.asked) & (number_N < after.asked)
        update_N = jnp.where(new_N, reward.updates + 1, reward.update_N)
        return after._replace(update_N=update_N), asked

    def ask(
        reward: LearnedReward, asked: AskedPeople | None, shown: Shown, key: jax.Array
    ) -> tuple[LearnedReward, AskedPeople | None]:
        number = questions.due(
            settings.questions, reward.updates, reward.asked, run.env_steps_per_update
        )
        ask_key, fit_key = jax.random.split(key)
        if asked is None:
            prior = begun_with(settings, reward)
            due = (number > 0) | ((reward.updates == 0) & (prior > 0))
            reward = reward._replace(passes=jnp.zeros_like(reward.passes))
        else:
            number = jnp.where(asked.waiting == 0, number, 0)
            due = number > 0

        def once(now: Any) -> Any:
            _, reward, asked = now
            if asked is None:
                reward = beginning.foretold(settings, ensemble, reward, fit_key)
            if settings.questions.budget > 0:
                reward, asked = asking(reward, asked, shown, ask_key, number)
            if asked is None:
                reward = fitted(ensemble, reward, fit_key)
            return jnp.zeros((), bool), reward, asked

        # A loop that goes round once or not at all: under `vmap`, as of seeds side by side, a
        # `cond` would fit in every update and throw the result away.
        _, reward, asked = jax.lax.while_loop(lambda now: now[0], once, (due, reward, asked))
        return reward._replace(updates=reward.updates + 1), asked

    return ask


def fitted(ensemble: Ensemble, reward: LearnedReward, key: jax.Array) -> LearnedReward:
    """After a fit on all answers so far."""
    fit = ensemble.fit(reward.fitted, reward.answers, key)
    return reward._replace(fitted=fit.fitted, accuracy=fit.accuracy, passes=fit.passes)


def _candidates(shown: Shown, key: jax.Array, count: int, mesh: Mesh) -> Shown:
    """So many pairs of segments from one state, no pair twice, in either order: [C, 2, ...]."""
    B, K = shown.not_finite.shape
    first, second = jnp.triu_indices(K, 1)
    pair_key, order_key = jax.random.split(key)
    chosen_C = jax.random.choice(pair_key, B * len(first), (count,), replace=False)
    row_C, pair_C = chosen_C // len(first), chosen_C % len(first)
    lanes_Cx2 = jnp.stack([first[pair_C], second[pair_C]], 1)
    turned_C = jax.random.bernoulli(order_key, shape=(count, 1))
    lanes_Cx2 = jnp.where(turned_C, lanes_Cx2[:, ::-1], lanes_Cx2)
    pairs = jax.tree.map(lambda x: x[row_C[:, None], lanes_Cx2], shown)
    # A round is the same work for every device, so that none of it is waited for.
    return jax.lax.with_sharding_constraint(pairs, devices.replicated(mesh))


def teacher(labeller: Teacher, key: jax.Array, pairs: Shown) -> tuple[jax.Array, jax.Array]:
    """The scripted teacher's answers (`labeller`): `Comparisons.prob` and `weight`, [Q].

    A pair without a finite return has none.
    """
    true_Qx2 = pairs.true_reward.sum(-1)
    returns = labellers.Returns(
        true_BxK=true_Qx2,
        perceived_BxK=judgement.perceived(pairs.true_reward, pairs.mask, labeller.discount),
        counted_BxK=~pairs.not_finite,
    )
    said = labellers.label(row_keys(key, len(true_Qx2)), returns, labeller)
    said = labellers.broken_loses(said, pairs.not_finite)
    prob, weight = said.prob_BxKxK[:, 0, 1], said.weight_BxKxK[:, 0, 1]
    known = jnp.isfinite(prob)
    return jnp.where(known, prob, 0.5), weight * known


ABSENT = ('fit_accuracy', *OF_ANSWERS)
"""Metrics that are NaN as long as there are no answers."""


def metrics(
    run: ControlRun, reward: LearnedReward, reward_MxBxKxT: jax.Array, shown: Shown
) -> Metrics:
    """How well the ensemble knew the answers before it had them, and what it makes of the segments
    of this update. Nothing is learned from these numbers.

    Args:
      reward_MxBxKxT: of each member, 0 where masked.
    """
    predicted_BxK = reward_MxBxKxT.mean(0).sum(-1)
    return {
        **beginning.known_before(run.reward, reward),
        'fit_accuracy': jnp.where(reward.answers.weight.any(), reward.accuracy, jnp.nan),
        'fit_passes': reward.passes,
        'reward_spread': reward_MxBxKxT.std(0).sum() / jnp.maximum(shown.mask.sum(), 1),
        'reward_correlation': correlation(predicted_BxK, shown.true_reward.sum(-1)),
    }


def correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """Pearson's, over all entries; 0 where one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    size = jnp.sqrt((a**2).sum() * (b**2).sum())
    return jnp.where(size > 0, (a * b).sum() / jnp.where(size > 0, size, 1), 0)
