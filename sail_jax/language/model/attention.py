"""Causal attention over a lane's tokens and the prompt that lanes share.

Axes: B prompts, L lanes (the K responses to one prompt; 1 for the prompt itself), T tokens in, S
tokens attended to, N heads = G groups x M key-value heads, H entries of a head.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sail_jax.language.model.architecture import Architecture

NOWHERE = 2**30
"""Position of padding: after every token, so that causality hides it."""


class Memory(NamedTuple):
    """Keys and values of all layers, [layers, B, M, (L,) S, H] or a tuple of the layers'; a prefix
    has no lanes."""

    keys: Any
    values: Any
    positions: jax.Array
    """[B, (L,) S]"""

    def layer(self, index: int) -> 'Memory':
        """One layer's."""
        return self._replace(keys=self.keys[index], values=self.values[index])

    def apart(self) -> 'Memory':
        """With the layers as a tuple, for decoding: each is read and written where it lies."""
        return self._replace(keys=tuple(self.keys), values=tuple(self.values))

    def write(self, index: jax.Array, keys: jax.Array, values: jax.Array) -> 'Memory':
        """A layer's, with the keys and values [B, L, 1, M, H] of the token at `index`, in place."""

        def written(to: jax.Array, value: jax.Array) -> jax.Array:
            # Fused into what reads it, the update would no longer be in place.
            return jax.lax.optimization_barrier(
                jax.lax.dynamic_update_slice_in_dim(to, value, index, axis=-2)
            )

        keys, values = _by_heads(keys), _by_heads(values)
        return self._replace(keys=written(self.keys, keys), values=written(self.values, values))


def _by_heads(x_BxLxTxMxH: jax.Array) -> jax.Array:
    """[B, M, L, T, H], as the products of attention read keys and values."""
    return jnp.moveaxis(x_BxLxTxMxH, 3, 1)


def prompt_positions(lengths_B: jax.Array, size: int) -> jax.Array:
    """0, 1, ... for the prompt's tokens, `NOWHERE` after them: [B, 1, size]."""
    return lane_positions(lengths_B[:, None], size)


def lane_positions(lengths_BxL: jax.Array, size: int) -> jax.Array:
    """The same of L sequences that stand by themselves: [B, L, size]."""
    slots = jnp.arange(size)
    return jnp.where(slots < lengths_BxL[..., None], slots, NOWHERE)


def response_positions(lengths_B: jax.Array, lanes: int, size: int) -> jax.Array:
    """Positions of `size` tokens that follow prompts of these lengths: [B, lanes, size]."""
    positions_BxT = lengths_B[:, None] + jnp.arange(size)
    return jnp.broadcast_to(positions_BxT[:, None], (len(lengths_B), lanes, size))


def as_prefix(memory: Memory) -> Memory:
    """The memory of a prompt (one lane), of a layer or all, as what its lanes continue."""
    return Memory(
        keys=memory.keys[..., 0, :, :],
        values=memory.values[..., 0, :, :],
        positions=memory.positions[:, 0],
    )


def empty_memory(
    architecture: Architecture, positions_BxLxS: jax.Array, dtype: jnp.dtype
) -> Memory:
    """Room for the tokens at these positions, for decoding."""
    a = architecture
    B, L, S = positions_BxLxS.shape

    def room() -> tuple[jax.Array, ...]:
        shape = (B, a.kv_heads, L, S, a.head_dim)
        return tuple(jnp.zeros(shape, dtype) for _ in range(a.layers))

    return Memory(keys=room(), values=room(), positions=positions_BxLxS)


def together(arrays: Sequence[jax.Array]) -> jax.Array:
    """Of several arrays [B, L, T, ...] the tokens one after the other as those of one lane."""
    if len(arrays) == 1:
        return arrays[0]
    return jnp.concatenate([x.reshape(x.shape[0], 1, -1, *x.shape[3:]) for x in arrays], 2)


