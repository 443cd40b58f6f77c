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

from sail_jax.control import judgement
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun
from sail_jax.control.judgement import SegmentReward
from sail_jax.control.lanes import World
from sail_jax.control.reward import ensemble as reward_ensemble
from sail_jax.control.reward import questions
from sail_jax.control.reward.ensemble import Comparisons, Ensemble, Fitted, margins, observed
from sail_jax.control.rollout import Contexts, Segments
from sail_jax.core import bradley_terry, labellers
from sail_jax.core.keys import row_keys
from sail_jax.core.types import Metrics
from sail_jax.training import devices


class LearnedReward(NamedTuple):
    """The ensemble, and all that it has been told."""

    fitted: Fitted
    answers: Comparisons
    """Of all questions of the run, N places; those to come are empty."""
    margin_N: jax.Array
    """By how much the first's return was larger in the ensemble's eyes when the pair was asked
    about, before it learned the answer."""
    update_N: jax.Array
    """The update that asked, from 1 on; 0 of an empty place."""
    asked: jax.Array
    """Questions so far, int32."""
    updates: jax.Array
    """So far, int32."""
    accuracy: jax.Array
    """`ensemble.Fit.accuracy` of the newest fit."""
    passes: jax.Array
    """Of the newest update's fit."""


class ContextsAndReward(NamedTuple):
    """What the next batch of a run with a learned reward depends on, besides its policies."""

    contexts: Contexts
    reward: LearnedReward


class Shown(NamedTuple):
    """Segments as a round finds them, [B, K, T, ...]; or pairs of them, [C, 2, T, ...]."""

    obs: Any
    action: jax.Array
    mask: jax.Array
    true_reward: jax.Array
    """What the teacher goes by."""
    not_finite: jax.Array
    """[B, K]"""


class Rewarded(NamedTuple):
    """What became of an update's segments."""

    reward: LearnedReward
    segments: Segments
    """Their rewards are the ensemble's: nothing that comes after sees the true ones."""
    metrics: Metrics


class Learning(NamedTuple):
    """The functions of a run whose reward is learned."""

    init: Callable[[jax.Array], LearnedReward]
    """`key -> LearnedReward`: an ensemble that knows nothing."""
    learn: Callable[[LearnedReward, Segments, jax.Array], Rewarded]
    """`(reward, segments, key) -> Rewarded`: asks and fits where a round is due, then rewards the
    segments."""


def make(
    world: World, run: ControlRun, mesh: Mesh, segment_reward: SegmentReward | None
) -> Learning:
    """The functions of a run; arguments as of `workload.make`."""
    env, K = world.env, run.rollout.group_size
    obs_shape = control_policy.observation_shape(env)
    ensemble = reward_ensemble.make(run.reward, obs_shape, env.action_size)
    ask = make_ask(run, ensemble, mesh)
    postprocess = world.networks.parametric_action_distribution.postprocess

    def init(key: jax.Array) -> LearnedReward:
        width = *observed(obs_shape), env.action_size
        return _nothing(ensemble.init(key), run, width)

    def learn(reward: LearnedReward, segments: Segments, key: jax.Array) -> Rewarded:
        obs, action = observed(segments.obs), postprocess(segments.raw_action)
        true_reward = judgement.judged_rewards(world.networks, segments, segment_reward)
        shown = Shown(
            obs=obs,
            action=action,
            mask=segments.mask,
            true_reward=true_reward,
            not_finite=segments.not_finite,
        )
        shown = jax.tree.map(lambda x: x[:, :K], shown)
        reward = ask(reward, shown, key)
        reward_MxBxLxT = ensemble.predict(reward.fitted.params, obs, action) * segments.mask
        return Rewarded(
            reward=reward,
            segments=segments._replace(reward=reward_MxBxLxT.mean(0)),
            metrics=metrics(reward, reward_MxBxLxT[:, :, :K], shown),
        )

    return Learning(init=init, learn=learn)


def _nothing(fitted: Fitted, run: ControlRun, width: tuple[int, int]) -> LearnedReward:
    """Before any question; `width` of observations and actions."""
    N, T = run.reward.questions.budget, run.rollout.segment_length
    number = lambda: jnp.zeros((), jnp.int32)  # The state is donated: each has its own.
    return LearnedReward(
        fitted=fitted,
        answers=Comparisons(
            obs=jnp.zeros((N, 2, T, width[0])),
            action=jnp.zeros((N, 2, T, width[1])),
            mask=jnp.zeros((N, 2, T)),
            prob=jnp.zeros(N),
            weight=jnp.zeros(N),
        ),
        margin_N=jnp.zeros(N),
        update_N=jnp.zeros(N, jnp.int32),
        asked=number(),
        updates=number(),
        accuracy=jnp.zeros(()),
        passes=number(),
    )


