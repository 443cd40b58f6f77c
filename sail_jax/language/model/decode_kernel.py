"""Attention of one token of each lane, in one kernel, on NVIDIA's GPUs.

Written out (`attention.attend`) it is ten kernels a layer, each too small for its time to be that
of what it reads: Qwen2.5-0.5B's step was 602 kernels, on an H200 a fifth of the bandwidth.

A program of the kernel has the heads of one lane that share keys and values. It goes through the
prompt's tokens and then through the lane's own, so far as the query sees them; scores stay in
registers. Axes as in `attention`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import Mesh

from sail_jax.language.model.attention import Memory
from sail_jax.language.model.fused import Score, first_device, is_ampere, layouts

BLOCK = 128, 2**14
"""Keys that are scored at once, and numbers in them, at most: shared memory holds a few blocks."""
LEAST_ROWS = 16
"""Of a product on tensor cores."""
HIDDEN = -1e30
"""A score that is not seen; finite, since a whole block may be hidden."""


Step = Callable[[jax.Array, jax.Array, Memory, Memory | None], jax.Array]
"""`(positions, query, memory, prefix)`, as of `attend`."""


class _Refs(NamedTuple):
    """Of a program: `now` and `prompt` are numbers, query and out [rows, H], the others [S, H], all
    in whole blocks."""

    now: Any
    prompt: Any
    query: Any
    keys: Any
    values: Any
    prompt_keys: Any
    prompt_values: Any
    out: Any


def kernel(
    score: Score,
    query: jax.ShapeDtypeStruct,
    mesh: Mesh | None = None,
    heads: str | None = None,
) -> Step | None:
    """The kernel of the devices for such attention, if they have one: for 16 bits, heads of a power
    of two, and scores without a cap, on Ampere and later.

    Args:
      query: shape and type of [B, L, 1, N, H].
      mesh: the devices; None is JAX's first one.
      heads: the axis of the mesh that splits heads, if any.
    """
    H, narrow = query.shape[-1], query.dtype in (jnp.bfloat16, jnp.float16)
    fits = narrow and 16 <= H <= 256 and H & (H - 1) == 0 and score.cap is None
    if not (fits and is_ampere(first_device(mesh))):
        return None
    attention = partial(attend, score=score)
    return attention if mesh is None else over_devices(attention, mesh, query.shape[0], heads)


def over_devices(kernel: Step, mesh: Mesh, rows: int, heads: str | None) -> Step:
    """Each device has its rows and heads."""
    of = layouts(mesh, rows, heads)
    return jax.shard_map(
        kernel,
        mesh=mesh,
        in_specs=(of.memory.positions, of.query, of.memory, of.memory),
        out_specs=of.query,
        check_vma=False,
    )


def attend(
    positions_BxLx1: jax.Array,
    query_BxLx1xNxH: jax.Array,
    memory: Memory,
    prefix: Memory | None,
    *,
    score: Score,
    interpret: bool = False,
) -> jax.Array:
    """Attention of a token over the prompt and those of its lane, itself included: [B, L, 1, N, H].

    Args:
      positions_BxLx1: of the tokens. The lanes' follow the prompt's without a gap.
      memory: keys and values [B, M, L, S, H] of this layer.
      prefix: the same without lanes, [B, M, S, H].
    """
    B, L, _, N, H = query_BxLx1xNxH.shape
    assert prefix is not None  # Nothing is decoded without a prompt.
    M, G = memory.keys.shape[1], N // memory.keys.shape[1]
    rows = max(LEAST_ROWS, pl.next_power_of_2(G))
    places, before = (_whole_blocks(x.keys.shape[-2], H) for x in (memory, prefix))
    number = pl.BlockSpec((None, None), lambda b, m, lane: (b, lane))
    of_heads = pl.BlockSpec((None, None, None, rows, H), lambda b, m, lane: (b, lane, m, 0, 0))
    of_lane = pl.BlockSpec((None, None, None, places, H), lambda b, m, lane: (b, m, lane, 0, 0))
    of_prompt = pl.BlockSpec((None, None, before, H), lambda b, m, lane: (b, m, 0, 0))
    refs = _Refs(number, number, of_heads, of_lane, of_lane, of_prompt, of_prompt, of_heads)
    out = pl.pallas_call(
        lambda *refs: _program(_Refs(*refs), G, score),
        grid=(B, M, L),
        in_specs=refs[:-1],
        out_specs=refs.out,
        out_shape=jax.ShapeDtypeStruct((B, L, M, G, H), query_BxLx1xNxH.dtype),
        interpret=interpret,
        name='attend_one',
        **({} if interpret else {'compiler_params': _compiled()}),
    )(
        positions_BxLx1[..., 0],
        memory.positions[..., 0],
        query_BxLx1xNxH.reshape(B, L, M, G, H),
        memory.keys,
        memory.values,
        prefix.keys,
        prefix.values,
    )
    return out.reshape(B, L, 1, N, H)


def _compiled() -> Any:
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=4, num_stages=2)


class _Sums(NamedTuple):
    """Of the keys so far, for each row: softmax's running sums."""

    out: jax.Array
    """Values weighted, by exp(score - most): [rows, H]."""
    total: jax.Array
    """The weights."""
    most: jax.Array
    """The largest score."""


