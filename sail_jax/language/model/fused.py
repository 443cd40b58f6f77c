"""Causal attention in one kernel, which never writes scores to memory: cuDNN's on NVIDIA's GPUs,
splash attention on TPUs.

Axes as in `attention`. Both take tokens in their order, so a response follows its prompt without a
gap: for cuDNN it is moved to where the prompt ends, and splash passes over the padding between.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sail_jax.language.model.attention import NOWHERE, Memory
from sail_jax.training import devices

TILE = 128
"""Tokens that splash attention goes through at once at least."""
LARGEST_TILE = 512


class Score(NamedTuple):
    """How a query scores the keys it sees; all layers' alike."""

    scale: float
    cap: float | None
    window: int
    """See `attention.Scoring`; 0 for all."""


Kernel = Callable[[jax.Array, Memory, Memory | None], jax.Array]
"""`(query, memory, prefix)`, as of `attention.attend`, of tokens whose positions follow each other:
[B, L, T, N, H]."""


def kernel(
    score: Score,
    query: jax.ShapeDtypeStruct,
    mesh: Mesh | None = None,
    heads: str | None = None,
    follows: bool = False,
) -> Kernel | None:
    """The kernel of the devices for such attention, if they have one.

    Args:
      query: shape and type of [B, L, T, N, H].
      mesh: the devices; None is JAX's first one.
      heads: the axis of the mesh that splits heads, if any.
      follows: whether the tokens follow a prompt.
    """
    device = first_device(mesh)
    # Splash's windows are of places, and behind a prompt there is padding.
    if device.platform == 'tpu' and not (follows and score.window):
        attention = splash
    elif is_ampere(device) and _has_cudnn(query) and score.cap is None:
        attention = cudnn
    else:
        return None

    whole = partial(attention, score=score)
    return whole if mesh is None else over_devices(whole, mesh, query, heads, follows)


def over_devices(
    kernel: Kernel, mesh: Mesh, query: jax.ShapeDtypeStruct, heads: str | None, follows: bool
) -> Kernel:
    """Each device has its rows and heads."""
    of = layouts(mesh, query.shape[0], heads)
    return jax.shard_map(
        kernel,
        mesh=mesh,
        in_specs=(of.query, of.memory, of.memory if follows else None),
        out_specs=of.query,
        check_vma=False,
    )


class Layouts(NamedTuple):
    """How what attention takes lies on a mesh."""

    query: Any
    """Of what attention gives, too."""
    memory: Memory


def layouts(mesh: Mesh, rows: int, heads: str | None) -> Layouts:
    """Each device has its rows and heads; all have all rows where they do not divide."""
    of_rows: Any = devices.ROWS if rows % devices.parts(mesh, devices.ROWS) == 0 else None
    split: Any = P(of_rows, heads)
    positions: Any = P(of_rows)
    memory = Memory(keys=split, values=split, positions=positions)
    return Layouts(query=P(of_rows, None, None, heads), memory=memory)


def first_device(mesh: Mesh | None) -> Any:
    """The first of the devices; JAX's where there is no mesh."""
    return jax.devices()[0] if mesh is None else mesh.devices.flat[0]


def is_ampere(device: Any) -> bool:
    """Whether it is a GPU of NVIDIA's, of that generation or later."""
    nvidia = device.platform == 'gpu' and 'NVIDIA' in device.device_kind
    return nvidia and float(device.compute_capability) >= 8


def _has_cudnn(query: jax.ShapeDtypeStruct) -> bool:
    """cuDNN's attention takes 16 bits and heads of at most 128."""
    narrow, H = query.dtype in (jnp.bfloat16, jnp.float16), query.shape[-1]
    return narrow and H <= 128 and H % 8 == 0


def reach(windows: tuple[int, ...], size: int) -> int | None:
    """The one window that all layers have among `size` tokens, 0 where they see all of them; None
    where they differ."""
    within = {window if window < size else 0 for window in windows or (0,)}
    return within.pop() if len(within) == 1 else None


