"""Control as a workload of `sail_jax.core.update`."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from brax.envs.base import Env
from brax.training.acme import running_statistics
from brax.training.agents.ppo.networks import PPONetworks
from jax.sharding import Mesh, PartitionSpec

from sail_jax.control import judgement, render, rollout
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun, SegmentTeacher
from sail_jax.control.judgement import SegmentReward
from sail_jax.control.lanes import World
from sail_jax.control.reward import rounds
from sail_jax.control.reward.state import with_reward
from sail_jax.control.rollout import Contexts, Segments
from sail_jax.core import labellers, objective, pair_losses
from sail_jax.core.divergence import Gaussian, gaussian_kl
from sail_jax.core.keys import row_keys, split_rows
from sail_jax.core.schedule import step_size
from sail_jax.core.types import (
    Batch,
    Compared,
    DrawSample,
    Metrics,
    Policies,
    Preferences,
    Route,
    Sampled,
    Workload,
    no_auxiliary_loss,
)


class ControlInputs(NamedTuple):
    """What `compare` and the value's loss need of a batch, [B, L, T, ...]."""

    obs: Any
    raw_action: jax.Array
    value_target: jax.Array | None
    mask: jax.Array


BY_LEARNED_REWARD = SegmentTeacher(rationality=1.0, soft=True)
"""Bradley-Terry's probability, as the reward was fitted."""


def make(
    env: Env,
    networks: PPONetworks,
    run: ControlRun,
    mesh: Mesh,
    segment_reward: SegmentReward | None = None,
) -> Workload:
    """Control's functions.

    Args:
      env: bare environment with Brax's interface.
      mesh: rows are sampled on its `data` axis, each device its own.
      segment_reward: replaces the environment's reward as what the labeller goes by.

    Raises:
      UserError: `segment_reward` returns something of a wrong shape.
    """
    if segment_reward is not None:
        judgement.check_segment_reward(segment_reward, env, run)
    world, labeller = World(env, networks, run.env.episode_length), run.labeller
    learning = rounds.make(world, run, mesh, segment_reward) if run.learns_reward else None

    def init(key: jax.Array) -> Any:
        B, T = run.rollout.contexts, run.rollout.segment_length
        contexts = rollout.init_contexts(env, row_keys(key, B), run.env.episode_length, T)
        if learning is None:
            return contexts
        # The number after those of the rows.
        return with_reward(contexts, *learning.init(jax.random.fold_in(key, B)))

    def predict_reference(policies: Policies, inputs: ControlInputs) -> Gaussian:
        return control_policy.actions(networks, policies.reference, inputs.obs)

    def compare(policies: Policies, reference: Gaussian, inputs: ControlInputs) -> Compared:
        policy = control_policy.actions(networks, policies.policy, inputs.obs)
        return Compared(
            logp=control_policy.log_prob(policy, inputs.raw_action),
            reference_logp=control_policy.log_prob(reference, inputs.raw_action),
            ref_to_policy=gaussian_kl(reference, policy),
            policy_to_ref=gaussian_kl(policy, reference),
        )

    learned = run.value.terminal == 'learned'
    return Workload(
        sample=make_sample(world, run, mesh, segment_reward, learning),
        predict_reference=predict_reference,
        compare=compare,
        group_size=run.rollout.group_size,
        init=init,
        auxiliary_loss=partial(value_loss, networks, run) if learned else no_auxiliary_loss,
        refresh_updates=run.refresh_updates,
        # Of labellers that others wrote it is not known.
        abstains=labeller.skip > 0
        or labeller.max_labels is not None
        or labeller.kind != 'teacher'
        or labeller.by_people,
        bounded='policy',
        mesh=mesh,
        step_size=step_size(run.optimizer, run.updates),
    )


# lines: what becomes of an update's batch, in its order
def make_sample(
    world: World[PPONetworks],
    run: ControlRun,
    mesh: Mesh,
    segment_reward: SegmentReward | None,
    learning: rounds.Learning | None,
) -> DrawSample:
    """`Workload.sample`: segments from the contexts, and their labels.

    Args:
      learning: where the labels are those of a reward that is learned.
    """
    judge, judge_reward = run, segment_reward
    if learning is not None:
        judge, judge_reward = run.model_copy(update={'labeller': BY_LEARNED_REWARD}), None
    B, K, rows = run.rollout.contexts, run.rollout.group_size, PartitionSpec('data')
    draw_rows = jax.shard_map(
        partial(in_parts, partial(sample_rows, world, run), run.rollout.contexts_at_once),
        mesh=mesh,
        in_specs=(PartitionSpec(), rows, rows),
        out_specs=(rows, rows, rows),
        check_vma=False,
    )

    def sample(policies: Policies, sampler: Any, key: jax.Array, labels: jax.Array) -> Sampled:
        policy = policies.policy
        row_key, label_key = jax.random.split(key)
        contexts = sampler if learning is None else sampler.contexts
        segments, route, contexts = draw_rows(policies, contexts, row_keys(row_key, B))
        metrics, after = _of_segments(segments, K), contexts
        if learning is not None:
            before = sampler.reward, getattr(sampler, 'asked', None)
            rewarded = learning.learn(*before, segments, jax.random.fold_in(label_key, B))
            segments = rewarded.segments
            after = with_reward(contexts, rewarded.reward, rewarded.asked)
            metrics |= rewarded.metrics
        judged = judgement.judged(world.networks, judge, judge_reward, policy, segments)
        preferences = labellers.label(row_keys(label_key, B), judged.returns, judge.labeller)
        preferences, asked = labellers.within_budget(
            _of_sound(run, preferences, judged.returns),
            ~route.policy_label_B,
            labels,
            judge.labeller.max_labels,
        )
        if learning is not None:
            asked = after.reward.asked - sampler.reward.asked
        if run.labeller.by_people:  # A reward that nobody has told anything labels nothing.
            told = after.reward.answers.weight.any() | (run.reward.path is not None)
            weight = preferences.weight_BxKxK * told
            preferences = preferences._replace(weight_BxKxK=weight)
        return Sampled(
            batch=_batch(segments, route, judged.value_target, preferences),
            sampler=after,
            statistics=running_statistics.update(
                policy.statistics, segments.obs, weights=segments.mask
            ),
            labels_asked=asked,
            metrics=metrics,
        )

    return sample


