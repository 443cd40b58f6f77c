"""Evaluation on held-out prompts and pairs, on keys of its own, against the start policy."""

import itertools
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax.core import pair_losses, precision
from sail_jax.core.keys import EVALUATE, stream
from sail_jax.core.types import Hyper, Policies, Policy
from sail_jax.language import workload
from sail_jax.language.config import LanguageRun
from sail_jax.language.data import reader
from sail_jax.language.data.dataset import Example
from sail_jax.language.data.tokens import Tokenizer
from sail_jax.language.model import logprobs, sampler
from sail_jax.language.model.logprobs import Prompts
from sail_jax.language.model.policy import Decoders
from sail_jax.language.model.sampler import Responses
from sail_jax.language.reward import labels
from sail_jax.language.reward.labels import Rater
from sail_jax.language.samples import Answers, write_table
from sail_jax.training import hosts
from sail_jax.training.task import Evaluate

Z95 = 1.959964
"""Of the normal distribution: 95 % lie within."""


class Weighed(NamedTuple):
    """Responses under policy and reference, [N, S] each, summed over their tokens."""

    logp: jax.Array
    reference_logp: jax.Array
    ref_to_policy: jax.Array
    policy_to_ref: jax.Array


class EvaluationPrograms(NamedTuple):
    """What is compiled of an evaluation; both go through some of its rows at a time."""

    generate: Callable[[Policy, Any, jax.Array, Prompts, np.ndarray], Responses]
    """`(policy, shared, seed, prompts, their numbers) -> responses`."""
    weigh: Callable[[Policies, Prompts, jax.Array, jax.Array], Weighed]
    """`(policies, prompts, tokens [B, S, R], lengths [B, S])`."""


def make_programs(
    run: LanguageRun, decoders: Decoders, eos_ids: tuple[int, ...]
) -> EvaluationPrograms:
    """Compiled at their first call."""
    eos_E = jnp.asarray(eos_ids, jnp.int32)
    at_precision = precision.traced_at(precision.resolved(run))

    @jax.jit
    @at_precision
    def generate(
        policy: Policy, shared: Any, seed: jax.Array, prompts: Prompts, number_B: jax.Array
    ) -> Responses:
        key_B = jax.vmap(jax.random.fold_in, (None, 0))(stream(seed, EVALUATE), number_B)
        return sampler.generate(
            decoders.policy(policy, shared),
            prompts,
            key_B,
            group_size=run.evaluation.samples,
            settings=run.sampling,
            eos_E=eos_E,
        )

    @jax.jit
    @at_precision
    def weigh(
        policies: Policies, prompts: Prompts, tokens_BxSxR: jax.Array, lengths_BxS: jax.Array
    ) -> Weighed:
        policy, reference, shared = policies
        predicted, reference_predicted = (
            logprobs.predictions(decoder, prompts, tokens_BxSxR)
            for decoder in (decoders.policy(policy, shared), decoders.reference(reference, shared))
        )
        mask = workload.lengths_mask(lengths_BxS, tokens_BxSxR.shape[-1])
        compared = logprobs.compare(predicted, reference_predicted, tokens_BxSxR)
        return Weighed(**{k: jnp.where(mask, x, 0).sum(-1) for k, x in compared._asdict().items()})

    return EvaluationPrograms(generate=generate, weigh=weigh)


