"""One decoder for the Llama family, in Flax NNX: layers stacked along an axis and scanned.

Axes: B prompts, L lanes (the K responses to one prompt; 1 for the prompt itself), T tokens in, S
tokens attended to, D width, N heads = G groups x M key-value heads, H entries of a head, V words.
Modules and parameters are named as in Hugging Face's checkpoints.

A prompt is computed once, as one lane with `positions_BxLxT = prompt_positions(...)`; its keys and
values are then the `prefix` of every lane that continues it. Sampling and training share this, so
the log-probabilities that training recomputes are the sampler's. Nothing is ever masked by token
id: padding is a position that no query reaches.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sail_jax.language.model.architecture import Architecture, Rope
from sail_jax.training import devices

NOWHERE = 2**30
"""Position of padding: after every token, so that causality hides it."""


class Memory(NamedTuple):
    """Keys and values of all layers, [layers, B, M, (L,) S, H] or a tuple of the layers'; a prefix
    has no lanes."""

    keys: jax.Array | tuple[jax.Array, ...]
    values: jax.Array | tuple[jax.Array, ...]
    positions: jax.Array
    """[B, (L,) S]"""

    def layer(self, index: int) -> 'Memory':
        """One layer's."""
        return Memory(self.keys[index], self.values[index], self.positions)

    def apart(self) -> 'Memory':
        """With the layers as a tuple, for decoding: each is read and written where it lies."""
        return Memory(tuple(self.keys), tuple(self.values), self.positions)


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
    keys, values = memory.keys[:, :, :, 0], memory.values[:, :, :, 0]
    return Memory(keys, values, memory.positions[:, 0])


