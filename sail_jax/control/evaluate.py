"""Evaluation of a control policy: full episodes under the true reward, against the start."""

from collections.abc import Callable, Mapping
from typing import Any

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from brax.envs.base import Env, State
from brax.training.agents.ppo.networks import PPONetworks
from jax.sharding import Mesh, PartitionSpec

from sail_jax.control import contract, envs, rollout
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun, Success
from sail_jax.control.lanes import World
from sail_jax.control.rollout import Episodes
from sail_jax.core import pair_losses, precision
from sail_jax.core.keys import EVALUATE, row_keys, stream
from sail_jax.core.pair_losses import ImplicitReward
from sail_jax.core.types import Hyper, Policies, Policy
from sail_jax.errors import UserError
from sail_jax.training.task import Evaluate

# Two stochastic episodes, so that pairs from one start state can be compared, and the mode's.
LANES_DETERMINISTIC = (False, False, True)

BROKEN = (
    'episodes in which the simulator returned NaN or infinity; each counts as the worst sound one'
)
"""What `eval/not_finite` counts."""


def make(env: Env, networks: PPONetworks, run: ControlRun, mesh: Mesh) -> Evaluate:
    """Every call of one seed uses the same start states and noise.

    Common random numbers make evaluations of one run, and of its start, comparable start state
    by start state.

    Args:
      mesh: start states are split over its `data` axis where their number divides by it; otherwise
        every device runs all of them.
    """
    reward = pair_losses.implicit_reward(pair_losses.PAIR_LOSSES.get(run.objective.loss))
    succeeded = make_succeeded(env, run.evaluation.success)
    world = World(env, networks, run.env.episode_length, succeeded)
    divides = run.evaluation.episodes % mesh.shape['data'] == 0
    rows = PartitionSpec('data') if divides else PartitionSpec()
    rows_of_both = PartitionSpec(None, *rows)

    def episodes(policies: Policies, key_B: jax.Array) -> Episodes:
        def of(actor: Policy) -> Episodes:
            deterministic_L = jnp.asarray(LANES_DETERMINISTIC)
            return rollout.episodes(world, policies, actor, deterministic_L, key_B)

        # One after the other: the simulator is compiled once.
        actors = jax.tree.map(lambda *x: jnp.stack(x), policies.policy, policies.reference)
        return jax.lax.map(of, actors)

    @jax.jit
    @precision.traced_at(precision.resolved(run))
    def evaluate(
        policy: Policy, start: Policy, shared: Any, seed: jax.Array, hyper: Hyper
    ) -> dict[str, jax.Array]:
        key_B = row_keys(stream(seed, EVALUATE), run.evaluation.episodes)
        # Each device's loop ends with its own last episode, without asking the others.
        both = jax.shard_map(
            episodes,
            mesh=mesh,
            in_specs=(PartitionSpec(), rows),
            out_specs=rows_of_both,
            check_vma=False,
        )(Policies(policy, start), key_B)
        of_policy, of_start = (jax.tree.map(lambda x, i=i: x[i], both) for i in range(2))
        return summarise(of_policy, of_start, hyper.beta, reward)

    return evaluate


def make_succeeded(env: Env, success: Success) -> Callable[[State], jax.Array] | None:
    """Whether a state makes its episode a success, for `World`.

    Raises:
      UserError: a metric that the environment does not have, or that is no number.
    """
    name = success.metric
    if name is None:
        return None
    metrics = _metrics(env, control_policy.abstract_state(env))
    if name not in metrics:
        known = ', '.join(sorted(map(str, metrics))) or 'none at all'
        raise UserError(
            f'evaluation.success.metric: the environment has no metric {name!r}; it has {known}'
        )
    metric = metrics[name]
    if not isinstance(metric, jax.ShapeDtypeStruct):
        raise UserError(
            f'evaluation.success.metric: {name!r} is a {type(metric).__name__}; expected one number'
        )
    if metric.shape not in ((), (1,)) or not contract.is_real(metric):
        raise UserError(
            f'evaluation.success.metric: {name!r} is {metric.dtype}{list(metric.shape)}; '
            'expected one number'
        )
    return lambda state: _metrics(env, state)[name].reshape(-1) >= success.at_least


def _metrics(env: Env, state: State) -> Mapping[str, Any]:
    """Of the environment's own state, which lies within that of one that was made right."""
    right = isinstance(envs.bare(env), contract.Sound)
    metrics = getattr(state.pipeline_state if right else state, 'metrics', None)
    return metrics if isinstance(metrics, Mapping) else {}