def cudnn(
    query_BxLxTxNxH: jax.Array,
    memory: Memory,
    prefix: Memory | None,
    score: Score,
    implementation: Literal['cudnn', 'xla'] = 'cudnn',
) -> jax.Array:
    """Attention over each lane's prompt and tokens one after the other, [B, L, T, N, H].

    Of the prompt's tokens there are no queries, but places for them.
    """
    B, L, T, N, H = query_BxLxTxNxH.shape
    query = query_BxLxTxNxH.reshape(B * L, T, N, H)
    own = [jnp.moveaxis(x, 1, 3).reshape(B * L, T, -1, H) for x in (memory.keys, memory.values)]
    shift = jnp.zeros(B * L, jnp.int32)
    if prefix is not None:
        shift = jnp.repeat((prefix.positions != NOWHERE).sum(-1), L)
        before = [jnp.repeat(x.swapaxes(1, 2), L, axis=0) for x in (prefix.keys, prefix.values)]
        size = before[0].shape[1]
        is_before = jnp.arange(size + T) < shift[:, None]

        def follow(prompt: jax.Array, x: jax.Array) -> jax.Array:
            prompt = jnp.pad(prompt, ((0, 0), (0, T), (0, 0), (0, 0)))
            return jnp.where(is_before[..., None, None], prompt, _later(x, shift, size))

        own = [follow(prompt, x) for prompt, x in zip(before, own, strict=True)]
        query = _later(query, shift, size)
    out = jax.nn.dot_product_attention(
        query,
        *own,
        scale=score.scale,
        is_causal=True,
        local_window_size=(score.window - 1, 0) if score.window else None,
        implementation=implementation,
    )
    if prefix is not None:
        out = _turn(out, -shift)[:, :T]
    return out.reshape(B, L, T, N, H)


def _later(x: jax.Array, shift: jax.Array, more: int) -> jax.Array:
    """Each row's tokens, `shift` of `more` places later."""
    return _turn(jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))), shift)


@jax.custom_vjp
def _turn(x: jax.Array, shift: jax.Array) -> jax.Array:
    """Each row's places moved by its shift, in a circle."""
    size = x.shape[1]
    index = (jnp.arange(size) - shift[:, None]) % size
    return jnp.take_along_axis(x, index[..., None, None], axis=1)


# Turned back: transposed by the compiler, it would be a scatter.
_turn.defvjp(lambda x, shift: (_turn(x, shift), shift), lambda shift, g: (_turn(g, -shift), None))


def splash(
    query_BxLxTxNxH: jax.Array,
    memory: Memory,
    prefix: Memory | None,
    score: Score,
    interpret: bool = False,
) -> jax.Array:
    """Attention over the prompt's places and then each lane's own tokens, [B, L, T, N, H].

    The prompt's padding belongs to another segment than what looks back on it.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    B, L, T, N, H = query_BxLxTxNxH.shape
    query = _tiled(query_BxLxTxNxH.transpose(0, 1, 3, 2, 4) * score.scale)
    own = [_tiled(x.swapaxes(1, 2)) for x in (memory.keys, memory.values)]
    places, before, segments = query.shape[3], 0, None
    if prefix is not None:

        def together(prompt: jax.Array, x: jax.Array) -> jax.Array:
            prompt = _tiled(prompt)[:, None]
            return jnp.concatenate([jnp.broadcast_to(prompt, (B, L, *prompt.shape[2:])), x], 3)

        prompts = prefix.keys, prefix.values
        own = [together(prompt, x) for prompt, x in zip(prompts, own, strict=True)]
        before = own[0].shape[3] - places
        missing = before - prefix.positions.shape[1]
        padded = jnp.pad(prefix.positions, ((0, 0), (0, missing)), constant_values=NOWHERE)
        is_padding = jnp.pad(padded == NOWHERE, ((0, 0), (0, places)))
        segments = kernels.SegmentIds(
            q=jnp.zeros((B * L, places), jnp.int32),
            kv=jnp.repeat(is_padding.astype(jnp.int32), L, axis=0),
        )
    shape = places, before + places
    if score.window:
        mask = masks.LocalMask(shape, (score.window - 1, 0), offset=before)
    else:
        mask = masks.CausalMask(shape, offset=before)
    q, kv = (next(n for n in (LARGEST_TILE, 256, TILE) if size % n == 0) for size in shape)
    run: Any = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * N),
        block_sizes=kernels.BlockSizes(
            block_q=q,
            block_kv=kv,
            block_q_dkv=q,
            block_kv_dkv=kv,
            block_q_dq=q,
            block_kv_dq=kv,
        ),
        attn_logits_soft_cap=score.cap,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    flat = [x.reshape(B * L, *x.shape[2:]) for x in (query, *own)]
    out: Any = jax.vmap(run)(*flat, segments)
    return out.reshape(B, L, N, places, H)[..., :T, :].swapaxes(2, 3)


def _tiled(x: jax.Array) -> jax.Array:
    """Tokens [..., T, H] padded to whole tiles."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, -x.shape[-2] % TILE), (0, 0)])