def _program(refs: _Refs, heads: int, score: Score) -> None:
    from jax.experimental.pallas import triton

    rows, H = refs.query.shape
    there = jnp.arange(rows)[:, None] < heads
    now, prompt = refs.now[()], refs.prompt[()]
    query = triton.load(refs.query.at[:, :], mask=there, other=0.0)
    sums = _Sums(
        out=jnp.zeros((rows, H), jnp.float32),
        total=jnp.zeros(rows, jnp.float32),
        most=jnp.full(rows, HIDDEN, jnp.float32),
    )
    for part in (
        _Keys(refs.prompt_keys, refs.prompt_values, back=now, seen=prompt),
        _Keys(refs.keys, refs.values, back=now - prompt, seen=now - prompt + 1),
    ):
        block = partial(_see, part, query, score)
        sums = jax.lax.fori_loop(*part.blocks(score.window), block, sums)
    out = (sums.out / sums.total[:, None]).astype(refs.out.dtype)
    triton.store(refs.out.at[:, :], out, mask=there)


class _Keys(NamedTuple):
    """A part of what a query looks back on."""

    keys: Any
    values: Any
    back: jax.Array
    """How many positions the first of them lies before the query."""
    seen: jax.Array
    """How many of them there are so far."""

    @property
    def size(self) -> int:
        """Of a block."""
        return _block(*self.keys.shape)

    def blocks(self, window: int) -> tuple[jax.Array | int, jax.Array]:
        """The first block that the query sees, and that behind the last."""
        first = jnp.maximum(self.back - window + 1, 0) // self.size if window else 0
        return first, pl.cdiv(self.seen, self.size)


def _see(part: _Keys, query: jax.Array, score: Score, number: jax.Array, sums: _Sums) -> _Sums:
    """The sums with another block of keys."""
    from jax.experimental.pallas import triton

    places, slots = pl.ds(number * part.size, part.size), number * part.size + jnp.arange(part.size)
    visible = slots < part.seen
    load = lambda ref: triton.load(ref.at[places, :], mask=visible[:, None], other=0.0)
    if score.window:
        visible &= part.back - slots < score.window
    scores = jnp.dot(query, load(part.keys).T, preferred_element_type=jnp.float32) * score.scale
    most = jnp.maximum(sums.most, jnp.where(visible[None], scores, HIDDEN).max(-1))
    weights = jnp.where(visible[None], jnp.exp(scores - most[:, None]), 0.0)
    kept, values = jnp.exp(sums.most - most), load(part.values)
    out = jnp.dot(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return _Sums(
        out=sums.out * kept[:, None] + out,
        total=sums.total * kept + weights.sum(-1),
        most=most,
    )


def _block(places: int, H: int) -> int:
    most, numbers = BLOCK
    return min(most, numbers // H, pl.next_power_of_2(places))


def _whole_blocks(places: int, H: int) -> int:
    """So many places, and up to the end of a block."""
    return pl.cdiv(places, _block(places, H)) * _block(places, H)
