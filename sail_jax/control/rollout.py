"""Groups of segments that start from one simulator state, and full episodes.

Axes: B contexts, L lanes (K segments of the policy, and one more of the reference where the KL
penalty asks for it), T env steps. A lane ends at its first `done`, at the episode's limit, or where
the simulator returns something that is not finite; what follows is masked.
"""

from typing import Any, NamedTuple

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from brax.envs.base import Env, State
from brax.training.agents.ppo.networks import PPONetworks

from sail_jax.control import policy as control_policy
from sail_jax.core.divergence import gaussian_kl
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


def reset(env: Env, key_B: jax.Array) -> State:
    """New random start states. Brax takes raw keys."""
    return jax.vmap(env.reset)(jax.vmap(jax.random.key_data)(key_B))


def init_contexts(env: Env, key_B: jax.Array, episode_length: int, segment_length: int) -> Contexts:
    """Fresh states with clocks spread over the episode, so that rows do not end all at once."""
    reset_B, clock_B = split_rows(key_B, 2)
    starts = max(episode_length // segment_length, 1)
    draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, starts))
    return Contexts(reset(env, reset_B), draw(clock_B) * segment_length)


def segments(
    env: Env,
    networks: PPONetworks,
    policies: Policies,
    contexts: Contexts,
    by_reference_BxL: jax.Array | None,
    key_B: jax.Array,
    *,
    lanes: int,
    segment_length: int,
    episode_length: int,
) -> tuple[Segments, State]:
    """Runs `lanes` segments from each context.

    Args:
      policies: the policy and its reference.
      by_reference_BxL: lanes in which the reference acts; None where it never does, which saves
        its forward pass.
      key_B: one key a row; a row's segments depend on its own key alone.

    Returns:
      The segments, and the simulator states after them, leaves leading with [B, L].
    """
    policy, reference = policies.policy, policies.reference
    B = contexts.clock_B.shape[0]
    group = lambda x: x.reshape(B, lanes, *x.shape[1:])  # noqa: E731

    def step(carry, t):
        state, obs, alive_BxL = carry
        dist = control_policy.actions(networks, policy, obs)
        if by_reference_BxL is not None:
            other = control_policy.actions(networks, reference, obs)
            dist = select(by_reference_BxL, other, dist)
        noise = jax.vmap(
            lambda key: jax.random.normal(jax.random.fold_in(key, t), dist.loc.shape[1:])
        )(key_B)
        raw_action = dist.loc + dist.scale * noise
        action = networks.parametric_action_distribution.postprocess(raw_action)
        state = jax.vmap(env.step)(state, action.reshape(B * lanes, -1))
        new_obs, reward, done_BxL = jax.tree.map(group, (state.obs, state.reward, state.done > 0))
        finite_BxL = jnp.isfinite(reward) & all_finite(new_obs)
        happened_BxL = alive_BxL & finite_BxL
        within_Bx1 = (contexts.clock_B + t + 1 < episode_length)[:, None]
        record = {
            'obs': obs,
            'raw_action': raw_action,
            'reward': jnp.where(happened_BxL, reward, 0),
            'mask': happened_BxL,
            'logp': control_policy.log_prob(dist, raw_action),
            'terminated': happened_BxL & done_BxL,
            'not_finite': alive_BxL & ~finite_BxL,
        }
        obs = select(happened_BxL, new_obs, obs)
        return (state, obs, happened_BxL & ~done_BxL & within_Bx1), record

    state = jax.tree.map(lambda x: jnp.repeat(x, lanes, axis=0), contexts.env_state)
    obs, sound_BxL = sound_start(jax.tree.map(group, state.obs))
    start = (state, obs, sound_BxL)
    (state, last_obs, alive_BxL), record = jax.lax.scan(step, start, jnp.arange(segment_length))
    terminated, not_finite = record.pop('terminated'), record.pop('not_finite')
    record = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), record)
    return Segments(
        **record | {'mask': record['mask'].astype(jnp.float32)},
        last_obs=last_obs,
        terminated=terminated.any(0),
        not_finite=not_finite.any(0) | ~sound_BxL,
        ended=~alive_BxL,
    ), jax.tree.map(group, state)


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
    kl_policy_to_ref: jax.Array
    kl_ref_to_policy: jax.Array
    not_finite: jax.Array
    """The simulator returned NaN or infinity, also as the first observation, bool: the sums are of
    the steps before, and not those of a whole episode."""


