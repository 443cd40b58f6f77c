"""Contrastive search (arXiv 2202.06417): of the k most probable tokens the one that is probable and
whose hidden state is unlike all those before it.

`(1 - alpha) p(v) - alpha max_j cos(h_v, h_j)`, h being hidden states behind the final norm, those
of the prompt included, as in `transformers`. The k candidates are decoded as lanes of one row,
which differ in their last token alone.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sail_jax.language.model.attention import (
    Memory,
    as_prefix,
    empty_memory,
    prompt_positions,
    response_positions,
)
from sail_jax.language.model.logprobs import Prompts, last_hidden
from sail_jax.language.model.sampler import Responses, append, no_tokens
from sail_jax.language.model.transformer import Decoder

ALPHA, CANDIDATES = 0.6, 4
"""The authors' values."""


class _Search(NamedTuple):
    responses: Responses
    logits_BxV: jax.Array
    directions_BxSxD: jax.Array
    """Of the hidden states so far, of length 1: P places of the prompt, and R of the response."""
    cache: Memory


def generate(
    decoder: Decoder,
    prompts: Prompts,
    *,
    max_tokens: int,
    eos_E: jax.Array,
    alpha: ArrayLike = ALPHA,
) -> Responses:
    """The response to each prompt, K = 1. Pure; to be called in a compiled function.

    Of the responses' log-probabilities under what they were drawn from all are 0.

    Args:
      max_tokens: R.
      eos_E: the token ids that end a response; they belong to it.
    """
    B, P, R = *prompts.tokens_BxP.shape, max_tokens
    k = min(CANDIDATES, decoder.architecture.vocab_size)
    hidden_Bx1xPxD, memory = decoder(
        prompts.tokens_BxP[:, None], prompt_positions(prompts.lengths_B, P)
    )
    weights, prefix = decoder.decoding(), as_prefix(memory).apart()
    last_Bx1xD = last_hidden(hidden_Bx1xPxD, prompts.lengths_B)[:, None]
    positions_BxkxR = response_positions(prompts.lengths_B, k, R)
    of_prompt_BxP = jnp.arange(P) < prompts.lengths_B[:, None]
    start = _Search(
        responses=no_tokens(B, 1, R),
        logits_BxV=decoder.last_logits(weights, last_Bx1xD)[:, 0],
        directions_BxSxD=jnp.pad(_direction(hidden_Bx1xPxD[:, 0]), ((0, 0), (0, R), (0, 0))),
        cache=empty_memory(decoder.architecture, positions_BxkxR, decoder.dtype),
    )

    def step(search: _Search) -> _Search:
        t = search.responses.steps
        logp_BxV = jax.nn.log_softmax(search.logits_BxV)
        logp_Bxk, token_Bxk = jax.lax.top_k(logp_BxV, k)
        hidden_BxkxD, cache = decoder.decode(weights, token_Bxk, t, search.cache, prefix)
        direction_BxkxD = _direction(hidden_BxkxD)
        before_BxS = jnp.concatenate([of_prompt_BxP, jnp.tile(jnp.arange(R) < t, (B, 1))], 1)
        likeness_Bxk = _likeness(direction_BxkxD, search.directions_BxSxD, before_BxS)
        chosen_B = ((1 - alpha) * jnp.exp(logp_Bxk) - alpha * likeness_Bxk).argmax(-1)
        pick = partial(_of_chosen, chosen_B=chosen_B)
        responses = append(
            search.responses, eos_E, pick(token_Bxk), pick(logp_Bxk), jnp.zeros((B, 1))
        )
        return _Search(
            responses=responses._replace(decoded=search.responses.decoded + B * k),
            logits_BxV=decoder.last_logits(weights, pick(hidden_BxkxD))[:, 0],
            directions_BxSxD=jax.lax.dynamic_update_slice_in_dim(
                search.directions_BxSxD, pick(direction_BxkxD), P + t, axis=1
            ),
            cache=_agreed(cache, chosen_B, t),
        )

    def going_on(search: _Search) -> jax.Array:
        return (search.responses.steps < R) & ~search.responses.ended_BxK.all()

    return jax.lax.while_loop(going_on, step, start).responses


def _direction(hidden: jax.Array) -> jax.Array:
    """Of length 1, float32."""
    hidden = hidden.astype(jnp.float32)
    return hidden / jnp.linalg.norm(hidden, axis=-1, keepdims=True)


def _likeness(new_BxkxD: jax.Array, past_BxSxD: jax.Array, there_BxS: jax.Array) -> jax.Array:
    """The largest cosine of each candidate with what is there before it, [B, k]."""
    cosine_BxkxS = jnp.einsum('bkd,bsd->bks', new_BxkxD, past_BxSxD, precision='highest')
    return jnp.where(there_BxS[:, None], cosine_BxkxS, -jnp.inf).max(-1)


def _of_chosen(x: jax.Array, chosen_B: jax.Array, axis: int = 1) -> jax.Array:
    """Each row's chosen candidate, the axis kept with size 1."""
    index = chosen_B.reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.take_along_axis(x, index, axis)


def _agreed(cache: Memory, chosen_B: jax.Array, t: jax.Array) -> Memory:
    """The cache in which every lane's token t is that of the row's chosen lane."""

    def spread(x_BxMxkxSxH: jax.Array) -> jax.Array:
        tokens = jax.lax.dynamic_slice_in_dim(x_BxMxkxSxH, t, 1, axis=3)
        token = _of_chosen(tokens, chosen_B, axis=2)
        return jax.lax.dynamic_update_slice_in_dim(
            x_BxMxkxSxH, jnp.broadcast_to(token, tokens.shape), t, axis=3
        )

    return cache._replace(
        keys=tuple(map(spread, cache.keys)), values=tuple(map(spread, cache.values))
    )
