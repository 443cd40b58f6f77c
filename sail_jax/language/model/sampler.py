"""Responses drawn from a decoder: a prompt is computed once, its K lanes are decoded together.

A lane's randomness is a function of its row's key, its number and the token's, so a row's sample
depends neither on the rest of the batch nor on its padding (but for float32 rounding where a
matrix product of another size sums in another order).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax.language.config import Sampling
from sail_jax.language.model.attention import (
    Memory,
    as_prefix,
    empty_memory,
    prompt_positions,
    response_positions,
)
from sail_jax.language.model.logprobs import Prompts, last_hidden
from sail_jax.language.model.transformer import Decoder
from sail_jax.training import devices

BLOCK = 128
"""Tokens that are drawn from together."""
HALVINGS, FEWEST = 3, 16
"""Lanes that have ended are left behind as soon as half of those decoded have: so often at most,
and while so many are left. With lengths of a geometric distribution whose mean is a quarter of the
maximum, 1.48 tokens are decoded for each that is kept, 1.72 with two and 4.07 without."""


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
    """The longest length."""
    decoded: jax.Array
    """Tokens that were computed, those of lanes that had ended included."""

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
    Its cache is a loop variable, updated in place; when half of the lanes have ended the others
    go on as rows of their own.

    Args:
      key_B: one key for each prompt; its responses depend on nothing else of the batch.
      group_size: K.
      eos_E: the token ids that end a response; they belong to it.
    """
    B, K, R = len(prompts.lengths_B), group_size, settings.max_tokens
    fold_in = jax.vmap(jax.vmap(jax.random.fold_in))
    lane_BxK = jnp.broadcast_to(jnp.arange(K), (B, K))
    key_BxK = fold_in(jnp.broadcast_to(key_B[:, None], (B, K)), lane_BxK)
    hidden, memory = decoder(
        prompts.tokens_BxP[:, None],
        prompt_positions(prompts.lengths_B, prompts.tokens_BxP.shape[1]),
    )
    weights = decoder.decoding()
    first_BxD = last_hidden(hidden, prompts.lengths_B)
    first_BxKxD = jnp.broadcast_to(first_BxD[:, None], (B, K, first_BxD.shape[-1]))
    record = partial(_record, settings, eos_E)
    responses = record(no_tokens(B, K, R), key_BxK, decoder.last_logits(weights, first_BxKxD))
    positions_BxKxR = response_positions(prompts.lengths_B, K, R)
    lanes = _Lanes(
        responses=responses,
        key_BxK=key_BxK,
        cache=empty_memory(decoder.architecture, positions_BxKxR, decoder.dtype),
        prefix=as_prefix(memory).apart(),
    )

    def step(lanes: _Lanes) -> _Lanes:
        responses, last = lanes.responses, lanes.responses.steps - 1
        token_BxK = jax.lax.dynamic_index_in_dim(responses.tokens_BxKxR, last, -1, keepdims=False)
        hidden_BxKxD, cache = decoder.decode(weights, token_BxK, last, lanes.cache, lanes.prefix)
        logits_BxKxV = decoder.last_logits(weights, hidden_BxKxD)
        responses = record(responses, lanes.key_BxK, logits_BxKxV)
        return lanes._replace(responses=responses, cache=cache)

    split = 1 if decoder.mesh is None else devices.parts(decoder.mesh, devices.ROWS)
    return _decode(decoder, step, lanes, _halvings(B * K, split))


class _Lanes(NamedTuple):
    """What is decoded together."""

    responses: Responses
    key_BxK: jax.Array
    cache: Memory
    prefix: Memory


def no_tokens(B: int, K: int, R: int) -> Responses:
    """Responses without a token."""
    zeros = jnp.zeros((B, K, R))
    return Responses(
        tokens_BxKxR=zeros.astype(jnp.int32),
        lengths_BxK=jnp.zeros((B, K), jnp.int32),
        ended_BxK=jnp.zeros((B, K), bool),
        logp_BxKxR=zeros,
        sampling_logp_BxKxR=zeros,
        steps=jnp.int32(0),
        decoded=jnp.int32(0),
    )


def _halvings(lanes: int, split: int) -> int:
    """How often half of the lanes are left: each time is another copy of the program.

    Args:
      split: parts of equal size that the devices take.
    """
    halvings = 0
    while halvings < HALVINGS and lanes % (2 * split) == 0 and lanes // 2 >= FEWEST:
        halvings, lanes = halvings + 1, lanes // 2
    return halvings


