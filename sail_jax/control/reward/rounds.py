"""Rounds of questions within a run: pairs are chosen, the teacher answers, the ensemble is fitted.

What the teacher goes by, the true reward, is read here alone: of the pairs that a round asks about.

Axes: B contexts, K segments from each, C candidates, Q questions of a round, N of the run.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sail_jax.control import judgement, render
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun
from sail_jax.control.judgement import SegmentReward
from sail_jax.control.lanes import World
from sail_jax.control.reward import answers, questions, state, weights
from sail_jax.control.reward import ensemble as reward_ensemble
from sail_jax.control.reward.answers import Widths
from sail_jax.control.reward.ensemble import Comparisons, Ensemble, margins
from sail_jax.control.reward.state import AskedPeople, LearnedReward
from sail_jax.control.rollout import Segments
from sail_jax.core import bradley_terry, labellers
from sail_jax.core.keys import row_keys
from sail_jax.core.types import Metrics
from sail_jax.errors import UserError
from sail_jax.training import devices


class Shown(NamedTuple):
    """Segments as a round finds them, [B, K, T, ...]; or pairs of them, [C, 2, T, ...]."""

    obs: Any
    action: jax.Array
    mask: jax.Array
    true_reward: jax.Array
    """What the teacher goes by."""
    not_finite: jax.Array
    """[B, K]"""
    pose: jax.Array | None = None
    """What people go by, as of `Segments`."""


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
    env, K, settings = world.env, run.rollout.group_size, run.reward
    obs_shape = control_policy.observation_shape(env)
    seen = control_policy.observed(obs_shape)
    if len(seen) != 1:
        raise UserError(
            f'labeller.source: reward: observations of shape {seen}; a learned reward needs vectors'
        )
    widths = Widths(obs=seen[0], action=env.action_size)
    ensemble = reward_ensemble.make(settings, obs_shape, env.action_size)
    start = None
    if settings.path is not None:
        abstract = jax.eval_shape(ensemble.init, jax.random.key(0)).params
        start = weights.load(settings.path, abstract, run.env.subject)
    prior = state.nothing(*widths)
    if settings.answers is not None:
        prior = answers.read(settings.answers, widths)
    ask = make_ask(run, ensemble, mesh, prior)
    postprocess = world.networks.parametric_action_distribution.postprocess

    def init(key: jax.Array) -> tuple[LearnedReward, AskedPeople | None]:
        new = ensemble.init(key)
        if start is not None:
            new = new._replace(params=jax.tree.map(jnp.asarray, start))
        T = run.rollout.segment_length
        reward = state.begun(new, prior, settings.questions.budget, T)
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
        numbers = metrics(reward, reward_MxBxLxT[:, :, :K], shown)
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
    start = jax.eval_shape(env.reset, jax.random.key_data(jax.random.key(0)))
    links = jax.eval_shape(render.pose, start).shape
    Q, T = run.reward.questions.per_round, run.rollout.segment_length
    pose = jnp.zeros((Q, 2, T + 1, *links))
    return AskedPeople(pose_Qx2xTxLx7=pose, waiting=jnp.zeros((), jnp.int32))


# lines: a round, and when there is one
def make_ask(
    run: ControlRun, ensemble: Ensemble, mesh: Mesh, prior: Comparisons
) -> Callable[
    [LearnedReward, AskedPeople | None, Shown, jax.Array], tuple[LearnedReward, AskedPeople | None]
]:
    """The function that an update begins with: a round where one is due, else nothing.

    A teacher answers at once, and the ensemble is fitted; people answer before another dispatch,
    see `people.AskingUpdates`.

    Args:
      prior: answers that there are before the first update, which fits them.
    """
    settings, P = run.reward.questions, len(prior.weight)
    N, told = P + settings.budget, P > 0 or run.reward.path is not None

    def asking(
        reward: LearnedReward,
        asked: AskedPeople | None,
        shown: Shown,
        key: jax.Array,
        number: jax.Array,
    ) -> tuple[LearnedReward, AskedPeople | None]:
        """The questions of a round beside the earlier ones, with a teacher's answers."""
        draw_key, pick_key, answer_key = jax.random.split(key, 3)
        candidates = _candidates(shown, draw_key, settings.candidates, mesh)
        margin_MxC = margins(ensemble, reward.fitted.params, unanswered(candidates))
        first = (reward.asked == 0) & (not told)
        chosen_Q = questions.pick(settings, pick_key, margin_MxC, first)
        chosen = jax.tree.map(lambda x: x[chosen_Q], candidates)
        new = unanswered(chosen)
        if asked is None:
            prob, weight = teacher(run, answer_key, chosen)
            new = new._replace(prob=prob, weight=weight)
        else:
            asked = AskedPeople(pose_Qx2xTxLx7=chosen.pose, waiting=asked.waiting + number)
        number_Q = jnp.arange(len(chosen_Q))
        # Those beyond the budget have no place.
        place_Q = jnp.where(number_Q < number, P + reward.asked + number_Q, N)
        put = partial(_put, place_Q)
        reward = reward._replace(
            answers=jax.tree.map(put, reward.answers, new),
            margin_N=put(reward.margin_N, margin_MxC.mean(0)[chosen_Q]),
            update_N=put(reward.update_N, jnp.full(len(chosen_Q), reward.updates + 1)),
            asked=reward.asked + number,
        )
        return reward, asked

    def ask(
        reward: LearnedReward, asked: AskedPeople | None, shown: Shown, key: jax.Array
    ) -> tuple[LearnedReward, AskedPeople | None]:
        number = questions.due(settings, reward.updates, reward.asked, run.env_steps_per_update)
        ask_key, fit_key = jax.random.split(key)
        if asked is None:
            due = (number > 0) | ((reward.updates == 0) & (P > 0))
            reward = reward._replace(passes=jnp.zeros_like(reward.passes))
        else:
            number = jnp.where(asked.waiting == 0, number, 0)
            due = number > 0

        def once(now: Any) -> Any:
            _, reward, asked = now
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


def unanswered(pairs: Shown) -> Comparisons:
    """Pairs of which nothing is said yet."""
    count = len(pairs.mask)
    return Comparisons(
        obs=pairs.obs,
        action=pairs.action,
        mask=pairs.mask,
        prob=jnp.zeros(count),
        weight=jnp.zeros(count),
    )


def _put(place_Q: jax.Array, places: jax.Array, new: jax.Array) -> jax.Array:
    """Puts answers in their places, whose segments may be longer, those of a file for example."""
    sizes = (len(new), *places.shape[1:])
    new = jnp.pad(new, [(0, size - now) for size, now in zip(sizes, new.shape, strict=True)])
    return places.at[place_Q].set(new, mode='drop')


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
    margin_N, prob_N = reward.margin_N, reward.answers.prob
    own_N = reward.answers.weight * (reward.update_N > 0)
    loss_N = bradley_terry.cross_entropy(margin_N, prob_N)
    known = bradley_terry.calibration(margin_N, prob_N, own_N)
    predicted_BxK = reward_MxBxKxT.mean(0).sum(-1)
    return {
        'answer_accuracy': bradley_terry.accuracy(margin_N, prob_N, own_N),
        'answer_loss': (own_N * loss_N).sum() / jnp.maximum(own_N.sum(), 1),
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