def make(
    run: LanguageRun,
    decoders: Decoders,
    tokenizer: Tokenizer,
    held_out: Sequence[Example],
    rater: Rater,
    run_dir: Path | None,
) -> Evaluate:
    """Every call uses the same prompts and keys, so evaluations compare prompt by prompt.

    Args:
      held_out: the prompts, and pairs if all have them.
      run_dir: takes a sample table at each evaluation; None writes none.
    """
    settings, programs = run.evaluation, make_programs(run, decoders, tokenizer.eos_ids)
    rater = labels.divided(rater)
    padded = reader.batch(held_out).prompts
    rows = min(len(held_out), run.prompts_per_update)
    prompts = [example.row.prompt for example in held_out]
    paired = all(example.rejected is not None for example in held_out)

    def answer(policy: Policy, shared: Any, seed: jax.Array) -> Answers:
        number_N = np.arange(len(held_out), dtype=np.uint32)
        drawn = by_rows(partial(programs.generate, policy, shared, seed), rows, padded, number_N)
        texts = tokenizer.texts(drawn.tokens_BxKxR, drawn.lengths_BxK)
        return Answers(
            tokens=drawn.tokens_BxKxR,
            lengths=drawn.lengths_BxK,
            ended=drawn.ended_BxK,
            texts=texts,
            **rater.rated(prompts, texts),
        )

    answer_of_start = _once(answer)
    chosen = cache(lambda: _chosen(rater, prompts, held_out))

    def evaluate(
        policy: Policy, start: Policy, shared: Any, seed: jax.Array, hyper: Hyper
    ) -> dict[str, float]:
        def weigh(tokens_NxSxR: Any, lengths_NxS: Any) -> Weighed:
            weigh_rows = partial(programs.weigh, Policies(policy, start, shared))
            return by_rows(weigh_rows, rows, padded, tokens_NxSxR, lengths_NxS)

        ours, starts = answer(policy, shared, seed), answer_of_start(start, shared, seed)
        numbers = _lengths(ours) | _divergences(
            weigh(ours.tokens, ours.lengths), ours, weigh(starts.tokens, starts.lengths), starts
        )
        scored = [reward_numbers(ours, starts), win_numbers(rater, prompts, ours, starts)]
        if paired and settings.against_chosen:
            scored.append(chosen_numbers(rater, prompts, ours, chosen()))
        numbers |= _joined(scored)
        if paired:
            pairs = reader.batch(held_out, run.data.max_response_tokens).pairs
            assert pairs is not None
            numbers |= _pairs(weigh(*pairs), pairs, run.objective.loss, float(hyper.beta))
        if run_dir is not None and settings.table_rows and hosts.is_main():
            name = f'{int(policy.statistics):06}.md'
            write_table(run_dir / 'samples' / name, prompts[: settings.table_rows], starts, ours)
        return numbers

    return evaluate


def _joined(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """All numbers; what is no finite number is counted over all parts."""
    joined = {name: value for part in parts for name, value in part.items()}
    broken = [part['not_finite'] for part in parts if 'not_finite' in part]
    return joined | ({'not_finite': sum(broken)} if broken else {})


def _chosen(rater: Rater, prompts: Sequence, held_out: Sequence[Example]) -> Answers:
    """The data's chosen response to each prompt, scored."""
    texts = [[str(example.row.chosen)] for example in held_out]
    lengths = np.asarray([[len(example.chosen or ())] for example in held_out])
    return Answers(
        tokens=np.zeros((*lengths.shape, 0), np.int32),
        lengths=lengths,
        ended=np.ones(lengths.shape, bool),
        texts=texts,
        **rater.rated(prompts, texts),
    )


def _once(answer: Callable[[Policy, Any, jax.Array], Answers]) -> Callable[..., Answers]:
    """`answer` of a policy that stays: it answers once for a seed."""
    last: list[tuple[Policy, int, Answers]] = []

    def answer_once(policy: Policy, shared: Any, seed: jax.Array) -> Answers:
        if not last or last[0][0] is not policy or last[0][1] != int(seed):
            answers = answer(policy, shared, seed)
            last[:] = [(policy, int(seed), answers)]
        return last[0][2]

    return answer_once


def by_rows(function: Callable, rows: int, *arrays):
    """`function` of all arrays, so many rows at a time, on the host of every process; one shape
    serves all."""
    count = len(jax.tree.leaves(arrays)[0])
    parts = []
    for first in range(0, count, rows):
        index = np.minimum(np.arange(first, first + rows), count - 1)
        part = jax.tree.map(lambda x, index=index: x[index], arrays)
        parts.append(hosts.whole(function(*part)))

    def join(*x: np.ndarray) -> np.ndarray:
        return np.concatenate(x)[:count] if np.ndim(x[0]) else x[0]

    return jax.tree.map(join, *parts)


def _lengths(ours: Answers) -> dict[str, float]:
    return {'response_length': ours.lengths.mean(), 'ended': ours.ended.mean()}


def _divergences(
    ours: Weighed, our_answers: Answers, starts: Weighed, start_answers: Answers
) -> dict[str, Any]:
    """Exact at every token, over samples of the first distribution: nats per token, and per
    response as a whole."""
    forward, backward = ours.policy_to_ref, starts.ref_to_policy
    return {
        'kl_policy_to_ref': forward.sum() / our_answers.lengths.sum(),
        'kl_ref_to_policy': backward.sum() / start_answers.lengths.sum(),
        'response_kl_policy_to_ref': forward.mean(),
        'response_kl_ref_to_policy': backward.mean(),
    }


def reward_numbers(ours: Answers, starts: Answers) -> dict[str, float]:
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
        **{f'reward/{name}': finite_mean(values) for name, values in ours.parts.items()},
    }


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
    return {} if won is None else _rates('win_rate', won) | _unsaid(rater, won)


