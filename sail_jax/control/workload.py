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

from sail_jax.control import contract, rollout
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun
from sail_jax.control.rollout import Contexts, Segments
from sail_jax.core import labellers, objective
from sail_jax.core.divergence import Gaussian, gaussian_kl
from sail_jax.core.keys import row_keys, split_rows
from sail_jax.core.types import (
    Batch,
    Compared,
    Policies,
    Policy,
    Route,
    Sampled,
    Workload,
    no_auxiliary_loss,
)
from sail_jax.errors import UserError


class Segment(NamedTuple):
    """One segment of T env steps as a labeller sees it."""

    obs: Any
    """[T, ...]"""
    action: jax.Array
    """[T, A], what the environment was given."""
    reward: jax.Array
    """[T], the environment's."""
    mask: jax.Array
    """[T], 1 for steps that happened."""


SegmentReward = Callable[[Segment], jax.Array]
"""A user's judgement: reward of each step [T], or one number for the whole segment."""


class Inputs(NamedTuple):
    """What `compare` and the value's loss need of a batch, [B, L, T, ...]."""

    obs: Any
    raw_action: jax.Array
    value_target: jax.Array | None
    mask: jax.Array


def judged_rewards(
    networks: PPONetworks, segments: Segments, segment_reward: SegmentReward | None
) -> jax.Array:
    """The labeller's reward of each step, [B, L, T].

    One number for a whole segment counts at its first step.
    """
    if segment_reward is None:
        return segments.reward
    T = segments.mask.shape[-1]

    def judge(obs, raw_action, reward, mask):
        action = networks.parametric_action_distribution.postprocess(raw_action)
        judged = jnp.asarray(segment_reward(Segment(obs, action, reward, mask)), jnp.float32)
        if jnp.shape(judged) == ():
            return jnp.zeros(T).at[0].set(judged)
        return jnp.where(mask > 0, judged, 0)

    return jax.vmap(jax.vmap(judge))(
        segments.obs, segments.raw_action, segments.reward, segments.mask
    )


def check_segment_reward(segment_reward: SegmentReward, env: Env, run: ControlRun) -> None:
    """Tries a user's judgement on the shapes of a segment, before anything runs.

    Raises:
      UserError: it is no function; it raises; it returns neither [T] nor a number, or a number
        where the reward of each step is needed.
    """
    if not callable(segment_reward):
        raise UserError(f'segment_reward: {segment_reward!r:.80}; expected a function of a Segment')
    T = run.rollout.segment_length
    steps = lambda x: jax.ShapeDtypeStruct((T, *x.shape), x.dtype)  # noqa: E731
    number: Any = jax.ShapeDtypeStruct((), jnp.float32)
    action: Any = jax.ShapeDtypeStruct((env.action_size,), jnp.float32)
    obs = jax.eval_shape(env.reset, jax.random.key_data(jax.random.key(0))).obs
    segment = jax.tree.map(steps, Segment(obs, action, number, number))
    judged = contract.tried('segment_reward', segment_reward, segment)
    shape = getattr(judged, 'shape', None)
    if shape not in ((), (T,)):
        what = type(judged).__name__ if shape is None else f'shape {shape}'
        raise UserError(f'segment_reward: returned {what}; expected shape () or ({T},)')
    if not contract.is_real(judged):
        raise UserError(f'segment_reward: returned {judged.dtype}; expected real numbers')
    if shape == () and (run.value.terminal == 'learned' or run.labeller.discount < 1):
        raise UserError(
            'segment_reward: returned one number; value.terminal: learned and labeller.discount '
            f'below 1 need the reward of each step, shape ({T},)'
        )


def perceived(reward_BxKxT: jax.Array, mask_BxKxT: jax.Array, discount: float) -> jax.Array:
    """The return that a labeller goes by, [B, K]; below a discount of 1 a myopic teacher's."""
    if discount == 1:
        return reward_BxKxT.sum(-1)
    return (reward_BxKxT * labellers.myopic_weights(mask_BxKxT, discount)).sum(-1)


