"""How a learned reward ranks behaviour: against the true return, on segments and on episodes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from brax.envs.base import Env

from sail_jax.control import rollout
from sail_jax.control.lanes import World
from sail_jax.control.policy import ActorNetworks, observed
from sail_jax.control.reward.ensemble import Comparisons, Ensemble, margins, of_answers
from sail_jax.control.rollout import Contexts
from sail_jax.core import precision
from sail_jax.core.keys import EVALUATE, row_keys, split_rows, stream
from sail_jax.core.types import Policies, Policy
from sail_jax.plots import COLORS, Picture


class Behaviour(NamedTuple):
    """What a reward is looked at on."""

    run: Any
    """Of control or soft actor-critic: episodes' and segments' lengths, seed, precision."""
    env: Env
    networks: ActorNetworks
    policies: Mapping[str, Policy]
    """By what the picture calls them."""
    episodes: int
    """Of each policy, from the same start states."""


class Played(NamedTuple):
    """Stochastic episodes of one policy, [N, T]; 0 after their ends."""

    true_NxT: np.ndarray
    learned_NxT: np.ndarray
    """The members' mean."""
    spread_NxT: np.ndarray
    """Their standard deviation."""
    mask_NxT: np.ndarray


class RewardReport(NamedTuple):
    """What became of an evaluation of a reward."""

    numbers: Mapping[str, float]
    """`segments` and `episodes`, how many there were; of each `..._correlation`, Pearson's of true
    and learned returns, and `..._rank_correlation`, Spearman's; `spread`, the mean over steps.
    With answered pairs also the numbers of `on_answers`."""
    picture: Picture
    """Learned against true returns."""


def evaluate(behaviour: Behaviour, ensemble: Ensemble, params: Any) -> RewardReport:
    """Runs episodes of each policy, and compares returns.

    Args:
      params: of the ensemble.
    """
    run = behaviour.run
    played = play(behaviour, ensemble, params)
    length = run.segment_length
    points = {
        'segments': {name: in_segments(one, length) for name, one in played.items()},
        'episodes': {
            name: in_segments(one, run.env.episode_length) for name, one in played.items()
        },
    }
    numbers: dict[str, float] = {}
    for what, by_policy in points.items():
        true, learned = np.concatenate(list(by_policy.values()), 1)
        one = what.removesuffix('s')
        numbers[what] = len(true)
        ranks = [scipy.stats.rankdata(x) for x in (true, learned)]
        numbers[f'{one}_correlation'] = pearson(true, learned)
        numbers[f'{one}_rank_correlation'] = pearson(*ranks)
    steps = sum(one.mask_NxT.sum() for one in played.values())
    numbers['spread'] = float(sum(one.spread_NxT.sum() for one in played.values()) / steps)
    return RewardReport(numbers, draw(points, numbers))


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Their correlation; NaN where one of them does not vary."""
    with np.errstate(divide='ignore', invalid='ignore'):
        return float(np.corrcoef(a, b)[0, 1])


def on_answers(ensemble: Ensemble, params: Any, pairs: Comparisons) -> dict[str, float]:
    """How right and how sure the members' mean is about answered pairs: `answers`, how many there
    are, `answer_accuracy`, `answer_loss` and so on, as of a run's metrics. They are those of
    held-out pairs where the reward was not fitted on them."""
    margin_N = margins(ensemble, params, pairs).mean(0)
    prob_N, weight_N = jnp.asarray(pairs.prob), jnp.asarray(pairs.weight)
    numbers = of_answers(margin_N, prob_N, weight_N)
    return {'answers': int(weight_N.sum()), **{name: float(x) for name, x in numbers.items()}}


def play(behaviour: Behaviour, ensemble: Ensemble, params: Any) -> dict[str, Played]:
    """Whole episodes of each policy, and what the ensemble makes of them."""
    run, env, networks, policies, episodes = behaviour
    world = World(env, networks, run.env.episode_length)

    @jax.jit
    @precision.traced_at(precision.resolved(run))
    def played(params: Any, policy: Policy) -> tuple[jax.Array, ...]:
        reset_B, act_B = split_rows(row_keys(stream(run.seed, EVALUATE), episodes), 2)
        contexts = Contexts(rollout.reset(env, reset_B), jnp.zeros(episodes, jnp.int32))
        actor = rollout.make_actor(networks, Policies(policy, policy))
        segments, _ = rollout.segments(
            world, actor, contexts, act_B, lanes=1, segment_length=run.env.episode_length
        )
        action = networks.parametric_action_distribution.postprocess(segments.raw_action)
        reward = ensemble.predict(params, observed(segments.obs), action) * segments.mask
        each = segments.reward, reward.mean(0), reward.std(0), segments.mask
        return jax.tree.map(lambda x: x[:, 0], each)

    return {
        name: Played(*jax.device_get(played(params, policy))) for name, policy in policies.items()
    }


def in_segments(episodes: Played, length: int) -> np.ndarray:
    """True and learned returns of the segments of so many steps that episodes are made of, [2, N];
    the last of an episode may be shorter."""
    steps = episodes.mask_NxT.shape[1]

    def summed(x_NxT: np.ndarray) -> np.ndarray:
        padded = np.pad(x_NxT, ((0, 0), (0, -steps % length)))
        return padded.reshape(-1, length).sum(-1)

    happened = summed(episodes.mask_NxT) > 0
    return np.stack([summed(x)[happened] for x in (episodes.true_NxT, episodes.learned_NxT)])


def draw(points: Mapping[str, Mapping[str, np.ndarray]], numbers: Mapping[str, float]) -> Picture:
    """Learned against true returns, a panel for segments and one for episodes."""
    picture = Picture(figsize=(9, 4.2), layout='constrained')
    axes: Sequence[Any] = picture.subplots(1, len(points))
    for axis, (what, by_policy) in zip(axes, points.items(), strict=True):
        for color, (name, (true, learned)) in zip(COLORS, by_policy.items(), strict=False):
            axis.scatter(true, learned, s=8, alpha=0.4, lw=0, color=color, label=name)
        one = what.removesuffix('s')
        pearson, rank = numbers[f'{one}_correlation'], numbers[f'{one}_rank_correlation']
        axis.set_title(f'{what}: correlation {pearson:.2f}, of ranks {rank:.2f}', fontsize=10)
        axis.set_xlabel('true return')
        axis.grid(alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].set_ylabel('learned return')
    axes[0].legend(frameon=False, markerscale=2, fontsize=9)
    return picture
