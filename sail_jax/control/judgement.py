"""What a labeller makes of segments: rewards, returns and what comes after them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from brax.envs.base import Env
from brax.training.agents.ppo.networks import PPONetworks

from sail_jax.control import contract
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun
from sail_jax.control.rollout import Segments
from sail_jax.core import labellers
from sail_jax.core.trial import tried_on_one
from sail_jax.core.types import Policy, Preferences
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


class Judgement(NamedTuple):
    """What is compared, and what the value is fitted on."""

    returns: labellers.Returns
    """Of the policy's segments, [B, K]."""
    value_target: jax.Array | None
    """Returns from each step on, [B, L, T]; None where no value is learned."""


def judged(
    networks: PPONetworks,
    run: ControlRun,
    segment_reward: SegmentReward | None,
    policy: Policy,
    segments: Segments,
) -> Judgement:
    """The segments as the labeller sees them.

    Args:
      policy: the value in it is of what comes after a segment, where one is learned.
    """
    K = run.rollout.group_size
    reward, target = judged_rewards(networks, segments, segment_reward), None
    if run.value.terminal == 'learned':
        last = value(networks, run, policy, segments.last_obs) * ~segments.terminated
        target = returns_to_go(reward, segments.mask, last, run.value.discount)
        true_BxK = perceived_BxK = target[:, :K, 0]
    else:
        true_BxK = reward[:, :K].sum(-1)
        perceived_BxK = perceived(reward[:, :K], segments.mask[:, :K], run.labeller.discount)
    returns = labellers.Returns(
        true_BxK=true_BxK,
        perceived_BxK=perceived_BxK,
        counted_BxK=~segments.not_finite[:, :K],
    )
    return Judgement(returns=returns, value_target=target)


def with_returns(preferences: Preferences, returns: labellers.Returns) -> Preferences:
    """With what the labeller goes by, for a loss that is of it. Where the simulator broke
    there is no return, and its pairs have no label."""
    counted_BxK = returns.counted_BxK
    both_BxKxK = counted_BxK[:, :, None] & counted_BxK[:, None, :]
    return preferences._replace(
        weight_BxKxK=preferences.weight_BxKxK * both_BxKxK,
        reward_BxK=jnp.where(counted_BxK, returns.perceived_BxK, 0),
    )


def value(networks: PPONetworks, run: ControlRun, policy: Policy, obs: Any) -> jax.Array:
    """The learned discounted return from observations on, [...]."""
    # The network gives the discounted average reward, so its output is of the reward's size.
    average = networks.value_network.apply(policy.statistics, policy.params['value'], obs)
    return average / (1 - run.value.discount)


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
        segment = Segment(obs=obs, action=action, reward=reward, mask=mask)
        judged = jnp.asarray(segment_reward(segment), jnp.float32)
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
    steps = lambda x: jax.ShapeDtypeStruct((T, *x.shape), x.dtype)
    number: Any = jax.ShapeDtypeStruct((), jnp.float32)
    action: Any = jax.ShapeDtypeStruct((env.action_size,), jnp.float32)
    obs = control_policy.abstract_state(env).obs
    segment = jax.tree.map(steps, Segment(obs=obs, action=action, reward=number, mask=number))
    judged = tried_on_one('segment_reward', segment_reward, segment)
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
