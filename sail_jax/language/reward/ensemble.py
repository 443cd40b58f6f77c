"""Several rewards of a response as one: arXiv 2310.02743, whose means and spreads are these.

A reward model is free to add any number of its own, so members compare where their mean is held at
0 (`loss.centering` of `workload: reward`): the mean ranks a group alike whatever these numbers are,
the minimum and the spread do not.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sail_jax.language.reward.config import RewardSource


class Combined(NamedTuple):
    """What an ensemble says of responses."""

    reward: np.ndarray
    """[...]"""
    spread: np.ndarray | None
    """Standard deviation over the members, [...]; None of rewards that are of different things."""


def combine(rewards: np.ndarray, source: RewardSource) -> Combined:
    """One reward of each response; no number where a member has none.

    Args:
      rewards: [..., members].
    """
    spread = rewards.std(-1)
    if source.aggregate == 'minimum':
        return Combined(rewards.min(-1), spread)
    return Combined(rewards.mean(-1) - source.spread_penalty * spread, spread)


class Part(NamedTuple):
    """One of several weighted rewards."""

    name: str
    weight: float
    members: int
    """Of the ensemble that it is."""
    combine: Callable[[np.ndarray], Combined] | None
    """Makes one reward of the members'; None of one alone."""


def parts_of(rewards: np.ndarray, parts: Sequence[Part]) -> dict[str, Combined]:
    """Each of several rewards by its name.

    Args:
      rewards: [..., members of all parts].
    """
    ends = np.cumsum([part.members for part in parts])
    members = np.split(rewards, ends[:-1], axis=-1)
    return {
        part.name: Combined(each[..., 0], None) if part.combine is None else part.combine(each)
        for part, each in zip(parts, members, strict=True)
    }


def weighted(rewards: np.ndarray, parts: Sequence[Part]) -> Combined:
    """The sum of several rewards of a response, each times its weight.

    One of weight 0 is only looked at: without an answer of it (NaN) the sum is what it is.

    Args:
      rewards: as of `parts_of`.
    """
    each = np.stack([part.reward for part in parts_of(rewards, parts).values()], -1)
    weight = np.asarray([part.weight for part in parts], rewards.dtype)
    return Combined(np.where(weight == 0, 0, each * weight).sum(-1), None)


def together(functions: Sequence[Callable[..., np.ndarray]]) -> Callable[..., np.ndarray]:
    """The function of the members of all of them, [N, members]; each gives [N] or [N, members]."""

    def rewards(prompts: list, responses: list[str]) -> np.ndarray:
        return np.column_stack([function(prompts, responses) for function in functions])

    rewards.__qualname__ = ', '.join(function.__qualname__ for function in functions)
    return rewards
