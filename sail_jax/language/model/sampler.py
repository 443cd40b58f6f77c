"""Responses drawn from a decoder: a prompt is computed once, its K lanes are decoded together.

A lane's randomness is a function of its row's key, its number and the token's, so a row's sample
depends neither on the rest of the batch nor on its padding (but for float32 rounding where a
matrix product of another size sums in another order).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax.language.config import Sampling
from sail_jax.language.model.attention import (
    as_prefix,
    empty_memory,
    prompt_positions,
    response_positions,
)
from sail_jax.language.model.logprobs import Prompts, last_hidden
from sail_jax.language.model.transformer import Decoder

BLOCK = 128
"""Tokens that are drawn from together."""


class Responses(NamedTuple):
    """K responses to each of B prompts, in R places."""

    tokens_BxKxR: jax.Array
    """0 after a response's end."""
    lengths_BxK: jax.Array
    """Of the response, its end of sequence included."""
    ended_BxK: jax.Array
    """Whether it came to an end of sequence, or ran out of places."""
    logp_BxKxR: jax.Array
    """Under the policy itself, whatever the samples were drawn from; 0 after the end. float32."""
    sampling_logp_BxKxR: jax.Array
    """Under the distribution that the samples were drawn from. float32."""
    steps: jax.Array
    """Tokens decoded: the longest length."""

    @property
    def mask_BxKxR(self) -> jax.Array:
        """True for the tokens of the response, from its length."""
        return jnp.arange(self.tokens_BxKxR.shape[-1]) < self.lengths_BxK[..., None]

    @property
    def gap(self) -> jax.Array:
        """How far off-policy the samples are: mean over their tokens of the log-ratio of what they
        were drawn from to the policy. 0 where `Sampling.on_policy`."""
        difference = self.sampling_logp_BxKxR - self.logp_BxKxR
        return difference.sum() / self.lengths_BxK.sum()


def bucket(length: int, smallest: int = 32) -> int:
    """The padded size for a length: a power of two, so that a handful of programs serve all."""
    return max(smallest, 1 << (length - 1).bit_length())


