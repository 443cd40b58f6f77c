"""One decoder for the Llama family, in Flax NNX: layers stacked along an axis and scanned.

Axes: B prompts, L lanes (the K responses to one prompt; 1 for the prompt itself), T tokens in, S
tokens attended to, D width, N heads = G groups x M key-value heads, H entries of a head, V words.
Modules and parameters are named as in Hugging Face's checkpoints.

A prompt is computed once, as one lane with `positions_BxLxT = prompt_positions(...)`; its keys and
values are then the `prefix` of every lane that continues it. Sampling and training share this, so
the log-probabilities that training recomputes are the sampler's. Nothing is ever masked by token
id: padding is a position that no query reaches.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sail_jax import devices
from sail_jax.language.architecture import Architecture, Rope

NOWHERE = 2**30
"""Position of padding: after every token, so that causality hides it."""


class Memory(NamedTuple):
    """Keys and values of all layers, [layers, B, (L,) M, S, H]; a prefix has no lanes."""

    keys: jax.Array
    values: jax.Array
    positions: jax.Array
    """[B, (L,) S]"""


class Slot(NamedTuple):
    """Where decoding writes: `memory` has room for every token to come."""

    memory: Memory
    index: jax.Array
    """Slot of the token that comes in, one for all rows."""


def prompt_positions(lengths_B: jax.Array, size: int) -> jax.Array:
    """0, 1, ... for the prompt's tokens, `NOWHERE` after them: [B, 1, size]."""
    slots = jnp.arange(size)
    return jnp.where(slots < lengths_B[:, None], slots, NOWHERE)[:, None]


def response_positions(lengths_B: jax.Array, lanes: int, size: int) -> jax.Array:
    """Positions of `size` tokens that follow prompts of these lengths: [B, lanes, size]."""
    positions_BxT = lengths_B[:, None] + jnp.arange(size)
    return jnp.broadcast_to(positions_BxT[:, None], (len(lengths_B), lanes, size))


def as_prefix(memory: Memory) -> Memory:
    """The memory of a prompt (one lane) as what its lanes continue."""
    keys, values = memory.keys[:, :, 0], memory.values[:, :, 0]
    return Memory(keys, values, memory.positions[:, 0])


def empty_memory(
    architecture: Architecture, positions_BxLxS: jax.Array, dtype: jnp.dtype
) -> Memory:
    """Room for the tokens at these positions."""
    a = architecture
    B, L, S = positions_BxLxS.shape
    shape = (a.layers, B, L, a.kv_heads, S, a.head_dim)
    return Memory(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), positions_BxLxS)


def frequencies(rope: Rope, head_dim: int) -> jax.Array:
    """Radians per position of each pair of entries, float32 [H / 2].

    `llama3` (Llama 3.1, section 3.2 of arXiv 2407.21783, as its configuration parametrises it):
    wavelengths above `original / low_freq_factor` are stretched by `factor`, those below
    `original / high_freq_factor` kept, and those between interpolated.
    """
    frequency = 1 / rope.theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    match rope.kind:
        case 'default':
            return frequency
        case 'linear':
            return frequency / rope.factor
    turns = rope.original_max_position_embeddings * frequency / (2 * jnp.pi)
    keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = jnp.clip(keep, 0, 1)
    return frequency * (keep + (1 - keep) / rope.factor)