def apart(x: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """What `together` made of arrays [B, L, T, ...], of which `shapes` has the first three."""
    if len(shapes) == 1:
        return [x]
    ends = itertools.accumulate(L * T for _, L, T in shapes)
    parts = jnp.split(x, list(ends)[:-1], axis=2)
    return [part.reshape(*shape, *x.shape[3:]) for part, shape in zip(parts, shapes, strict=True)]


class Scoring(NamedTuple):
    """How a layer scores what a query sees."""

    window: jax.Array
    """Positions to look back on, itself included; 0 for all."""
    scale: float
    """Of the products of queries and keys."""
    cap: float | None = None
    """Scores are bent to lie within +-cap, `cap * tanh(score / cap)`."""
    kernel: Callable[..., jax.Array] | None = None
    """`(query, memory, prefix)`, as of `attend`: computes all of it instead; see `fused`."""


def attend(
    query_BxLxTxNxH: jax.Array,
    positions_BxLxT: jax.Array,
    memory: Memory,
    prefix: Memory | None,
    scoring: Scoring,
) -> jax.Array:
    """Causal attention of one layer over a lane's own tokens and the prefix its lanes share.

    Lanes of a group read one copy of the prefix. Softmax in float32 over both parts at once.

    Args:
      memory: keys and values [B, M, L, S, H] of this layer.
      prefix: the same without lanes, [B, M, S, H]; or None.

    Returns:
      [B, L, T, N * H].
    """
    B, L, T, N, H = query_BxLxTxNxH.shape
    if scoring.kernel is not None:
        return scoring.kernel(query_BxLxTxNxH, memory, prefix).reshape(B, L, T, N * H)
    M = memory.keys.shape[1]
    G = N // M
    query = query_BxLxTxNxH.reshape(B, L, T, M, G, H).transpose(0, 3, 1, 2, 4, 5) * scoring.scale
    # Of every key-value head, the rows that read it: of a lane, and of a group for its prefix.
    of_lane, of_group = (B, M, L, T * G), (B, M, L * T * G)

    def scores(query: jax.Array, keys: jax.Array, key_positions: jax.Array) -> jax.Array:
        """[B, M, L, T, G, S]"""
        score = jnp.matmul(query, keys.swapaxes(-1, -2), preferred_element_type=jnp.float32)
        if scoring.cap is not None:
            score = scoring.cap * jnp.tanh(score / scoring.cap)
        back, window = positions_BxLxT[..., :, None] - key_positions[..., None, :], scoring.window
        visible = (back >= 0) & ((back < window) | (window == 0))
        score = score.reshape(B, M, L, T, G, -1)
        return jnp.where(visible[:, None, :, :, None], score, jnp.finfo(jnp.float32).min)

    score = scores(query.reshape(*of_lane, H), memory.keys, memory.positions)
    if prefix is not None:
        before = scores(query.reshape(*of_group, H), prefix.keys, prefix.positions[:, None])
        score = jnp.concatenate([score, before], -1)
    weight = jax.nn.softmax(score, -1).astype(query.dtype)
    S = memory.keys.shape[-2]
    out = jnp.matmul(weight[..., :S].reshape(*of_lane, S), memory.values)
    out = out.reshape(B, M, L, T, G, H)
    if prefix is not None:
        shared = jnp.matmul(weight[..., S:].reshape(*of_group, -1), prefix.values)
        out += shared.reshape(out.shape)
    return out.transpose(0, 2, 3, 1, 4, 5).reshape(B, L, T, N * H)


def attend_parts(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    positions: Sequence[jax.Array],
    scoring: Sequence[Scoring],
    first: Memory | None = None,
) -> tuple[jax.Array, Memory]:
    """Causal attention of one layer over parts of which the later ones continue the first, a prompt
    and its lanes, say.

    Args:
      query, keys, values: of the parts `together`, [B, L, T, heads, H].
      positions, scoring: of each part.
      first: the memory of the first part, if that is not one of them.

    Returns:
      What `attend` gives of the parts together, and the memory of the first.
    """
    shapes, out = [at.shape for at in positions], []
    each = zip(*(apart(x, shapes) for x in (query, keys, values)), positions, scoring, strict=True)
    for q, k, v, at, score in each:
        memory = Memory(keys=_by_heads(k), values=_by_heads(v), positions=at)
        out.append(attend(q, at, memory, first and as_prefix(first), score))
        first = first or memory
    assert first is not None
    return together(out), first
