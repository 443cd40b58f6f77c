"""Language as a `Workload` of the core.

The host reads the rows of an update and scores its responses; everything else is compiled. A row's
randomness is a function of (seed, update, row).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sail_jax.core import labellers, objective, pair_losses, update
from sail_jax.core.keys import row_keys, split_rows, update_key
from sail_jax.core.schedule import step_size
from sail_jax.core.types import (
    Batch,
    Compared,
    DrawSample,
    Metrics,
    Policies,
    Preferences,
    Sampled,
    State,
    Workload,
)
from sail_jax.language.config import LanguageRun
from sail_jax.language.model import logprobs, lora, sampler
from sail_jax.language.model.layers import STACKED
from sail_jax.language.model.logprobs import Prompts
from sail_jax.language.model.policy import Decoders
from sail_jax.language.model.sampler import Responses


class Pairs(NamedTuple):
    """The data's responses, the chosen one first."""

    tokens_Bx2xR: jax.Array
    lengths_Bx2: jax.Array


class PromptBatch(NamedTuple):
    """What the host read for an update: the workload's sampler state while a batch is drawn."""

    prompts: Prompts
    pairs: Pairs | None
    """None where no row has the data's responses."""


class LanguageInputs(NamedTuple):
    """What `compare` needs of a batch; leaves lead with the rows."""

    prompts: Prompts
    tokens_BxLxT: jax.Array
    drop_key_B: jax.Array | None = None
    """Of an adapter's dropout; None where it has none."""


class RowKeys(NamedTuple):
    """A row's streams of randomness, [B] each."""

    route: jax.Array
    draw: jax.Array
    reference: jax.Array
    label: jax.Array


def update_keys(key: jax.Array, rows: int) -> RowKeys:
    """Keys of the update's rows."""
    route, draw, reference, label = split_rows(row_keys(key, rows), 4)
    return RowKeys(route=route, draw=draw, reference=reference, label=label)


def drop_keys(key: jax.Array, rows: int) -> jax.Array:
    """Of an adapter's dropout in an update: a stream beside those of `update_keys`."""
    return split_rows(row_keys(key, rows), 5)[4]


def lengths_mask(lengths: jax.Array, size: int) -> jax.Array:
    """True for the first `lengths` of `size` places, [..., size]."""
    return jnp.arange(size) < lengths[..., None]


def make(run: LanguageRun, decoders: Decoders, eos_ids: tuple[int, ...]) -> Workload:
    """Language's functions.

    `sample` leaves the labels empty: they come from the host, by `labelled`.

    Args:
      decoders: of policies.
      eos_ids: the token ids that end a response.
    """

    def predict_reference(policies: Policies, inputs: LanguageInputs) -> jax.Array:
        decoder = decoders.reference(policies.reference, policies.shared)
        return logprobs.predictions(decoder, inputs.prompts, inputs.tokens_BxLxT).hidden

    def compare(
        policies: Policies, reference_hidden: jax.Array, inputs: LanguageInputs
    ) -> Compared:
        policy, reference, shared = policies
        decoder, head = (
            decoders.policy(policy, shared),
            decoders.reference(reference, shared).head(),
        )
        if inputs.drop_key_B is not None:
            decoder = lora.drop(decoder, inputs.drop_key_B, run.model.lora.dropout)
        return logprobs.compare(
            logprobs.predictions(decoder, inputs.prompts, inputs.tokens_BxLxT),
            logprobs.Predictions(reference_hidden, head),
            inputs.tokens_BxLxT,
        )

    parts = run.optimizer.accumulation
    return Workload(
        sample=make_sample(run, decoders, eos_ids),
        predict_reference=in_parts(predict_reference, parts * run.optimizer.minibatches),
        compare=in_parts(compare, parts),
        group_size=run.group_size,
        opponents=run.opponents,
        refresh_updates=run.refresh_updates,
        reference_kept=run.reference.ema,
        stacked=STACKED,
        step_size=step_size(run.optimizer, run.updates),
    )


def in_parts(function: Callable[..., Any], parts: int) -> Callable[..., Any]:
    """`function(policies, *rows)`, in parts of the rows, one after the other; their results have
    rows too.

    In a backward pass a part is computed once more, so that what it keeps exists for one part at a
    time, and the parts' gradients are added up.
    """
    if parts == 1:
        return function

    def of_all(policies: Policies, *rows: Any) -> Any:
        cut = jax.tree.map(partial(update.split_rows, parts=parts), rows)
        one = jax.checkpoint(lambda part: function(policies, *part), prevent_cse=False)
        join = lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])
        return jax.tree.map(join, jax.lax.map(one, cut))

    return of_all