def pad_prompts(prompts: Sequence[Sequence[int]], smallest: int = 32) -> Prompts:
    """Pads token ids on the right to the bucket of the longest; on the host.

    Raises:
      ValueError: if a prompt is empty: nothing would predict the first token.
    """
    lengths: Any = np.asarray([len(prompt) for prompt in prompts], np.int32)  # For devices.
    if not lengths.all():
        raise ValueError(f'prompt {int(lengths.argmin())} is empty')
    tokens: Any = np.zeros((len(prompts), bucket(int(lengths.max()), smallest)), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return Prompts(tokens_BxP=tokens, lengths_B=lengths)


def truncate(logits_V: jax.Array, settings: Sampling) -> jax.Array:
    """Logits after temperature, top-k and then top-p, in this order; -inf where cut off.

    Tokens as probable as the last that is kept are kept too.
    """
    logits_V = logits_V / settings.temperature
    if settings.top_k is not None and settings.top_k < logits_V.shape[-1]:
        least = jax.lax.top_k(logits_V, settings.top_k)[0][-1]
        logits_V = jnp.where(logits_V < least, -jnp.inf, logits_V)
    if settings.top_p < 1:
        ordered_V = jnp.sort(logits_V, descending=True)
        probability_V = jax.nn.softmax(ordered_V)
        within_V = jnp.cumsum(probability_V) - probability_V < settings.top_p
        least = jnp.where(within_V, ordered_V, jnp.inf).min()
        logits_V = jnp.where(logits_V < least, -jnp.inf, logits_V)
    return logits_V


def categorical(key: jax.Array, logits_V: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A token by its probability, and its log-probability.

    First a block of tokens is drawn and then one of it, which takes far fewer random numbers than
    one for each token.
    """
    size = min(BLOCK, logits_V.shape[-1])
    padding = -logits_V.shape[-1] % size
    blocks_NxS = jnp.pad(logits_V, (0, padding), constant_values=-jnp.inf).reshape(-1, size)
    mass_N = jax.nn.logsumexp(blocks_NxS, -1)
    of_block, of_token = jax.random.split(key)
    block = jax.random.categorical(of_block, mass_N)
    token = block * size + jax.random.categorical(of_token, blocks_NxS[block])
    return token, logits_V[token] - jax.nn.logsumexp(mass_N)


def draw(
    key: jax.Array, logits_V: jax.Array, settings: Sampling
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A token, its log-probability under the policy, and under what it was drawn from."""
    token, sampling_logp = categorical(key, truncate(logits_V, settings))
    if settings.on_policy:
        return token, sampling_logp, sampling_logp
    return token, logits_V[token] - jax.nn.logsumexp(logits_V), sampling_logp


def generate(
    decoder: Decoder,
    prompts: Prompts,
    key_B: jax.Array,
    *,
    group_size: int,
    settings: Sampling,
    eos_E: jax.Array,
) -> Responses:
    """Draws K responses to each prompt. Pure; to be called in a compiled function.

    The K lanes read one copy of the prompt's keys and values. The loop ends when every lane has.
    Its cache is a loop variable, updated in place.

    Args:
      key_B: one key for each prompt; its responses depend on nothing else of the batch.
      group_size: K.
      eos_E: the token ids that end a response; they belong to it.
    """
    B, K, R = len(prompts.lengths_B), group_size, settings.max_tokens
    record = _recorder(decoder, key_B, group_size, settings, eos_E)
    hidden, memory = decoder(
        prompts.tokens_BxP[:, None],
        prompt_positions(prompts.lengths_B, prompts.tokens_BxP.shape[1]),
    )
    prefix, blocks = as_prefix(memory).apart(), decoder.blocks()
    positions_BxKxR = response_positions(prompts.lengths_B, K, R)
    first_BxD = last_hidden(hidden, prompts.lengths_B)
    zeros = jnp.zeros((B, K, R))
    responses = Responses(
        tokens_BxKxR=zeros.astype(jnp.int32),
        lengths_BxK=jnp.zeros((B, K), jnp.int32),
        ended_BxK=jnp.zeros((B, K), bool),
        logp_BxKxR=zeros,
        sampling_logp_BxKxR=zeros,
        steps=jnp.int32(0),
    )
    first_BxKxD = jnp.broadcast_to(first_BxD[:, None], (B, K, first_BxD.shape[-1]))
    responses = record(responses, first_BxKxD)

    def going_on(carry):
        responses, _ = carry
        return (responses.steps < R) & ~responses.ended_BxK.all()

    def step(carry):
        responses, cache = carry
        last = responses.steps - 1
        token_BxK = jax.lax.dynamic_index_in_dim(responses.tokens_BxKxR, last, -1, keepdims=False)
        hidden_BxKxD, cache = decoder.decode(blocks, token_BxK, last, cache, prefix)
        return record(responses, hidden_BxKxD), cache

    cache = empty_memory(decoder.architecture, positions_BxKxR, decoder.dtype)
    return jax.lax.while_loop(going_on, step, (responses, cache))[0]


def _recorder(
    decoder: Decoder, key_B: jax.Array, group_size: int, settings: Sampling, eos_E: jax.Array
) -> Callable[[Responses, jax.Array], Responses]:
    """Draws the next token of the lanes that have not ended: `(responses, hidden states [B, K, D])
    -> responses`; arguments as of `generate`."""
    B, K = len(key_B), group_size
    fold_in = jax.vmap(jax.vmap(jax.random.fold_in))
    key_BxK = fold_in(
        jnp.broadcast_to(key_B[:, None], (B, K)), jnp.broadcast_to(jnp.arange(K), (B, K))
    )
    pick = jax.vmap(jax.vmap(lambda key, logits_V: draw(key, logits_V, settings)))

    def record(responses: Responses, hidden_BxKxD: jax.Array) -> Responses:
        t = responses.steps
        token_key_BxK = fold_in(key_BxK, jnp.broadcast_to(t, (B, K)))
        token, logp, sampling_logp = pick(token_key_BxK, decoder.logits(hidden_BxKxD))
        going_BxK = ~responses.ended_BxK

        def write(to_BxKxR: jax.Array, value_BxK: jax.Array) -> jax.Array:
            return to_BxKxR.at[..., t].set(jnp.where(going_BxK, value_BxK, 0))

        return Responses(
            tokens_BxKxR=write(responses.tokens_BxKxR, token),
            lengths_BxK=responses.lengths_BxK + going_BxK,
            ended_BxK=responses.ended_BxK | (token[..., None] == eos_E).any(-1),
            logp_BxKxR=write(responses.logp_BxKxR, logp),
            sampling_logp_BxKxR=write(responses.sampling_logp_BxKxR, sampling_logp),
            steps=t + 1,
        )

    return record
