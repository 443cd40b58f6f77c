"""Groups of segments that start from one simulator state, and full episodes.

Axes: B contexts, L lanes (K segments of the policy, and one more of the reference where the KL
penalty asks for it), T env steps. A lane ends at its first `done`, at the episode's limit, or where
the simulator returns something that is not finite; what follows is masked.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from brax.envs.base import Env, State

from sail_jax.control import policy as control_policy
from sail_jax.control.lanes import Lanes, World, advance, begin, grouped, sampled_action, select
from sail_jax.control.policy import ActorNetworks
from sail_jax.core.divergence import Gaussian, gaussian_kl
from sail_jax.core.keys import split_rows
from sail_jax.core.types import Policies, Policy


class Contexts(NamedTuple):
    """Simulator states that the next groups start from."""

    env_state: State
    """Leaves lead with [B]."""
    clock_B: jax.Array
    """Env steps since the reset."""


class Segments(NamedTuple):
    """What happened; leaves lead with [B, L], then T where there is one value a step."""

    obs: Any
    """Before each step, [B, L, T, ...]; after a lane's end its last one, again and again."""
    raw_action: jax.Array
    """Before the squash, [B, L, T, A]."""
    reward: jax.Array
    """Of the environment, [B, L, T]; 0 after the end."""
    mask: jax.Array
    """1 for steps that happened, float32 [B, L, T]."""
    logp: jax.Array
    """Of the raw action under who acted, [B, L, T]."""
    last_obs: Any
    """After the last step that happened, [B, L, ...]."""
    terminated: jax.Array
    """The environment said `done` (not the episode's limit), [B, L]."""
    not_finite: jax.Array
    """The simulator returned NaN or infinity, also as the first observation, [B, L]."""
    ended: jax.Array
    """For any of the three reasons, [B, L]."""
    pose: jax.Array | None = None
    """Of the links, before each step and after the last one, [B, L, T + 1, links, 7]; None where
    nobody looks at segments."""


def reset(env: Env, key_B: jax.Array) -> State:
    """New random start states. Brax takes raw keys."""
    return jax.vmap(env.reset)(jax.vmap(jax.random.key_data)(key_B))


def init_contexts(env: Env, key_B: jax.Array, episode_length: int, segment_length: int) -> Contexts:
    """Fresh states with clocks spread over the episode, so that rows do not end all at once."""
    reset_B, clock_B = split_rows(key_B, 2)
    starts = max(episode_length // segment_length, 1)
    draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, starts))
    return Contexts(reset(env, reset_B), draw(clock_B) * segment_length)


Actor = Callable[[Any], Gaussian]
"""Who acts: from observations [B, L, ...] to the normals that actions are drawn from."""


def make_actor(
    networks: ActorNetworks, policies: Policies, by_reference_BxL: jax.Array | None = None
) -> Actor:
    """The reference in the lanes that are said, the policy in the others.

    Args:
      by_reference_BxL: None where the reference acts nowhere, which saves its forward pass.
    """

    def act(obs: Any) -> Gaussian:
        dist = control_policy.actions(networks, policies.policy, obs)
        if by_reference_BxL is None:
            return dist
        other = control_policy.actions(networks, policies.reference, obs)
        return select(by_reference_BxL, other, dist)

    return act


# parameters: what acts, where, and how much of it
def segments(
    world: World,
    actor: Actor,
    contexts: Contexts,
    key_B: jax.Array,
    *,
    lanes: int,
    segment_length: int,
    pose: Callable[[State], jax.Array] | None = None,
) -> tuple[Segments, State]:
    """Runs `lanes` segments from each context.

    Args:
      key_B: one key a row; a row's segments depend on its key alone.
      pose: of the links in a state, where `Segments.pose` is wanted.

    Returns:
      The segments, and the simulator states after them, leaves leading with [B, L].
    """

    def step(now: Lanes, t):
        dist = actor(now.obs)
        raw_action = sampled_action(dist, key_B, t)
        after, outcome = advance(world, now, raw_action)
        within_Bx1 = (contexts.clock_B + t + 1 < world.episode_length)[:, None]
        record = {
            'obs': now.obs,
            'raw_action': raw_action,
            'reward': jnp.where(outcome.happened_BxL, outcome.reward_BxL, 0),
            'mask': outcome.happened_BxL,
            'logp': control_policy.log_prob(dist, raw_action),
            'terminated': outcome.happened_BxL & outcome.done_BxL,
            'not_finite': outcome.broken_BxL,
        }
        if pose is not None:
            record['pose'] = grouped(pose(now.state), lanes)
        return after._replace(alive_BxL=after.alive_BxL & within_Bx1), record

    start = begin(contexts.env_state, lanes)
    last, record = jax.lax.scan(step, start, jnp.arange(segment_length))
    terminated, not_finite = record.pop('terminated'), record.pop('not_finite')
    record = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), record)
    if pose is not None:
        after = grouped(pose(last.state), lanes)[:, :, None]
        record['pose'] = jnp.concatenate([record['pose'], after], 2)
    return Segments(
        **record | {'mask': record['mask'].astype(jnp.float32)},
        last_obs=last.obs,
        terminated=terminated.any(0),
        not_finite=not_finite.any(0) | ~start.alive_BxL,
        ended=~last.alive_BxL,
    ), grouped(last.state, lanes)