def _decode(
    decoder: Decoder, step: Callable[[_Lanes], _Lanes], lanes: _Lanes, halvings: int
) -> Responses:
    """Decodes until all have ended; as soon as no more than half of the lanes are left, those."""
    B, K, R = lanes.responses.tokens_BxKxR.shape
    few = B * K // 2 if halvings else 0

    def going_on(lanes: _Lanes) -> jax.Array:
        responses = lanes.responses
        return (responses.steps < R) & ((~responses.ended_BxK).sum() > few)

    lanes = jax.lax.while_loop(going_on, step, lanes)
    if not few:
        return lanes.responses
    chosen = jnp.argsort(lanes.responses.ended_BxK.reshape(-1), stable=True)[:few]
    rest = _decode(decoder, step, _only(decoder, lanes, chosen), halvings - 1)

    def put_back(x: jax.Array, of_rest: jax.Array) -> jax.Array:
        if not x.ndim:
            return of_rest
        flat = x.reshape(B * K, *x.shape[2:])
        return flat.at[chosen].set(of_rest[:, 0], unique_indices=True).reshape(x.shape)

    return jax.tree.map(put_back, lanes.responses, rest)


def _only(decoder: Decoder, lanes: _Lanes, chosen_N: jax.Array) -> _Lanes:
    """Some of the lanes, each of them a row."""
    B, K, _ = lanes.responses.tokens_BxKxR.shape

    def of_lane(x: jax.Array, chosen_N: jax.Array = chosen_N) -> jax.Array:
        """[B, K, ...] -> [N, 1, ...]"""
        return decoder.on_mesh(x.reshape(B * K, 1, *x.shape[2:])[chosen_N], devices.ROWS)

    def of_row(x: jax.Array, chosen_N: jax.Array = chosen_N) -> jax.Array:
        """[B, ...] -> [N, ...]"""
        return decoder.on_mesh(x[chosen_N // K], devices.ROWS)

    def of_layer(memory: Memory, prefix: Memory, chosen_N: jax.Array) -> tuple[jax.Array, ...]:
        """Keys and values of the lanes, [N, M, 1, S, H], and of what they continue."""
        own = [of_lane(x.swapaxes(1, 2), chosen_N).swapaxes(1, 2) for x in memory[:2]]
        return *own, *(of_row(x, chosen_N) for x in prefix[:2])

    layers, after_N = [], chosen_N
    for i in range(len(lanes.cache.keys)):
        layer = of_layer(lanes.cache.layer(i), lanes.prefix.layer(i), after_N)
        # One layer after the other: each device is told the chosen lanes of all.
        layer, after_N = jax.lax.optimization_barrier((layer, after_N))
        layers.append(layer)
    keys, values, before_keys, before_values = zip(*layers, strict=True)
    at, before = lanes.cache.positions, lanes.prefix.positions
    return _Lanes(
        responses=jax.tree.map(lambda x: of_lane(x) if x.ndim else x, lanes.responses),
        key_BxK=of_lane(lanes.key_BxK),
        cache=Memory(keys=keys, values=values, positions=of_lane(at)),
        prefix=Memory(keys=before_keys, values=before_values, positions=of_row(before)),
    )


def _record(
    settings: Sampling,
    eos_E: jax.Array,
    responses: Responses,
    key_BxK: jax.Array,
    logits_BxKxV: jax.Array,
) -> Responses:
    """Draws the next token of the lanes that have not ended."""
    t, (B, K) = responses.steps, key_BxK.shape
    fold_in = jax.vmap(jax.vmap(jax.random.fold_in))
    pick = jax.vmap(jax.vmap(lambda key, logits_V: draw(key, logits_V, settings)))
    token, logp, sampling_logp = pick(fold_in(key_BxK, jnp.broadcast_to(t, (B, K))), logits_BxKxV)
    return append(responses, eos_E, token, logp, sampling_logp)


def append(
    responses: Responses,
    eos_E: jax.Array,
    token_BxK: jax.Array,
    logp_BxK: jax.Array,
    sampling_logp_BxK: jax.Array,
) -> Responses:
    """The responses with another token, where they have not ended."""
    (B, K), t = token_BxK.shape, responses.steps
    going_BxK = ~responses.ended_BxK

    def write(to_BxKxR: jax.Array, value_BxK: jax.Array) -> jax.Array:
        written_BxK = jnp.where(going_BxK, value_BxK, 0)
        return to_BxKxR.at[..., t].set(written_BxK.astype(to_BxKxR.dtype))  # Not so with 64 bits.

    return Responses(
        tokens_BxKxR=write(responses.tokens_BxKxR, token_BxK),
        lengths_BxK=responses.lengths_BxK + going_BxK,
        ended_BxK=responses.ended_BxK | (token_BxK[..., None] == eos_E).any(-1),
        logp_BxKxR=write(responses.logp_BxKxR, logp_BxK),
        sampling_logp_BxKxR=write(responses.sampling_logp_BxKxR, sampling_logp_BxK),
        steps=t + 1,
        decoded=responses.decoded + B * K,
    )