def make_ask(
    run: ControlRun, ensemble: Ensemble, mesh: Mesh
) -> Callable[[LearnedReward, Shown, jax.Array], LearnedReward]:
    """The function that an update begins with: a round where one is due, else nothing."""
    settings, N = run.reward.questions, run.reward.questions.budget

    def answered(
        reward: LearnedReward, shown: Shown, key: jax.Array, number: jax.Array
    ) -> LearnedReward:
        """The answers of a round beside the earlier ones."""
        draw_key, pick_key, answer_key = jax.random.split(key, 3)
        candidates = _candidates(shown, draw_key, settings.candidates, mesh)
        nothing = jnp.zeros(settings.candidates)
        pairs = Comparisons(
            obs=candidates.obs,
            action=candidates.action,
            mask=candidates.mask,
            prob=nothing,
            weight=nothing,
        )
        margin_MxC = margins(ensemble, reward.fitted.params, pairs)
        chosen_Q = questions.pick(settings, pick_key, margin_MxC, first=reward.asked == 0)
        take = lambda tree: jax.tree.map(lambda x: x[chosen_Q], tree)
        prob, weight = teacher(run, answer_key, take(candidates))
        number_Q = jnp.arange(len(chosen_Q))
        # Those beyond the budget have no place.
        place_Q = jnp.where(number_Q < number, reward.asked + number_Q, N)
        put = lambda places, new: places.at[place_Q].set(new, mode='drop')
        new = take(pairs)._replace(prob=prob, weight=weight)
        return reward._replace(
            answers=jax.tree.map(put, reward.answers, new),
            margin_N=put(reward.margin_N, margin_MxC.mean(0)[chosen_Q]),
            update_N=put(reward.update_N, reward.updates + 1),
            asked=reward.asked + number,
        )

    def ask(reward: LearnedReward, shown: Shown, key: jax.Array) -> LearnedReward:
        number = questions.due(settings, reward.updates, reward.asked, run.env_steps_per_update)
        ask_key, fit_key = jax.random.split(key)

        def once(now: tuple[jax.Array, LearnedReward]) -> tuple[jax.Array, LearnedReward]:
            after = answered(now[1], shown, ask_key, number)
            fit = ensemble.fit(after.fitted, after.answers, fit_key)
            after = after._replace(fitted=fit.fitted, accuracy=fit.accuracy, passes=fit.passes)
            return jnp.zeros((), bool), after

        # A loop that goes round once or not at all: under `vmap`, as of seeds side by side, a
        # `cond` would fit in every update and throw the result away.
        start = number > 0, reward._replace(passes=jnp.zeros_like(reward.passes))
        _, reward = jax.lax.while_loop(lambda now: now[0], once, start)
        return reward._replace(updates=reward.updates + 1)

    return ask


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


def teacher(run: ControlRun, key: jax.Array, pairs: Shown) -> tuple[jax.Array, jax.Array]:
    """The scripted teacher's answers (`labeller`): `Comparisons.prob` and `weight`, [Q].

    A pair without a finite return has none.
    """
    true_Qx2 = pairs.true_reward.sum(-1)
    returns = labellers.Returns(
        true_BxK=true_Qx2,
        perceived_BxK=judgement.perceived(pairs.true_reward, pairs.mask, run.labeller.discount),
        counted_BxK=~pairs.not_finite,
    )
    said = labellers.label(row_keys(key, len(true_Qx2)), returns, run.labeller)
    said = labellers.broken_loses(said, pairs.not_finite)
    prob, weight = said.prob_BxKxK[:, 0, 1], said.weight_BxKxK[:, 0, 1]
    known = jnp.isfinite(prob)
    return jnp.where(known, prob, 0.5), weight * known


def metrics(reward: LearnedReward, reward_MxBxKxT: jax.Array, shown: Shown) -> Metrics:
    """How well the ensemble knew the answers before it had them, and what it makes of the segments
    of this update. Nothing is learned from these numbers.

    Args:
      reward_MxBxKxT: of each member, 0 where masked.
    """
    answers = reward.answers
    count = jnp.maximum(answers.weight.sum(), 1)
    loss_N = bradley_terry.cross_entropy(reward.margin_N, answers.prob)
    known = bradley_terry.calibration(reward.margin_N, answers.prob, answers.weight)
    predicted_BxK = reward_MxBxKxT.mean(0).sum(-1)
    return {
        'answer_accuracy': bradley_terry.accuracy(reward.margin_N, answers.prob, answers.weight),
        'answer_loss': (answers.weight * loss_N).sum() / count,
        **{f'answer_{name}': value for name, value in known.items()},
        'fit_accuracy': reward.accuracy,
        'fit_passes': reward.passes,
        'reward_spread': reward_MxBxKxT.std(0).sum() / jnp.maximum(shown.mask.sum(), 1),
        'reward_correlation': correlation(predicted_BxK, shown.true_reward.sum(-1)),
    }


def correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """Pearson's, over all entries; 0 where one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    size = jnp.sqrt((a**2).sum() * (b**2).sum())
    return jnp.where(size > 0, (a * b).sum() / jnp.where(size > 0, size, 1), 0)