def next_contexts(
    env: Env, contexts: Contexts, states: State, ended_BxL: jax.Array, steps: int, key_B: jax.Array
) -> Contexts:
    """Goes on from one lane of each row, drawn evenly; from a new random state where it ended."""
    choose_B, reset_B = split_rows(key_B, 2)
    lane_B = jax.vmap(lambda key: jax.random.randint(key, (), 0, ended_BxL.shape[1]))(choose_B)
    pick = jax.vmap(lambda x, lane: x[lane])
    ended_B = pick(ended_BxL, lane_B)
    going_on = jax.tree.map(lambda x: pick(x, lane_B), states)
    return Contexts(
        env_state=select(ended_B, reset(env, reset_B), going_on),
        clock_B=jnp.where(ended_B, 0, contexts.clock_B + steps),
    )


class Episodes(NamedTuple):
    """Sums over whole episodes, [B, L]."""

    episode_return: jax.Array
    length: jax.Array
    logp: jax.Array
    """Of the raw actions under the policy."""
    reference_logp: jax.Array
    kl_policy_to_start: jax.Array
    kl_start_to_policy: jax.Array
    action_std: jax.Array
    """Of the policy's normal before the squash, mean over the action's entries."""
    entropy: jax.Array
    """Of the policy, where the policy acts; see `policy.entropy`."""
    not_finite: jax.Array
    """The simulator returned NaN or infinity, also as the first observation, bool: the sums are of
    the steps before, and not those of a whole episode."""
    succeeded: jax.Array | None = None
    """Steps after which it was a success; None as `World.succeeded`."""


def episodes(
    world: World, policies: Policies, actor: Policy, deterministic_L: jax.Array, key_B: jax.Array
) -> Episodes:
    """Full episodes from new random states, L from each; ends early when all have ended.

    An episode in which the simulator breaks ends there, and says so.

    Args:
      policies: the policy and the reference that log-probabilities and KLs are of.
      actor: who acts: one of the two.
      deterministic_L: lanes that take the mode instead of a sample.
      key_B: one key for each start state.
    """
    B, L = key_B.shape[0], deterministic_L.shape[0]
    reset_B, noise_B = split_rows(key_B, 2)

    def step(carry):
        t, now, sums, broken_BxL = carry
        policy, reference, dist = (
            control_policy.actions(world.networks, p, now.obs)
            for p in (policies.policy, policies.reference, actor)
        )
        sample = sampled_action(dist, noise_B, t)
        raw_action = jnp.where(deterministic_L[:, None], dist.loc, sample)
        after, outcome = advance(world, now, raw_action)
        terms = {
            'episode_return': outcome.reward_BxL,
            'length': 1.0,
            'logp': control_policy.log_prob(policy, raw_action),
            'reference_logp': control_policy.log_prob(reference, raw_action),
            'kl_policy_to_start': gaussian_kl(policy, reference),
            'kl_start_to_policy': gaussian_kl(reference, policy),
            'action_std': policy.scale.mean(-1),
            'entropy': control_policy.entropy(policy, raw_action),
        }
        if world.succeeded is not None:
            terms['succeeded'] = grouped(world.succeeded(after.state), L)
        sums = {
            key: sums[key] + jnp.where(outcome.happened_BxL, term, 0) for key, term in terms.items()
        }
        return t + 1, after, sums, broken_BxL | outcome.broken_BxL

    def going_on(carry):
        t, now, *_ = carry
        return (t < world.episode_length) & now.alive_BxL.any()

    start = begin(reset(world.env, reset_B), L)
    summed = set(Episodes._fields) - {'not_finite'}
    if world.succeeded is None:
        summed -= {'succeeded'}
    sums = dict.fromkeys(summed, jnp.zeros((B, L)))
    *_, sums, broken_BxL = jax.lax.while_loop(going_on, step, (0, start, sums, ~start.alive_BxL))
    broken_BxL |= ~jnp.isfinite(sums['episode_return'])  # Finite rewards can overflow.
    return Episodes(**sums, not_finite=broken_BxL)
