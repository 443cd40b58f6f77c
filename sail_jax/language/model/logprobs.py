"""Log-probabilities and exact per-token KL of responses, a few tokens at a time.

A vocabulary is 50 times wider than a hidden state, so logits of a whole batch are never formed,
forward or backward: a scan over the tokens forms those of a chunk and drops them; the backward
pass forms them again. Chunks run along the last axis of the tokens, so rows may be sharded.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sail_jax.core.types import Compared
from sail_jax.language.model.attention import as_prefix, prompt_positions, response_positions
from sail_jax.language.model.transformer import Decoder, Head

CHUNK = 256
"""Tokens whose logits exist at once. The gradient of `compare` holds about four float32 arrays of
[CHUNK, V]: 0.6 GB for a vocabulary of 152k."""


class Prompts(NamedTuple):
    """Token ids, padded on the right."""

    tokens_BxP: jax.Array
    lengths_B: jax.Array
    """At least 1."""


class Predictions(NamedTuple):
    """A model's distributions over the next token at each of T places: what they follow from,
    since the probabilities of all V words of all places are never held at once."""

    hidden: jax.Array
    """[..., T, D]"""
    head: Head


def predictions(decoder: Decoder, prompts: Prompts, responses_BxLxT: jax.Array) -> Predictions:
    """What the model expects at each place of the responses, [B, L, T, D].

    The prompt is computed once for its L responses. Tokens after a response's end have no
    influence on those before; what stands in their places is to be masked by the lengths.
    """
    B, L, T = responses_BxLxT.shape
    hidden, memory = decoder(
        prompts.tokens_BxP[:, None],
        prompt_positions(prompts.lengths_B, prompts.tokens_BxP.shape[1]),
    )
    first = last_hidden(hidden, prompts.lengths_B)
    positions = response_positions(prompts.lengths_B, L, T)
    # The last token predicts nothing that is asked.
    rest, _ = decoder(responses_BxLxT[..., :-1], positions[..., :-1], as_prefix(memory))
    first = jnp.broadcast_to(first[:, None, None], (B, L, 1, first.shape[-1]))
    return Predictions(jnp.concatenate([first, rest], 2), decoder.head())


def last_hidden(hidden_Bx1xPxD: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """The hidden state of each prompt's last token, [B, D]."""
    index = (lengths_B - 1)[:, None, None]
    return jnp.take_along_axis(hidden_Bx1xPxD[:, 0], index, axis=1)[:, 0]


def log_probs(predicted: Predictions, target: jax.Array, chunk: int = CHUNK) -> jax.Array:
    """Log-probability of each target, float32 [..., T].

    Args:
      target: token ids [..., T].
      chunk: tokens whose logits exist at once, over all rows; at least one place of every row.
    """

    def one(hidden, target):
        return _pick(_log_softmax(predicted.head, hidden), target)

    return _in_chunks(one, (predicted.hidden, target), target.shape, chunk)


def compare(
    policy: Predictions, reference: Predictions, target: jax.Array, chunk: int = CHUNK
) -> Compared:
    """Log-probabilities under both models and the exact KL between them, both directions.

    The KLs cost no matrix product beyond those of the two log-probabilities. Differentiable in the
    policy; the reference is constant. Arguments as of `log_probs`.
    """
    reference = jax.lax.stop_gradient(reference)

    def one(hidden, reference_hidden, target):
        logp_V = _log_softmax(policy.head, hidden)
        reference_logp_V = _log_softmax(reference.head, reference_hidden)
        ratio_V = logp_V - reference_logp_V
        return Compared(
            logp=_pick(logp_V, target),
            reference_logp=_pick(reference_logp_V, target),
            ref_to_policy=-(jnp.exp(reference_logp_V) * ratio_V).sum(-1),
            policy_to_ref=(jnp.exp(logp_V) * ratio_V).sum(-1),
        )

    return _in_chunks(one, (policy.hidden, reference.hidden, target), target.shape, chunk)


def _log_softmax(head: Head, hidden: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(head.logits(hidden))


def _pick(logp: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logp, target[..., None], -1)[..., 0]


def _in_chunks(
    one: Callable[..., Any], arrays: tuple[jax.Array, ...], shape: tuple[int, ...], chunk: int
) -> Any:
    """`one(*arrays)` a few places of the last token axis (`len(shape) - 1`) at a time."""
    axis, T = len(shape) - 1, shape[-1]
    rows = max(1, jnp.size(arrays[-1]) // max(T, 1))
    places = min(T, max(1, chunk // rows))
    parts = -(-T // places)

    def cut(x):
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, parts * places - T)
        x = jnp.pad(x, padding).reshape(*x.shape[:axis], parts, places, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    def join(y):
        y = jnp.moveaxis(y, 0, axis)
        return y.reshape(*y.shape[:axis], parts * places)[..., :T]

    body = jax.checkpoint(lambda args: one(*args), prevent_cse=False)
    return jax.tree.map(join, jax.lax.map(body, jax.tree.map(cut, arrays)))