def _of_sound(run: ControlRun, preferences: Preferences, returns: labellers.Returns) -> Preferences:
    """What broken segments leave of the labels; with the returns, where the loss is of them."""
    preferences = labellers.broken_loses(preferences, ~returns.counted_BxK)
    # Losses that nobody has given are refused by who trains.
    pair_loss = pair_losses.PAIR_LOSSES.get(run.objective.loss)
    if pair_losses.needs_rewards(pair_loss):
        return judgement.with_returns(preferences, returns)
    return preferences


def _batch(
    segments: Segments, route: Route, value_target: jax.Array | None, labels: Preferences
) -> Batch:
    return Batch(
        inputs=ControlInputs(
            obs=segments.obs,
            raw_action=segments.raw_action,
            value_target=value_target,
            mask=segments.mask,
        ),
        behaviour_logp_BxLxT=segments.logp,
        mask_BxLxT=segments.mask,
        route=route,
        labels=labels,
    )


def sample_rows(
    world: World, run: ControlRun, policies: Policies, contexts: Contexts, key_B: jax.Array
) -> tuple[Segments, Route, Contexts]:
    """Segments of rows, which family members they belong to, and where their rows go on."""
    K, T, mixture = run.rollout.group_size, run.rollout.segment_length, run.objective.mixture
    lanes = K + run.extra_lanes
    route_B, act_B, next_B = split_rows(key_B, 3)
    route = objective.route(route_B, mixture.ddp, mixture.dpp, mixture.dpr)
    by_reference_BxL = None
    if run.extra_lanes > 0 or mixture.dpr + mixture.dpp < 1:
        by_reference_BxL = ~route.on_policy_B[:, None] | (jnp.arange(lanes) >= K)
    actor = rollout.make_actor(world.networks, policies, by_reference_BxL)
    segments, states = rollout.segments(
        world,
        actor,
        contexts,
        act_B,
        lanes=lanes,
        segment_length=T,
        pose=render.pose if run.labeller.by_people else None,
    )
    states = jax.tree.map(lambda x: x[:, :K], states)
    ended_BxK = segments.ended[:, :K]
    return (
        segments,
        route,
        rollout.next_contexts(world.env, contexts, states, ended_BxK, T, next_B),
    )


def _of_segments(segments: Segments, K: int) -> Metrics:
    return {
        'segment_return': segments.reward[:, :K].sum(-1).mean(),
        'reward_per_step': segments.reward.sum() / segments.mask.sum(),
        'ended': segments.terminated.mean(),
        'live': segments.mask.mean(),
        'not_finite': segments.not_finite.sum(),
    }


def value_loss(
    networks: PPONetworks,
    run: ControlRun,
    policies: Policies,
    inputs: ControlInputs,
    steps: jax.Array,
) -> tuple[jax.Array, dict[str, Any]]:
    """`Workload.auxiliary_loss`: half the mean squared error, in units of the average reward."""
    assert inputs.value_target is not None
    error = judgement.value(networks, run, policies.policy, inputs.obs) - inputs.value_target
    error = error * (1 - run.value.discount)
    loss = 0.5 * (error**2 * inputs.mask).sum() / jnp.maximum(steps, 1)
    return loss, {'value_loss': loss}


def in_parts(f: Callable[..., Any], size: int | None, shared: Any, *rows: Any) -> Any:
    """`f(shared, *rows)` on `size` rows after `size` rows, which divides them; None takes all."""
    if size is None:
        return f(shared, *rows)
    cut = lambda x: x.reshape(len(x) // size, size, *x.shape[1:])
    join = lambda x: x.reshape(len(x) * size, *x.shape[2:])
    parts = jax.lax.map(lambda part: f(shared, *part), jax.tree.map(cut, rows))
    return jax.tree.map(join, parts)