def chosen_numbers(
    rater: Rater, prompts: Sequence, ours: Answers, chosen: Answers
) -> dict[str, float]:
    """The same against the data's chosen responses, one for each prompt; and the share of ties,
    which count one half in the rate.

    A judge is asked about every pair in both orders, and what it says is averaged: a judge who goes
    by the position alone says a tie.
    """
    orders = [np.zeros(len(prompts), int), np.ones(len(prompts), int)]
    won = _won(rater, prompts, ours, chosen, lambda sample: orders)
    if won is None:
        return {}
    said = won[np.isfinite(won)]
    ties = np.isclose(said, 0.5, rtol=0, atol=1e-6).mean() if said.size else np.nan
    return _rates('chosen_win_rate', won) | {'chosen_ties': ties} | _unsaid(rater, won)


def _won(
    rater: Rater,
    prompts: Sequence,
    ours: Answers,
    theirs: Answers,
    orders: Callable[[int], Sequence[np.ndarray]],
) -> np.ndarray | None:
    """How far each of ours is preferred, 0 to 1, [N, S]; NaN where a judge says nothing; None where
    nobody compares or scores.

    Args:
      theirs: as many samples, or one that all are compared with.
      orders: `sample -> places`, 0 or 1 for each prompt, where ours stand; a judge is asked once
        for each.
    """
    if rater.compare is not None:
        samples = zip(_columns(ours.texts), itertools.cycle(_columns(theirs.texts)), strict=False)
        columns = [
            np.mean([_probabilities(rater, prompts, a, b, place) for place in orders(sample)], 0)
            for sample, (a, b) in enumerate(samples)
        ]
        return np.stack(columns, axis=1)
    if ours.rewards is None or theirs.rewards is None:
        return None
    a, b = (np.where(np.isfinite(x), x, -np.inf) for x in (ours.rewards, theirs.rewards))
    return (a > b) + 0.5 * (a == b)


def _unsaid(rater: Rater, won_NxS: np.ndarray) -> dict[str, Any]:
    """How often a judge says nothing; rewards that are no number are counted by themselves."""
    return {} if rater.compare is None else {'not_finite': (~np.isfinite(won_NxS)).sum()}


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


def _pairs(weighed: Weighed, pairs: workload.Pairs, loss: str, beta: float) -> dict[str, Any]:
    """Implicit rewards of the held-out pairs: how often the chosen one's is larger (equal ones
    count one half), and by how much."""
    reward = pair_losses.implicit_reward(pair_losses.PAIR_LOSSES.get(loss))
    implicit = beta * reward(weighed.logp, weighed.reference_logp, pairs.lengths_Bx2)
    margin = implicit[:, 0] - implicit[:, 1]
    return {
        'pair_accuracy': ((1 + np.sign(margin)) / 2).mean(),
        'pair_margin': margin.mean(),
        'pair_margin_se': margin.std(ddof=1) / len(margin) ** 0.5,
    }
