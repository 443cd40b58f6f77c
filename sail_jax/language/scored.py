"""What a reward or a judge says of an evaluation's responses, as numbers."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sail_jax.language.reward.ensemble import Combined
from sail_jax.language.reward.labels import Rater
from sail_jax.language.samples import Answers

Z95 = 1.959964
"""Of the normal distribution: 95 % lie within."""


def numbers(
    rater: Rater,
    prompts: Sequence,
    ours: Answers,
    starts: Answers,
    chosen: Answers | None,
) -> dict[str, Any]:
    """All of them; rewards and judgements that are no finite number are counted together, and so
    are answers of a judge without a verdict.

    Args:
      chosen: of the data, where ours are compared with them.
    """
    parts = [reward_numbers(ours, starts), win_numbers(rater, prompts, ours, starts)]
    if chosen is not None:
        parts.append(chosen_numbers(rater, prompts, ours, chosen))
    joined = {name: value for part in parts for name, value in part.items()}
    for name in {'not_finite', 'no_verdict'} & joined.keys():
        joined[name] = sum(part.get(name, 0) for part in parts)
    return joined


def reward_numbers(ours: Answers, starts: Answers) -> dict[str, Any]:
    """Mean over prompts, whose samples are averaged first.

    A reward that is not a finite number is none: counted, `not_finite`, and in means the worst one
    that either policy got, so that no response is better for it. NaN where there is none at all.
    """
    if ours.rewards is None or starts.rewards is None:
        return {}
    n = len(ours.rewards)
    counted_NxS = _counted(ours.rewards, starts.rewards)
    mean_N = counted_NxS.mean(1)
    spread = {}
    if ours.spread is not None:
        spread = {'reward_spread': finite_mean(ours.spread)}
    gain_N = (counted_NxS - _counted(starts.rewards, ours.rewards)).mean(1)
    return {
        'reward': mean_N.mean(),
        'reward_se': mean_N.std(ddof=1) / n**0.5,
        'reward_gain': gain_N.mean(),
        'reward_gain_se': gain_N.std(ddof=1) / n**0.5,
        'not_finite': (~np.isfinite(ours.rewards)).sum(),
        **spread,
        **part_numbers(ours.parts),
    }


def part_numbers(parts: Mapping[str, Combined], rows: Any = ...) -> dict[str, Any]:
    """Of each of several weighted rewards the mean and, of an ensemble, its spread.

    Args:
      rows: that count; all by default.
    """
    numbers = {}
    for name, part in parts.items():
        numbers[f'reward/{name}'] = finite_mean(part.reward[rows])
        if part.spread is not None:
            numbers[f'reward_spread/{name}'] = finite_mean(part.spread[rows])
    return numbers


def finite_mean(values: np.ndarray) -> np.floating:
    """Of the numbers that are finite; NaN where none is."""
    finite = values[np.isfinite(values)]
    return finite.mean() if finite.size else np.float32(np.nan)


def _counted(rewards_NxS: np.ndarray, others_NxS: np.ndarray) -> np.ndarray:
    finite = np.isfinite(rewards_NxS)
    if not finite.any():
        return np.full(rewards_NxS.shape, np.nan)
    worst = min(rewards_NxS[finite].min(), others_NxS[np.isfinite(others_NxS)].min(initial=np.inf))
    return np.where(finite, rewards_NxS, worst)


def win_numbers(
    rater: Rater, prompts: Sequence, ours: Answers, starts: Answers
) -> dict[str, float]:
    """Share of prompts on which the policy's response is preferred to the start policy's; equal
    ones count one half. With Wilson's 95 % interval over prompts.

    A response whose reward is not a finite number loses to one that has one. Pairs of which a judge
    says nothing (NaN) are left out, and counted, `not_finite`. A judge sees the policy's response
    first for every other prompt, and second for the rest, so that one who favours a position
    favours neither policy.
    """
    row_N = np.arange(len(prompts))
    won = _won(rater, prompts, ours, starts, lambda sample: [(row_N + sample) % 2])
    return {} if won is None else _rates('win_rate', won.share) | won.unsaid


def chosen_numbers(
    rater: Rater, prompts: Sequence, ours: Answers, chosen: Answers
) -> dict[str, float]:
    """The same against the data's chosen responses, one for each prompt; and the share of ties,
    which count one half in the rate. Prompts whose chosen one has no reward are left out, and
    counted, `not_finite`.

    A judge is asked about every pair in both orders, and what it says is averaged: a judge who goes
    by the position alone says a tie.
    """
    orders = [np.zeros(len(prompts), int), np.ones(len(prompts), int)]
    won = _won(rater, prompts, ours, chosen, lambda sample: orders)
    if won is None:
        return {}
    if rater.compare is None and chosen.rewards is not None:
        unscored_Nx1 = ~np.isfinite(chosen.rewards)
        share = np.where(unscored_Nx1, np.nan, won.share)
        won = _Won(share, {'not_finite': unscored_Nx1.sum()})
    said = won.share[np.isfinite(won.share)]
    ties = np.isclose(said, 0.5, rtol=0, atol=1e-6).mean() if said.size else np.nan
    return _rates('chosen_win_rate', won.share) | {'chosen_ties': ties} | won.unsaid


class _Won(NamedTuple):
    """A comparison of two policies' responses."""

    share: np.ndarray
    """How far each of ours is preferred, 0 to 1, [N, S]; NaN where a judge says nothing."""
    unsaid: dict[str, Any]
    """How often a judge says nothing, by the name of the metric; rewards that are no number are
    counted by themselves."""