def rotate(x_BxLxTxNxH: jax.Array, angle_BxLxTxH: jax.Array) -> jax.Array:
    """Rotary embedding, the first half of the entries paired with the second; in float32."""
    cos, sin = jnp.cos(angle_BxLxTxH)[..., None, :], jnp.sin(angle_BxLxTxH)[..., None, :]
    a, b = jnp.split(x_BxLxTxNxH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    return rotated.astype(x_BxLxTxNxH.dtype)


def attend(
    query_BxLxTxNxH: jax.Array,
    positions_BxLxT: jax.Array,
    own: Memory,
    prefix: Memory | None,
    window: jax.Array,
) -> jax.Array:
    """Causal attention of one layer over a lane's own tokens and the prefix its lanes share.

    Lanes of a group read one copy of the prefix. Softmax in float32 over both parts at once.

    Args:
      own: keys and values [B, L, M, S, H] of this layer.
      prefix: the same without lanes, [B, M, S, H]; or None.
      window: positions to look back on, itself included; 0 for all.

    Returns:
      [B, L, T, N * H].
    """
    B, L, T, N, H = query_BxLxTxNxH.shape
    M = own.keys.shape[-3]
    query = query_BxLxTxNxH.reshape(B, L, T, M, N // M, H) * H**-0.5

    def scores(memory: Memory, letters: str) -> jax.Array:
        score = jnp.einsum(
            f'bltmgh,{letters}msh->blmtgs',
            query,
            memory.keys,
            preferred_element_type=jnp.float32,
        )
        key_BxLxS = memory.positions if letters == 'bl' else memory.positions[:, None]
        back = positions_BxLxT[..., :, None] - key_BxLxS[..., None, :]
        visible = (back >= 0) & ((back < window) | (window == 0))
        return jnp.where(visible[:, :, None, :, None], score, jnp.finfo(jnp.float32).min)

    parts = [(own, 'bl')] if prefix is None else [(own, 'bl'), (prefix, 'b')]
    weight = jax.nn.softmax(jnp.concatenate([scores(*part) for part in parts], -1), -1)
    weight = weight.astype(query.dtype)
    weights = jnp.split(weight, [own.keys.shape[-2]], -1)
    out = sum(
        jnp.einsum(f'blmtgs,{letters}msh->bltmgh', weight, memory.values)
        for weight, (memory, letters) in zip(weights, parts, strict=False)
    )
    return out.reshape(B, L, T, N * H)


class Linear(nnx.Linear):
    """A linear map, with a low-rank adapter beside it where `lora.add` put one."""

    lora_a: nnx.LoRAParam | None = None
    """[in, rank]"""
    lora_b: nnx.LoRAParam | None = None
    """[rank, out]"""
    lora_scale: float = 0.0

    def __call__(self, x: jax.Array) -> jax.Array:
        y = super().__call__(x)
        if self.lora_a is None:
            return y
        a, b = self.lora_a[...].astype(y.dtype), self.lora_b[...].astype(y.dtype)
        return y + (x @ a @ b) * self.lora_scale


class Attention(nnx.Module):
    """Grouped-query self-attention."""

    def __init__(self, a: Architecture, linear, norm, rngs: nnx.Rngs):
        self.head_dim = a.head_dim
        self.q_proj = linear(a.hidden_size, a.heads * a.head_dim, use_bias=a.qkv_bias, rngs=rngs)
        self.k_proj = linear(a.hidden_size, a.kv_heads * a.head_dim, use_bias=a.qkv_bias, rngs=rngs)
        self.v_proj = linear(a.hidden_size, a.kv_heads * a.head_dim, use_bias=a.qkv_bias, rngs=rngs)
        self.o_proj = linear(a.heads * a.head_dim, a.hidden_size, use_bias=a.out_bias, rngs=rngs)
        if a.qk_norm:
            self.q_norm, self.k_norm = norm(a.head_dim, rngs=rngs), norm(a.head_dim, rngs=rngs)

    def project(self, x: jax.Array, angle: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of tokens [B, L, T, D]: [B, L, T, heads, H] each."""
        heads = lambda y: y.reshape(*y.shape[:-1], -1, self.head_dim)  # noqa: E731
        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        if hasattr(self, 'q_norm'):
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, angle), rotate(k, angle), v


class MLP(nnx.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, a: Architecture, linear, rngs: nnx.Rngs):
        self.gate_proj = linear(a.hidden_size, a.intermediate_size, use_bias=a.mlp_bias, rngs=rngs)
        self.up_proj = linear(a.hidden_size, a.intermediate_size, use_bias=a.mlp_bias, rngs=rngs)
        self.down_proj = linear(a.intermediate_size, a.hidden_size, use_bias=a.mlp_bias, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
    """One layer: attention and MLP, each behind an RMSNorm."""

    def __init__(self, a: Architecture, linear, norm, rngs: nnx.Rngs):
        self.input_layernorm = norm(a.hidden_size, rngs=rngs)
        self.self_attn = Attention(a, linear, norm, rngs)
        self.post_attention_layernorm = norm(a.hidden_size, rngs=rngs)
        self.mlp = MLP(a, linear, rngs)


class Decoder(nnx.Module):
    """Token embedding, stacked layers, final norm, and the matrix that gives the logits.

    Args:
      architecture: sizes and switches.
      dtype: of activations; log-probabilities are float32 whatever it is.
      param_dtype: of new parameters.
      remat: recompute each layer in the backward pass instead of keeping its activations.
      mesh: devices that the activations are split over, by rows and heads; None leaves their
        layout to the compiler.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
        param_dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
        mesh: Mesh | None = None,
    ):
        a = self.architecture = architecture
        self.dtype, self.remat, self.mesh = jnp.dtype(dtype), remat, mesh
        types = {'dtype': dtype, 'param_dtype': param_dtype}
        init = nnx.initializers.normal(0.02)

        def linear(*sizes: int, **kwargs) -> Linear:
            return Linear(*sizes, kernel_init=init, **types, **kwargs)

        def norm(size: int, rngs: nnx.Rngs) -> nnx.RMSNorm:
            return nnx.RMSNorm(size, epsilon=a.norm_eps, rngs=rngs, **types)

        @nnx.split_rngs(splits=a.layers)
        @nnx.vmap
        def blocks(rngs: nnx.Rngs) -> Block:
            return Block(a, linear, norm, rngs)

        self.embed_tokens = nnx.Embed(
            a.vocab_size, a.hidden_size, embedding_init=init, rngs=rngs, **types
        )
        self.layers = blocks(rngs)
        self.norm = norm(a.hidden_size, rngs)
        if not a.tied:
            self.lm_head = linear(a.hidden_size, a.vocab_size, use_bias=False, rngs=rngs)

    def head_DxV(self) -> jax.Array:
        """The matrix from hidden states to logits, in the compute type."""
        if self.architecture.tied:
            return self.embed_tokens.embedding[...].T.astype(self.dtype)
        return self.lm_head.kernel[...].astype(self.dtype)

    def on_mesh(self, x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
        """Splits an array's axes over those of the mesh; what is not named is whole.

        Without this the compiler may split a row's activations as the parameters are split.
        """
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, P(*axes)))

    def embed(self, tokens_BxLxT: jax.Array) -> jax.Array:
        """The tokens' embeddings, [B, L, T, D], in the compute type."""
        # Rows of a table that is split by columns too would be looked up on every device.
        table_VxD = self.on_mesh(self.embed_tokens.embedding[...].astype(self.dtype), 'tensor')
        return self.on_mesh(table_VxD[tokens_BxLxT], devices.ROWS)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Float32 logits [..., V] of hidden states [..., D]; see `logprobs` for whole batches."""
        return jnp.matmul(hidden, self.head_DxV(), preferred_element_type=jnp.float32)

    def __call__(
        self,
        tokens_BxLxT: jax.Array,
        positions_BxLxT: jax.Array,
        prefix: Memory | None = None,
        slot: Slot | None = None,
    ) -> tuple[jax.Array, Memory]:
        """Hidden states behind the final norm, and the keys and values of the tokens.

        Args:
          tokens_BxLxT: token ids; what stands at padded positions has no influence.
          positions_BxLxT: of the tokens in their sequence, `NOWHERE` for padding.
          prefix: what every lane of a row continues.
          slot: memory of the tokens decoded so far, for one more (T = 1).

        Returns:
          [B, L, T, D], and the memory of this call's tokens, or `slot.memory` with them added.
        """
        a = self.architecture
        angle = positions_BxLxT[..., None] * frequencies(a.rope, a.head_dim)
        graphdef, stacked = nnx.split(self.layers)
        # Splitting within a head would cost a reduction for each score.
        split = self.mesh is not None and a.kv_heads % self.mesh.shape['tensor'] == 0
        heads = 'tensor' if split else None

        def layer(carry, xs):
            x, cache = carry
            state, window, index, keys_and_values = xs
            block: Block = nnx.merge(graphdef, state)
            q, k, v = block.self_attn.project(block.input_layernorm(x), angle)
            q, k, v = (self.on_mesh(y, devices.ROWS, None, None, heads) for y in (q, k, v))
            written = k.swapaxes(-3, -2), v.swapaxes(-3, -2)
            own = Memory(*written, positions_BxLxT)
            if cache is not None:
                cache = tuple(
                    jax.lax.dynamic_update_slice(c, y[None], (index, 0, 0, 0, slot.index, 0))
                    for c, y in zip(cache, written, strict=True)
                )
                own = Memory(*(c[index] for c in cache), slot.memory.positions)
                written = None
            before = None if prefix is None else Memory(*keys_and_values, prefix.positions)
            x += block.self_attn.o_proj(attend(q, positions_BxLxT, own, before, window))
            x = self.on_mesh(x, devices.ROWS)
            x += block.mlp(block.post_attention_layernorm(x))
            return (self.on_mesh(x, devices.ROWS), cache), written

        layers = jnp.arange(a.layers)
        windows = jnp.asarray(a.windows) if a.windows else jnp.zeros_like(layers)
        xs = (stacked, windows, layers, prefix and (prefix.keys, prefix.values))
        # The cache rides in the carry, where a loop updates it in place.
        x = self.embed(tokens_BxLxT)
        start = (x, slot and (slot.memory.keys, slot.memory.values))
        body = jax.checkpoint(layer, prevent_cse=False) if self.remat else layer
        (x, cache), written = jax.lax.scan(body, start, xs)
        if slot is None:
            return self.norm(x), Memory(*written, positions_BxLxT)
        return self.norm(x), slot.memory._replace(keys=cache[0], values=cache[1])