def returns_to_go(
    reward: jax.Array, mask: jax.Array, last: jax.Array, discount: float
) -> jax.Array:
    """`sum_{t' >= t} discount^(t' - t) r_t' + discount^(n - t) last`, [..., T].

    The sum is over the n steps that happened (`mask`, a prefix); `last` is worth what comes after
    them.
    """

    def back(value, step):
        reward, happened = step
        value = jnp.where(happened > 0, reward + discount * value, value)
        return value, value

    steps = jnp.moveaxis(reward, -1, 0), jnp.moveaxis(mask, -1, 0)
    _, values = jax.lax.scan(back, last, steps, reverse=True)
    return jnp.moveaxis(values, 0, -1)


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
        check_segment_reward(segment_reward, env, run)
    B, K, T = run.rollout.contexts, run.rollout.group_size, run.rollout.segment_length
    episode_length, lanes = run.env.episode_length, K + run.extra_lanes
    mixture = run.objective.mixture
    reference_acts = run.extra_lanes > 0 or mixture.dpr + mixture.dpp < 1
    learned = run.value.terminal == 'learned'
    discount = run.value.discount if learned else 1.0
    rows = PartitionSpec('data')

    def init(key: jax.Array) -> Contexts:
        return rollout.init_contexts(env, row_keys(key, B), episode_length, T)

    def sample_rows(
        policies: Policies, contexts: Contexts, key_B: jax.Array
    ) -> tuple[Segments, Route, Contexts]:
        route_B, act_B, next_B = split_rows(key_B, 3)
        route = objective.route(route_B, mixture.ddp, mixture.dpp, mixture.dpr)
        by_reference = None
        if reference_acts:
            by_reference = ~route.on_policy_B[:, None] | (jnp.arange(lanes) >= K)
        segments, states = rollout.segments(
            env,
            networks,
            policies,
            contexts,
            by_reference,
            act_B,
            lanes=lanes,
            segment_length=T,
            episode_length=episode_length,
        )
        states = jax.tree.map(lambda x: x[:, :K], states)
        contexts = rollout.next_contexts(env, contexts, states, segments.ended[:, :K], T, next_B)
        return segments, route, contexts

    def sample(
        policies: Policies, contexts: Contexts, key: jax.Array, labels: jax.Array
    ) -> Sampled:
        row_key, label_key = jax.random.split(key)
        segments, route, contexts = jax.shard_map(
            partial(in_parts, sample_rows, run.rollout.contexts_at_once),
            mesh=mesh,
            in_specs=(PartitionSpec(), rows, rows),
            out_specs=(rows, rows, rows),
            check_vma=False,
        )(policies, contexts, row_keys(row_key, B))

        reward = judged_rewards(networks, segments, segment_reward)
        target, broken_BxK = None, segments.not_finite[:, :K]
        if learned:
            last = value(policies.policy, segments.last_obs) * ~segments.terminated
            target = returns_to_go(reward, segments.mask, last, discount)
            true_BxK = perceived_BxK = target[:, :K, 0]
        else:
            true_BxK = reward[:, :K].sum(-1)
            perceived_BxK = perceived(reward[:, :K], segments.mask[:, :K], run.labeller.discount)
        returns = labellers.Returns(
            true_BxK=true_BxK, perceived_BxK=perceived_BxK, counted_BxK=~broken_BxK
        )
        preferences = labellers.label(row_keys(label_key, B), returns, run.labeller)
        preferences, asked = labellers.within_budget(
            labellers.broken_loses(preferences, broken_BxK),
            ~route.policy_label_B,
            labels,
            run.labeller.max_labels,
        )
        statistics = running_statistics.update(
            policies.policy.statistics, segments.obs, weights=segments.mask
        )
        steps = segments.mask.sum()
        return Sampled(
            batch=Batch(
                inputs=Inputs(
                    obs=segments.obs,
                    raw_action=segments.raw_action,
                    value_target=target,
                    mask=segments.mask,
                ),
                behaviour_logp_BxLxT=segments.logp,
                mask_BxLxT=segments.mask,
                route=route,
                labels=preferences,
            ),
            sampler=contexts,
            statistics=statistics,
            labels_asked=asked,
            metrics={
                'segment_return': segments.reward[:, :K].sum(-1).mean(),
                'reward_per_step': segments.reward.sum() / steps,
                'ended': segments.terminated.mean(),
                'live': segments.mask.mean(),
                'not_finite': segments.not_finite.sum(),
            },
        )

    def value(policy: Policy, obs: Any) -> jax.Array:
        # The network gives the discounted average reward, so its output is of the reward's size.
        average = networks.value_network.apply(policy.statistics, policy.params['value'], obs)
        return average / (1 - discount)

    def predict_reference(policies: Policies, inputs: Inputs) -> Gaussian:
        return control_policy.actions(networks, policies.reference, inputs.obs)

    def compare(policies: Policies, theirs: Gaussian, inputs: Inputs) -> Compared:
        ours = control_policy.actions(networks, policies.policy, inputs.obs)
        return Compared(
            logp=control_policy.log_prob(ours, inputs.raw_action),
            reference_logp=control_policy.log_prob(theirs, inputs.raw_action),
            ref_to_policy=gaussian_kl(theirs, ours),
            policy_to_ref=gaussian_kl(ours, theirs),
        )

    def value_loss(
        policies: Policies, inputs: Inputs, steps: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        assert inputs.value_target is not None
        error = (value(policies.policy, inputs.obs) - inputs.value_target) * (1 - discount)
        loss = 0.5 * (error**2 * inputs.mask).sum() / jnp.maximum(steps, 1)
        return loss, {'value_loss': loss}

    labeller = run.labeller
    return Workload(
        sample=sample,
        predict_reference=predict_reference,
        compare=compare,
        group_size=K,
        init=init,
        auxiliary_loss=value_loss if learned else no_auxiliary_loss,
        refresh_updates=run.refresh_updates,
        # Of labellers that others wrote it is not known.
        abstains=labeller.skip > 0 or labeller.max_labels is not None or labeller.kind != 'teacher',
        bounded='policy',
        mesh=mesh,
    )


def in_parts(f: Callable[..., Any], size: int | None, shared: Any, *rows: Any) -> Any:
    """`f(shared, *rows)` on `size` rows after `size` rows, which divides them; None takes all."""
    if size is None:
        return f(shared, *rows)
    cut = lambda x: x.reshape(len(x) // size, size, *x.shape[1:])  # noqa: E731
    join = lambda x: x.reshape(len(x) * size, *x.shape[2:])  # noqa: E731
    found = jax.lax.map(lambda part: f(shared, *part), jax.tree.map(cut, rows))
    return jax.tree.map(join, found)