def empty_memory(
    architecture: Architecture, positions_BxLxS: jax.Array, dtype: jnp.dtype
) -> Memory:
    """Room for the tokens at these positions, for decoding."""
    a = architecture
    B, L, S = positions_BxLxS.shape
    room = lambda: jnp.zeros((B, a.kv_heads, L, S, a.head_dim), dtype)  # noqa: E731
    keys, values = (tuple(room() for _ in range(a.layers)) for _ in range(2))
    return Memory(keys, values, positions_BxLxS)


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
      own: keys and values [B, M, L, S, H] of this layer.
      prefix: the same without lanes, [B, M, S, H]; or None.
      window: positions to look back on, itself included; 0 for all.

    Returns:
      [B, L, T, N * H].
    """
    B, L, T, N, H = query_BxLxTxNxH.shape
    M = own.keys.shape[1]
    G = N // M
    query = query_BxLxTxNxH.reshape(B, L, T, M, G, H).transpose(0, 3, 1, 2, 4, 5) * H**-0.5
    # Of every key-value head, the rows that read it: of a lane, and of a group for its prefix.
    of_lane, of_group = (B, M, L, T * G), (B, M, L * T * G)

    def scores(query: jax.Array, keys: jax.Array, key_positions: jax.Array) -> jax.Array:
        """[B, M, L, T, G, S]"""
        score = jnp.matmul(query, keys.swapaxes(-1, -2), preferred_element_type=jnp.float32)
        back = positions_BxLxT[..., :, None] - key_positions[..., None, :]
        visible = (back >= 0) & ((back < window) | (window == 0))
        score = score.reshape(B, M, L, T, G, -1)
        return jnp.where(visible[:, None, :, :, None], score, jnp.finfo(jnp.float32).min)

    score = scores(query.reshape(*of_lane, H), own.keys, own.positions)
    if prefix is not None:
        before = scores(query.reshape(*of_group, H), prefix.keys, prefix.positions[:, None])
        score = jnp.concatenate([score, before], -1)
    weight = jax.nn.softmax(score, -1).astype(query.dtype)
    S = own.keys.shape[-2]
    out = jnp.matmul(weight[..., :S].reshape(*of_lane, S), own.values)
    out = out.reshape(B, M, L, T, G, H)
    if prefix is not None:
        shared = jnp.matmul(weight[..., S:].reshape(*of_group, -1), prefix.values)
        out += shared.reshape(out.shape)
    return out.transpose(0, 2, 3, 1, 4, 5).reshape(B, L, T, N * H)


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
      remat: recompute each layer in the backward pass instead of keeping the results of its linear
        maps.
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
            head_DxV = self.embed_tokens.embedding[...].T
        else:
            head_DxV = self.lm_head.kernel[...]
        # Gathered once: split by its rows, it would have the tokens of every chunk gathered.
        return self.on_mesh(head_DxV.astype(self.dtype), None, 'tensor')

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
    ) -> tuple[jax.Array, Memory]:
        """Hidden states behind the final norm, and the keys and values of the tokens.

        Args:
          tokens_BxLxT: token ids; what stands at padded positions has no influence.
          positions_BxLxT: of the tokens in their sequence, `NOWHERE` for padding.
          prefix: what every lane of a row continues, with stacked layers.

        Returns:
          [B, L, T, D], and the memory of these tokens.
        """
        a = self.architecture
        graphdef, stacked = nnx.split(self.layers)
        remember = lambda keys, values: Memory(keys, values, positions_BxLxT)  # noqa: E731

        def layer(x, xs):
            state, window, keys_and_values = xs
            before = None if prefix is None else Memory(*keys_and_values, prefix.positions)
            block: Block = nnx.merge(graphdef, state)
            x, own = self._layer(block, x, positions_BxLxT, window, remember, before)
            return x, (own.keys, own.values)

        windows = jnp.asarray(a.windows) if a.windows else jnp.zeros(a.layers, jnp.int32)
        xs = (stacked, windows, prefix and (prefix.keys, prefix.values))
        # Results of the linear maps are kept at most; the rest costs less to compute again than to
        # write and read: 0.85 to 0.9 of the time, a third of the memory (CPU, 4M to 12M).
        keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        body = jax.checkpoint(layer, prevent_cse=False, policy=None if self.remat else keep)
        x, written = jax.lax.scan(body, self.embed(tokens_BxLxT), xs)
        return self.norm(x), Memory(*written, positions_BxLxT)

    def blocks(self) -> list[Block]:
        """The layers one by one, their matrices in the compute type, made once for all the tokens
        to decode: whole on every device that needs them, where FSDP splits them.

        `decode` is the one place that goes through the layers without a scan, in which each
        product's matrix is first copied out of the stack, for every token. At Qwen2.5-0.5B's widths
        (float32, 2 CPU cores, 2026-11-23) a scan decoded 0.78 times as many tokens/s with 24
        layers and 16 lanes, and with 4 layers 0.69 (2 lanes) to 0.93 (16). In return its program
        took 2.0 s to compile at any depth, and this one takes 2.1 s for 4 layers and 4.3 s for 24.
        """
        graphdef, stacked = nnx.split(self.layers)

        def take(x: jax.Array, index: int) -> jax.Array:
            return x[index].astype(self.dtype) if x.ndim == 3 else x[index]

        return [
            nnx.merge(graphdef, jax.tree.map(lambda x, i=i: take(x, i), stacked))
            for i in range(self.architecture.layers)
        ]

    def decode(
        self,
        blocks: list[Block],
        tokens_BxL: jax.Array,
        index: jax.Array,
        memory: Memory,
        prefix: Memory,
    ) -> tuple[jax.Array, Memory]:
        """One more token of every lane.

        Args:
          blocks: see `blocks`.
          tokens_BxL: token ids.
          index: slot of the token, one for all rows.
          memory: the lanes' own, with room for every token to come.
          prefix: what every lane of a row continues.

        Returns:
          Hidden states [B, L, D] behind the final norm, and the memory with the token.
        """
        at = jax.lax.dynamic_slice_in_dim(memory.positions, index, 1, axis=-1)
        x, found = self.embed(tokens_BxL[..., None]), []

        def write(to: jax.Array, value: jax.Array) -> jax.Array:
            # Fused into what reads it, the update would no longer be in place.
            return jax.lax.optimization_barrier(
                jax.lax.dynamic_update_slice_in_dim(to, value, index, axis=-2)
            )

        for i, block in enumerate(blocks):
            window = self.architecture.windows[i] if self.architecture.windows else 0
            own = memory.layer(i)
            remember = lambda keys, values, own=own: own._replace(  # noqa: E731
                keys=write(own.keys, keys), values=write(own.values, values)
            )
            x, own = self._layer(block, x, at, jnp.asarray(window), remember, prefix.layer(i))
            found.append((own.keys, own.values))
        return self.norm(x)[:, :, 0], Memory(*zip(*found, strict=True), memory.positions)

    def _layer(
        self,
        block: Block,
        x_BxLxTxD: jax.Array,
        positions_BxLxT: jax.Array,
        window: jax.Array,
        remember: Callable[[jax.Array, jax.Array], Memory],
        prefix: Memory | None,
    ) -> tuple[jax.Array, Memory]:
        """The layer's output, and what `remember` made of the tokens' keys and values."""
        a, x = self.architecture, x_BxLxTxD
        # Splitting within a head would cost a reduction for each score.
        split = self.mesh is not None and a.kv_heads % self.mesh.shape['tensor'] == 0
        heads = 'tensor' if split else None
        angle = positions_BxLxT[..., None] * frequencies(a.rope, a.head_dim)
        q, k, v = block.self_attn.project(block.input_layernorm(x), angle)
        q, k, v = (self.on_mesh(y, devices.ROWS, None, None, heads) for y in (q, k, v))
        # Heads lead, so that the products of attention read keys and values as they lie.
        own = remember(*(jnp.moveaxis(y, 3, 1) for y in (k, v)))
        x += block.self_attn.o_proj(attend(q, positions_BxLxT, own, prefix, window))
        x = self.on_mesh(x, devices.ROWS)
        x += block.mlp(block.post_attention_layernorm(x))
        return self.on_mesh(x, devices.ROWS), own