def episodes(
    env: Env,
    networks: PPONetworks,
    policies: Policies,
    actor: Policy,
    deterministic_L: jax.Array,
    key_B: jax.Array,
    episode_length: int,
) -> Episodes:
    """Full episodes from new random states, L from each; ends early when all have ended.

    An episode in which the simulator breaks ends there, and says so.

    Args:
      policies: the policy and the reference that log-probabilities and KLs are of.
      actor: who acts: one of the two.
      deterministic_L: lanes that take the mode instead of a sample.
      key_B: one key for each start state.
    """
    policy, reference = policies.policy, policies.reference
    B, L = key_B.shape[0], deterministic_L.shape[0]
    group = lambda x: x.reshape(B, L, *x.shape[1:])  # noqa: E731
    reset_B, noise_B = split_rows(key_B, 2)

    def step(carry):
        t, state, obs, alive_BxL, sums, broken_BxL = carry
        ours, theirs = (control_policy.actions(networks, p, obs) for p in (policy, reference))
        dist = control_policy.actions(networks, actor, obs)
        noise = jax.vmap(
            lambda key: jax.random.normal(jax.random.fold_in(key, t), dist.loc.shape[1:])
        )(noise_B)
        raw_action = jnp.where(deterministic_L[:, None], dist.loc, dist.loc + dist.scale * noise)
        action = networks.parametric_action_distribution.postprocess(raw_action)
        state = jax.vmap(env.step)(state, action.reshape(B * L, -1))
        new_obs, reward, done_BxL = jax.tree.map(group, (state.obs, state.reward, state.done > 0))
        finite_BxL = jnp.isfinite(reward) & all_finite(new_obs)
        happened_BxL = alive_BxL & finite_BxL
        step_sums = (
            reward,
            1.0,
            control_policy.log_prob(ours, raw_action),
            control_policy.log_prob(theirs, raw_action),
            gaussian_kl(ours, theirs),
            gaussian_kl(theirs, ours),
        )
        sums = jax.tree.map(lambda a, b: a + jnp.where(happened_BxL, b, 0), sums, step_sums)
        obs = select(happened_BxL, new_obs, obs)
        broken_BxL = broken_BxL | (alive_BxL & ~finite_BxL)
        return t + 1, state, obs, happened_BxL & ~done_BxL, sums, broken_BxL

    def going_on(carry):
        t, _, _, alive_BxL, *_ = carry
        return (t < episode_length) & alive_BxL.any()

    state = jax.tree.map(lambda x: jnp.repeat(x, L, axis=0), reset(env, reset_B))
    obs, sound_BxL = sound_start(jax.tree.map(group, state.obs))
    start = (0, state, obs, sound_BxL, (jnp.zeros((B, L)),) * 6, ~sound_BxL)
    *_, sums, broken_BxL = jax.lax.while_loop(going_on, step, start)
    broken_BxL |= ~jnp.isfinite(sums[0])  # Finite rewards can overflow.
    return Episodes._make((*sums, broken_BxL))


def sound_start(obs: Any) -> tuple[Any, jax.Array]:
    """First observations, zeros where they are not finite, and where they are, [B, L].

    A masked NaN would still reach whatever multiplies by the mask.
    """
    sound_BxL = all_finite(obs)
    return select(sound_BxL, obs, jax.tree.map(jnp.zeros_like, obs)), sound_BxL


def select(condition: jax.Array, a: Any, b: Any) -> Any:
    """`where` over two pytrees whose leaves lead with the condition's axes."""

    def leaf(x, y):
        return jnp.where(
            condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim)), x, y
        )

    return jax.tree.map(leaf, a, b)


def all_finite(obs: Any) -> jax.Array:
    """Whether every entry of an observation is finite, [B, L]."""
    leaves = [jnp.isfinite(x).all(range(2, x.ndim)) for x in jax.tree.leaves(obs)]
    return jnp.stack(leaves).all(0)
