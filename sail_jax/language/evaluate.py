"""Evaluation on held-out prompts and pairs, on keys of its own, against the start policy."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax.core import pair_losses, precision
from sail_jax.core.keys import EVALUATE, stream
from sail_jax.core.types import Hyper, Policies, Policy
from sail_jax.language import scored, workload
from sail_jax.language.config import LanguageRun
from sail_jax.language.data import reader
from sail_jax.language.data.dataset import Example
from sail_jax.language.data.tokens import Tokenizer
from sail_jax.language.model import contrastive, logprobs, sampler
from sail_jax.language.model.logprobs import Prompts
from sail_jax.language.model.policy import Decoders
from sail_jax.language.model.sampler import Responses
from sail_jax.language.reward import labels
from sail_jax.language.reward.labels import Rater
from sail_jax.language.samples import Answers, write_table
from sail_jax.training import hosts
from sail_jax.training.task import Evaluate

T = TypeVar('T')


class Divergences(NamedTuple):
    """KL between policy and reference over responses, [N, S] each, summed over their tokens."""

    ref_to_policy: jax.Array
    policy_to_ref: jax.Array


class EvaluationPrograms(NamedTuple):
    """What is compiled of an evaluation; all go through some of its rows at a time."""

    generate: Callable[[Policy, Any, jax.Array, Prompts, np.ndarray], Responses]
    """`(policy, shared, seed, prompts, their numbers) -> responses`."""
    weigh: Callable[[Policies, Prompts, jax.Array, jax.Array], Divergences]
    """`(policies, prompts, tokens [B, S, R], lengths [B, S])`."""
    log_prob: Callable[[Policy, Any, Prompts, jax.Array, jax.Array], jax.Array]
    """`(policy, shared, prompts, tokens [B, S, R], lengths [B, S]) -> of whole responses [B, S]`.
    """


def make_programs(
    run: LanguageRun, decoders: Decoders, eos_ids: tuple[int, ...]
) -> EvaluationPrograms:
    """Compiled at their first call."""
    at_precision = precision.traced_at(precision.resolved(run))

    @jax.jit
    @at_precision
    def weigh(
        policies: Policies, prompts: Prompts, tokens_BxSxR: jax.Array, lengths_BxS: jax.Array
    ) -> Divergences:
        policy, reference, shared = policies
        predicted, reference_predicted = (
            logprobs.predictions(decoder, prompts, tokens_BxSxR)
            for decoder in (decoders.policy(policy, shared), decoders.reference(reference, shared))
        )
        compared = logprobs.compare(predicted, reference_predicted, tokens_BxSxR)
        return Divergences(
            ref_to_policy=_summed(compared.ref_to_policy, lengths_BxS),
            policy_to_ref=_summed(compared.policy_to_ref, lengths_BxS),
        )

    @jax.jit
    @at_precision
    def log_prob(
        policy: Policy,
        shared: Any,
        prompts: Prompts,
        tokens_BxSxR: jax.Array,
        lengths_BxS: jax.Array,
    ) -> jax.Array:
        predicted = logprobs.predictions(decoders.policy(policy, shared), prompts, tokens_BxSxR)
        return _summed(logprobs.log_probs(predicted, tokens_BxSxR), lengths_BxS)

    generate = _make_generate(run, decoders, eos_ids)
    return EvaluationPrograms(generate=generate, weigh=weigh, log_prob=log_prob)


def _make_generate(
    run: LanguageRun, decoders: Decoders, eos_ids: tuple[int, ...]
) -> Callable[..., Responses]:
    """`EvaluationPrograms.generate`."""
    eos_E = jnp.asarray(eos_ids, jnp.int32)
    greedy = run.evaluation.decoding == 'greedy'
    sampling = run.sampling.greedy if greedy else run.sampling

    @jax.jit
    @precision.traced_at(precision.resolved(run))
    def generate(
        policy: Policy, shared: Any, seed: jax.Array, prompts: Prompts, number_B: jax.Array
    ) -> Responses:
        decoder = decoders.policy(policy, shared)
        if run.evaluation.decoding == 'contrastive':
            return contrastive.generate(
                decoder, prompts, max_tokens=run.sampling.max_tokens, eos_E=eos_E
            )
        key_B = jax.vmap(jax.random.fold_in, (None, 0))(stream(seed, EVALUATE), number_B)
        return sampler.generate(
            decoder,
            prompts,
            key_B,
            group_size=run.evaluation.samples,
            settings=sampling,
            eos_E=eos_E,
        )

    return generate


def _summed(x_BxSxR: jax.Array, lengths_BxS: jax.Array) -> jax.Array:
    """Over the tokens of each response."""
    return jnp.where(workload.lengths_mask(lengths_BxS, x_BxSxR.shape[-1]), x_BxSxR, 0).sum(-1)


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
    rows = rows_at_once(run, len(held_out), jax.device_count())
    prompts = [example.row.prompt for example in held_out]
    pairs = _pairs_of(run, held_out)

    @_once_untrained
    def answer(policy: Policy, shared: Any, seed: jax.Array) -> Answers:
        number_N = np.arange(len(held_out), dtype=np.uint32)
        drawn = by_rows(partial(programs.generate, policy, shared, seed), rows, padded, number_N)
        ids = drawn.tokens_BxKxR, drawn.lengths_BxK
        texts = tokenizer.texts(*ids)
        return Answers(*ids, drawn.ended_BxK, texts, **rater.rated(prompts, texts))

    @_once_untrained
    def log_prob_of_pairs(policy: Policy, shared: Any, seed: jax.Array) -> jax.Array:
        assert pairs is not None
        return by_rows(partial(programs.log_prob, policy, shared), rows, padded, *pairs)

    chosen = cache(lambda: _chosen(rater, tokenizer, prompts, held_out))

    def evaluate(
        policy: Policy, start: Policy, shared: Any, seed: jax.Array, hyper: Hyper
    ) -> dict[str, float]:
        def weigh(answers: Answers) -> Divergences:
            weigh_rows = partial(programs.weigh, Policies(policy, start, shared))
            return by_rows(weigh_rows, rows, padded, answers.tokens, answers.lengths)

        ours, starts = answer(policy, shared, seed), answer(start, shared, seed)
        numbers = _lengths(ours) | _divergences(weigh, ours, starts)
        theirs = chosen() if pairs is not None and settings.against_chosen else None
        numbers |= scored.numbers(rater, prompts, ours, starts, theirs)
        if pairs is not None:
            ours_Nx2 = log_prob_of_pairs(policy, shared, seed)
            starts_Nx2 = log_prob_of_pairs(start, shared, seed)
            loss, beta = run.objective.loss, float(hyper.beta)
            numbers |= _pair_numbers(ours_Nx2, starts_Nx2, pairs.lengths_Bx2, loss, beta)
        if run_dir is not None and settings.table_rows and hosts.is_main():
            name = f'{int(policy.statistics):06}.md'
            write_table(run_dir / 'samples' / name, prompts[: settings.table_rows], starts, ours)
        return numbers

    return evaluate


def _pairs_of(run: LanguageRun, held_out: Sequence[Example]) -> workload.Pairs | None:
    """As arrays; None where a row has no pair."""
    if any(example.rejected is None for example in held_out):
        return None
    longest = max(len(ids or ()) for row in held_out for ids in (row.chosen, row.rejected))
    return reader.batch(held_out, reader.places(longest, run.data.max_response_tokens)).pairs


def _chosen(
    rater: Rater, tokenizer: Tokenizer, prompts: Sequence, held_out: Sequence[Example]
) -> Answers:
    """The data's chosen response to each prompt, scored."""
    texts = [[tokenizer.without_end(str(example.row.chosen))] for example in held_out]
    lengths = np.asarray([[len(example.chosen or ())] for example in held_out])
    return Answers(
        tokens=np.zeros((*lengths.shape, 0), np.int32),
        lengths=lengths,
        ended=np.ones(lengths.shape, bool),
        texts=texts,
        **rater.rated(prompts, texts),
    )