def _won(
    rater: Rater,
    prompts: Sequence,
    ours: Answers,
    theirs: Answers,
    orders: Callable[[int], Sequence[np.ndarray]],
) -> _Won | None:
    """None where nobody compares or scores.

    Args:
      theirs: as many samples, or one that all are compared with.
      orders: `sample -> places`, 0 or 1 for each prompt, where ours stand; a judge is asked once
        for each.
    """
    if rater.compare is not None:
        samples = zip(_columns(ours.texts), itertools.cycle(_columns(theirs.texts)), strict=False)
        said_SxOxN = np.asarray(
            [
                [_probabilities(rater, prompts, a, b, place) for place in orders(sample)]
                for sample, (a, b) in enumerate(samples)
            ]
        )
        if rater.unsaid_is_tie:
            unsaid = {'no_verdict': np.isnan(said_SxOxN).sum()}
            return _Won(np.where(np.isnan(said_SxOxN), 0.5, said_SxOxN).mean(1).T, unsaid)
        share = said_SxOxN.mean(1).T
        return _Won(share, {'not_finite': (~np.isfinite(share)).sum()})
    if ours.rewards is None or theirs.rewards is None:
        return None
    a, b = (np.where(np.isfinite(x), x, -np.inf) for x in (ours.rewards, theirs.rewards))
    return _Won((a > b) + 0.5 * (a == b), {})


def _rates(name: str, won_NxS: np.ndarray) -> dict[str, float]:
    """The mean, by that name, with Wilson's 95 % interval over prompts."""
    said_NxS = np.isfinite(won_NxS)
    names = (name, f'{name}_low', f'{name}_high')
    if not said_NxS.any():
        return dict.fromkeys(names, np.nan)
    n, rate = said_NxS.any(1).sum(), won_NxS[said_NxS].mean()
    centre = (rate + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * (rate * (1 - rate) / n + Z95**2 / (4 * n**2)) ** 0.5
    return dict(zip(names, (rate, centre - half, centre + half), strict=True))


def _probabilities(
    rater: Rater, prompts: Sequence, ours_N: tuple, theirs_N: tuple, place_N: np.ndarray
) -> np.ndarray:
    """Probabilities that ours are preferred, [N]; `place`, 0 or 1, is where ours stand."""
    assert rater.compare is not None
    both = zip(ours_N, theirs_N, place_N, strict=True)
    pairs = [(theirs, ours) if place else (ours, theirs) for ours, theirs, place in both]
    prob_NxKxK = np.asarray(rater.compare(prompts, pairs).prob_BxKxK)
    return prob_NxKxK[np.arange(len(pairs)), place_N, 1 - place_N]


def _columns(texts: list[list[str]]) -> list[tuple[str, ...]]:
    return list(zip(*texts, strict=True))
