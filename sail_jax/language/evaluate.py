"""Evaluation on held-out prompts and pairs, on keys of its own, against the start policy."""

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
    greedy = run.evaluation.decoding == 'greedy'
    sampling = run.sampling.greedy if greedy else run.sampling

    @jax.jit
    @at_precision
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
    rows = rows_at_once(run, len(held_out), jax.device_count())
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
    chosen = cache(lambda: _chosen(rater, tokenizer, prompts, held_out))

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
        theirs = chosen() if paired and settings.against_chosen else None
        numbers |= scored.numbers(rater, prompts, ours, starts, theirs)
        if paired:
            pairs = reader.batch(held_out, run.data.max_response_tokens).pairs
            assert pairs is not None
            numbers |= _pairs(weigh(*pairs), pairs, run.objective.loss, float(hyper.beta))
        if run_dir is not None and settings.table_rows and hosts.is_main():
            name = f'{int(policy.statistics):06}.md'
            write_table(run_dir / 'samples' / name, prompts[: settings.table_rows], starts, ours)
        return numbers

    return evaluate


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


def _once(answer: Callable[[Policy, Any, jax.Array], Answers]) -> Callable[..., Answers]:
    """`answer` of the start policy, of which a seed has one: it answers once for a seed."""
    last: list[tuple[int, Answers]] = []

    def answer_once(policy: Policy, shared: Any, seed: jax.Array) -> Answers:
        if not last or last[0][0] != int(seed):
            last[:] = [(int(seed), answer(policy, shared, seed))]
        return last[0][1]

    return answer_once


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
    ours: Weighed, our_answers: Answers, starts: Weighed, start_answers: Answers
) -> dict[str, Any]:
    """Exact at every token, over samples of the first distribution: nats per token, and per
    response as a whole."""
    forward, backward = ours.policy_to_ref, starts.ref_to_policy
    return {
        'kl_policy_to_start': forward.sum() / our_answers.lengths.sum(),
        'kl_start_to_policy': backward.sum() / start_answers.lengths.sum(),
        'response_kl_policy_to_start': forward.mean(),
        'response_kl_start_to_policy': backward.mean(),
    }


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