def _once_untrained(function: Callable[[Policy, Any, jax.Array], T]) -> Callable[..., T]:
    """`function`, which is called once for a seed's start policy: every evaluation compares with
    it, and the first one is of nothing else."""
    last: list[tuple[int, T]] = []

    def of_policy(policy: Policy, shared: Any, seed: jax.Array) -> T:
        if int(policy.statistics):  # Updates that made it.
            return function(policy, shared, seed)
        if not last or last[0][0] != int(seed):
            last[:] = [(int(seed), function(policy, shared, seed))]
        return last[0][1]

    return of_policy


def rows_at_once(run: LanguageRun, held_out: int, devices: int) -> int:
    """So many that every device has as many of them as the others; as an update at the most."""
    return min(-(-held_out // devices) * devices, run.prompts_per_update)


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
    weigh: Callable[[Answers], Divergences], ours: Answers, starts: Answers
) -> dict[str, Any]:
    """Exact at every token, over samples of the first distribution: nats per token, and per
    response as a whole."""
    weighed = weigh(ours)
    forward = weighed.policy_to_ref
    backward = (weighed if ours is starts else weigh(starts)).ref_to_policy
    return {
        'kl_policy_to_start': forward.sum() / ours.lengths.sum(),
        'kl_start_to_policy': backward.sum() / starts.lengths.sum(),
        'response_kl_policy_to_start': forward.mean(),
        'response_kl_start_to_policy': backward.mean(),
    }


def _pair_numbers(
    logp_Nx2: jax.Array,
    start_logp_Nx2: jax.Array,
    lengths_Nx2: jax.Array,
    loss: str,
    beta: float,
) -> dict[str, Any]:
    """Implicit rewards of the held-out pairs: how often the chosen one's is larger (equal ones
    count one half), and by how much."""
    reward = pair_losses.implicit_reward(pair_losses.PAIR_LOSSES.get(loss))
    implicit = beta * reward(logp_Nx2, start_logp_Nx2, lengths_Nx2)
    margin = implicit[:, 0] - implicit[:, 1]
    return {
        'pair_accuracy': ((1 + np.sign(margin)) / 2).mean(),
        'pair_margin': margin.mean(),
        'pair_margin_se': margin.std(ddof=1) / len(margin) ** 0.5,
    }