def make_sample(run: LanguageRun, decoders: Decoders, eos_ids: tuple[int, ...]) -> DrawSample:
    """`Workload.sample`: draws the responses of an update, or takes them from the data."""
    K, mixture = run.group_size, run.objective.mixture
    T, ours = run.max_response_tokens, K - run.opponents
    eos_E = jnp.asarray(eos_ids, jnp.int32)

    def fit(x_BxLxR: jax.Array) -> jax.Array:
        return jnp.pad(x_BxLxR, ((0, 0), (0, 0), (0, T - x_BxLxR.shape[-1])))

    def generate(decoder, prompts: Prompts, key_B: jax.Array, lanes: int) -> Responses:
        return sampler.generate(
            decoder, prompts, key_B, group_size=lanes, settings=run.sampling, eos_E=eos_E
        )

    def sample(policies: Policies, rows: PromptBatch, key: jax.Array, labels: jax.Array) -> Sampled:
        policy, reference, shared = policies
        B = len(rows.prompts.lengths_B)
        keys = update_keys(key, B)
        route = objective.route(keys.route, mixture.ddp, mixture.dpp, mixture.dpr)
        on_policy_Bx1 = route.on_policy_B[:, None]
        tokens = jnp.zeros((B, ours, T), jnp.int32)
        lengths = jnp.zeros((B, ours), jnp.int32)
        # 0 for the data's responses, whose rows have no score term that would use it.
        logp = jnp.zeros((B, ours, T))
        metrics = {}
        if run.samples_policy:
            drawn = generate(decoders.policy(policy, shared), rows.prompts, keys.draw, ours)
            tokens, lengths = fit(drawn.tokens_BxKxR), drawn.lengths_BxK
            logp = fit(drawn.logp_BxKxR)
            metrics = _of_samples(drawn, on_policy_Bx1)
        if rows.pairs is not None:
            tokens = jnp.where(on_policy_Bx1[..., None], tokens, fit(rows.pairs.tokens_Bx2xR))
            lengths = jnp.where(on_policy_Bx1, lengths, rows.pairs.lengths_Bx2)
        if run.draws_reference or run.opponents:
            decoder = decoders.reference(reference, shared)
            extra = generate(decoder, rows.prompts, keys.reference, 1)
            tokens = jnp.concatenate([tokens, fit(extra.tokens_BxKxR)], 1)
            lengths = jnp.concatenate([lengths, extra.lengths_BxK], 1)
            logp = jnp.concatenate([logp, fit(extra.logp_BxKxR)], 1)
        empty_BxKxK = jnp.zeros((B, K, K))
        return Sampled(
            batch=Batch(
                inputs=LanguageInputs(
                    prompts=rows.prompts,
                    tokens_BxLxT=tokens,
                    drop_key_B=drop_keys(key, B) if run.model.lora.dropout > 0 else None,
                ),
                behaviour_logp_BxLxT=logp,
                mask_BxLxT=lengths_mask(lengths, T),
                route=route,
                labels=Preferences(prob_BxKxK=empty_BxKxK, weight_BxKxK=empty_BxKxK),
            ),
            sampler=(),
            statistics=policy.statistics + 1,
            labels_asked=jnp.zeros((), jnp.int32),
            metrics={'response_length': lengths[:, :ours].mean(), **metrics},
        )

    return sample


def _of_samples(drawn: Responses, on_policy_Bx1: jax.Array) -> Metrics:
    """How the policy's samples ended, and how far off-policy they are."""
    counted_BxK = jnp.broadcast_to(on_policy_Bx1, drawn.lengths_BxK.shape)
    gap_BxK = (drawn.sampling_logp_BxKxR - drawn.logp_BxKxR).sum(-1)
    tokens = jnp.maximum((drawn.lengths_BxK * counted_BxK).sum(), 1)
    return {
        'ended': (drawn.ended_BxK * counted_BxK).sum() / jnp.maximum(counted_BxK.sum(), 1),
        'sampling_gap': (gap_BxK * counted_BxK).sum() / tokens,
    }


def labelled(
    run: LanguageRun, state: State, sampled: Sampled, scores: jax.Array | Preferences | None
) -> Sampled:
    """The batch with its labels: the labeller's for the policy's responses, the data's for its own.

    Args:
      state: that the batch was drawn from.
      scores: what the labeller goes by: rewards [B, K], or a judge's preferences; what stands in
        rows that it does not label is of no account. None where it labels none.
    """
    route = sampled.batch.route
    B = len(route.on_policy_B)

    def within_budget(labels: Preferences) -> labellers.Budget:
        return labellers.within_budget(
            labels, ~route.policy_label_B, state.labels, run.labeller.max_labels
        )

    # The chosen response stands first.
    labels = Preferences(
        prob_BxKxK=jnp.broadcast_to(jnp.asarray([[0.5, 1.0], [0.0, 0.5]]), (B, 2, 2)),
        weight_BxKxK=jnp.broadcast_to(1 - jnp.eye(2), (B, 2, 2)),
    )
    if scores is not None:
        if not isinstance(scores, Preferences):
            key_B = update_keys(update_key(state.seed, state.step + 1), B).label
            # Rows beyond the budget have no rewards: a typical return is a mean without them.
            everywhere = jnp.ones((B, *[scores.shape[1]] * 2))
            every_pair = Preferences(prob_BxKxK=everywhere, weight_BxKxK=everywhere)
            covered = within_budget(every_pair).preferences
            asked_B = route.on_policy_B & ~route.policy_label_B & covered.weight_BxKxK.any((1, 2))
            asked_BxK = jnp.broadcast_to(asked_B[:, None], scores.shape)
            returns = labellers.Returns(
                true_BxK=scores, perceived_BxK=scores, counted_BxK=asked_BxK
            )
            scores = labellers.label(key_B, returns, run.labeller)
            if pair_losses.needs_rewards(pair_losses.named(run.objective.loss)):
                scores = scores._replace(reward_BxK=returns.true_BxK)
        if run.reads_pairs:
            on_policy_Bx1x1 = route.on_policy_B[:, None, None]
            labels = jax.tree.map(lambda a, b: jnp.where(on_policy_Bx1x1, a, b), scores, labels)
        else:
            labels = scores
    budget = within_budget(labels)
    return sampled._replace(
        batch=sampled.batch._replace(labels=budget.preferences), labels_asked=budget.asked
    )


def trimmed(sampled: Sampled, size: int) -> Sampled:
    """The batch with its responses in `size` places, which hold them all."""
    batch = sampled.batch
    return sampled._replace(
        batch=batch._replace(
            inputs=batch.inputs._replace(tokens_BxLxT=batch.inputs.tokens_BxLxT[..., :size]),
            behaviour_logp_BxLxT=batch.behaviour_logp_BxLxT[..., :size],
            mask_BxLxT=batch.mask_BxLxT[..., :size],
        )
    )