def summarise(
    policy: Episodes,
    start: Episodes,
    beta: jax.Array,
    reward: ImplicitReward = pair_losses.log_ratio,
) -> dict[str, jax.Array]:
    """Numbers of an evaluation; KLs and entropy are in nats per env step, lengths in env steps.

    The standard error is over start states, whose two stochastic episodes are averaged first.

    What an episode collected until the simulator broke is no return. Such episodes are counted,
    `not_finite`. In returns each stands as the worst sound one of both policies, of its kind, so
    that breaking the simulator is never better than the worst that can be done without; a sound
    episode wins against it. Lengths, margin and label accuracy are of sound episodes. What there is
    nothing for is NaN: the return of a policy none of whose episodes is sound.
    """
    sampled = counted_return(policy, start, slice(0, 2))
    mode = counted_return(policy, start, slice(2, 3))[:, 0]
    n = sampled.shape[0]
    win_rate = jax.vmap(share_won)(ranked(policy)[:, :2], ranked(start)[:, :2]).mean()
    implicit = beta * reward(policy.logp, policy.reference_logp, policy.length)[:, :2]
    sound = ~policy.not_finite[:, :2].any(1)
    label = jnp.sign(policy.episode_return[:, 0] - policy.episode_return[:, 1]) * sound
    margin = (implicit[:, 0] - implicit[:, 1]) * label
    decided = jnp.abs(label).sum()

    def per_step(sums: jax.Array, episodes: Episodes) -> jax.Array:
        return sums[:, :2].sum() / episodes.length[:, :2].sum()

    def length(lanes: slice) -> jax.Array:
        return policy.length[:, lanes].mean(where=~policy.not_finite[:, lanes])

    numbers = {
        'return': sampled.mean(),
        'return_std': sampled.std(),
        'return_se': sampled.mean(1).std(ddof=1) / n**0.5,
        'length': length(slice(0, 2)),
        'deterministic_return': mode.mean(),
        'deterministic_return_std': mode.std(),
        'deterministic_return_se': mode.std(ddof=1) / n**0.5,
        'deterministic_length': length(slice(2, 3)),
        'not_finite': policy.not_finite.sum(),
        'kl_policy_to_start': per_step(policy.kl_policy_to_start, policy),
        'kl_start_to_policy': per_step(start.kl_start_to_policy, start),
        'action_std': per_step(policy.action_std, policy),
        'entropy': per_step(policy.entropy, policy),
        'win_rate': win_rate,
        'margin': margin.sum() / decided,
        'label_accuracy': ((1 + jnp.sign(margin)) / 2 * jnp.abs(label)).sum() / decided,
    }
    for q in (10, 50, 90):
        numbers[f'return_q{q}'] = jnp.percentile(sampled, q)
        numbers[f'deterministic_return_q{q}'] = jnp.percentile(mode, q)
    return numbers | success_rates(policy, slice(0, 2), slice(2, 3))


def success_rates(episodes: Episodes, sampled: slice, mode: slice) -> dict[str, jax.Array]:
    """The share of episodes with a step that makes them a success, of either kind of lane; nothing
    where nobody says what that is. One that breaks the simulator is none."""
    if episodes.succeeded is None:
        return {}
    success_BxL = (episodes.succeeded > 0) & ~episodes.not_finite
    return {
        'success_rate': success_BxL[:, sampled].mean(),
        'deterministic_success_rate': success_BxL[:, mode].mean(),
    }


def ranked(episodes: Episodes) -> jax.Array:
    """Returns, and below all of them what broke, [B, L]."""
    return jnp.where(episodes.not_finite, -jnp.inf, episodes.episode_return)


def counted_return(policy: Episodes, start: Episodes, lanes: slice) -> jax.Array:
    """Returns of the policy, what broke as the worst sound one of either; NaN where none of the
    policy's is sound."""
    policy, start = (jax.tree.map(lambda x: x[:, lanes], x) for x in (policy, start))
    worst = jnp.inf
    for episodes in (policy, start):
        sound = ~episodes.not_finite
        worst = jnp.minimum(worst, episodes.episode_return.min(where=sound, initial=jnp.inf))
    returns = jnp.where(policy.not_finite, worst, policy.episode_return)
    return jnp.where(policy.not_finite.all(), jnp.nan, returns)


def share_won(policy_L: jax.Array, start_L: jax.Array) -> jax.Array:
    """Of all pairs of an episode of the policy and one of the start; equal ones, two broken ones
    among them, count one half."""
    policy, start = policy_L[:, None], start_L[None]
    return ((policy > start) + 0.5 * (policy == start)).mean()
