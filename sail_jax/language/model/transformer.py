"""The decoder, in Flax NNX: layers stacked along an axis and scanned.

Axes: B prompts, L lanes (the K responses to one prompt; 1 for the prompt itself), T tokens in, S
tokens attended to, D width, N heads = G groups x M key-value heads, H entries of a head, V words.
Modules and parameters are named as in Hugging Face's checkpoints.

A prompt is computed once, as one lane with `positions_BxLxT = prompt_positions(...)`; its keys and
values are the `prefix` of every lane that continues it. Sampling and training share this, so
the log-probabilities that training recomputes are the sampler's. Nothing is ever masked by token
id: padding is a position that no query reaches.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sail_jax.language.model import decode_kernel, fused, sharding
from sail_jax.language.model.architecture import Architecture
from sail_jax.language.model.attention import Memory, Scoring, apart, attend, attend_parts, together
from sail_jax.language.model.families import FAMILIES
from sail_jax.language.model.layers import Block, Linear, Make, OneKernelNorm, parts_of, unchanged
from sail_jax.language.model.rotary import Rotary, Rotation
from sail_jax.training import devices


@partial(
    jax.tree_util.register_dataclass,
    data_fields=['matrix'],
    meta_fields=['finish', 'mesh', 'of_words'],
)
@dataclass(frozen=True)
class Head:
    """From hidden states to logits."""

    matrix: jax.Array
    """[D, V]; or [V, D], as an embedding lies, since no copy should be turned."""
    finish: Callable[[jax.Array], jax.Array] = unchanged
    """See `Parts.logits`."""
    mesh: Mesh | None = None
    """See `Decoder`."""
    of_words: bool = False
    """Whether the matrix is [V, D]."""

    @property
    def matrix_DxV(self) -> jax.Array:
        """To be turned within the product that takes it."""
        return self.matrix.T if self.of_words else self.matrix

    def products(self, hidden: jax.Array) -> jax.Array:
        """What `finish` takes of hidden states [..., D], at least float32 [..., V]."""
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        return jnp.matmul(hidden, self.matrix_DxV, preferred_element_type=wide)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits [..., V] of hidden states [..., D], at least float32."""
        return self.finish(self.products(hidden))


class Tokens(NamedTuple):
    """Ids and positions, [B, L, T] each; see `Decoder.__call__`."""

    ids: jax.Array
    positions: jax.Array


class Decoding(NamedTuple):
    """What is read for every token that is decoded: matrices in the compute type."""

    blocks: list[Block]
    table_VxD: jax.Array
    head: Head


class Pass(NamedTuple):
    """How tokens go through a layer."""

    rotation: Rotation
    attend: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Memory]]
    """From queries, keys and values [B, L, T, heads, H] to what attention gives, [B, L, T, N * H],
    and what it remembers."""
    rows: str | tuple[str, ...] = devices.ROWS
    """The axes of the mesh that hidden states are split over by rows, outside of attention."""
    width: tuple[str, ...] | None = None
    """And by the width of what attention gives."""


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

    Attributes:
      together: whether a prompt and what continues it are the tokens of one lane but for attention,
        so that gradients of matrices are written and added up once; on CPUs the copies cost more.
      joins: whether maps that read the same, where whole, are one product while tokens are decoded.
      length: tokens of the longest sequence that it is made to read, which some kinds of RoPE
        depend on, see `rotary`; None is within the original length.
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
        self.length: int | None = None
        types: dict[str, Any] = {'dtype': dtype, 'param_dtype': param_dtype}
        init, parts = nnx.initializers.normal(0.02), parts_of(a)
        platform = fused.first_device(mesh).platform
        self.together, on_gpu = platform != 'cpu', platform == 'gpu'
        self.joins = on_gpu and (mesh is None or devices.parts(mesh, sharding.WIDTH) == 1)
        norm_class = OneKernelNorm if on_gpu and parts.norm is nnx.RMSNorm else parts.norm

        def linear(*sizes: int, **kwargs) -> Linear:
            return Linear(*sizes, flat=platform == 'cpu', kernel_init=init, **types, **kwargs)

        def norm(size: int, rngs: nnx.Rngs) -> nnx.Module:
            return norm_class(size, epsilon=a.norm_eps, rngs=rngs, **types)

        @nnx.split_rngs(splits=a.layers)
        @nnx.vmap
        def blocks(rngs: nnx.Rngs) -> Block:
            return parts.block(Make(a, parts, linear, norm, on_gpu), rngs)

        self.embed_tokens = nnx.Embed(
            a.vocab_size, a.hidden_size, embedding_init=init, rngs=rngs, **types
        )
        self.layers = blocks(rngs)
        self.norm = norm(a.hidden_size, rngs)
        if not a.tied:
            self.lm_head = linear(a.hidden_size, a.vocab_size, use_bias=False, rngs=rngs)

    def of_length(self, length: int | None) -> Self:
        """The model for sequences of at most so many tokens, on the same weights."""
        decoder = nnx.clone(self, variables=False)
        # Programs are compiled anew for each length; most networks have none.
        decoder.length = length if self.architecture.rope.depends_on(length) else None
        return decoder

    def own_keys(self) -> dict[str, Any]:
        """What of a `config.json` says which class of models this is."""
        return {'architectures': [FAMILIES[self.architecture.family].model_class]}

    def head(self) -> Head:
        """From hidden states to logits, in the compute type."""
        tied, finish = self.architecture.tied, parts_of(self.architecture).logits
        matrix = self.embed_tokens.embedding[...] if tied else self.lm_head.kernel[...]
        # Gathered once: split by its rows, it would have the tokens of every chunk gathered.
        split = ('tensor', None) if tied else (None, 'tensor')
        matrix = self.on_mesh(matrix.astype(self.dtype), *split)
        return Head(matrix, finish, self.mesh, of_words=tied)

    def on_mesh(self, x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
        """Splits an array's axes over those of the mesh; what is not named is whole.

        Without this the compiler may split a row's activations as the parameters are split.
        """
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, P(*axes)))

    def embed(self, tokens_BxLxT: jax.Array) -> jax.Array:
        """What the first layer reads of the tokens, [B, L, T, D], in the compute type."""
        # Rows of a table that is split by columns too would be looked up on every device.
        table_VxD = self.on_mesh(self.embed_tokens.embedding[...].astype(self.dtype), 'tensor')
        return self._embed(table_VxD, tokens_BxLxT, devices.ROWS)

    def _embed(self, table_VxD: jax.Array, tokens_BxLxT: jax.Array, rows: Any) -> jax.Array:
        x_BxLxTxD = self.on_mesh(table_VxD[self.on_mesh(tokens_BxLxT, rows)], rows)
        return parts_of(self.architecture).embedding(x_BxLxTxD)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Float32 logits [..., V] of hidden states [..., D]; see `logprobs` for whole batches."""
        return self.head().logits(hidden)

    def __call__(
        self, tokens_BxLxT: jax.Array, positions_BxLxT: jax.Array
    ) -> tuple[jax.Array, Memory]:
        """Hidden states behind the final norm, and the keys and values of the tokens.

        Args:
          tokens_BxLxT: token ids; what stands at padded positions has no influence.
          positions_BxLxT: of the tokens in their sequence, one after the other, `NOWHERE` for
            padding behind them.

        Returns:
          [B, L, T, D], and the memory of these tokens.
        """
        tokens = Tokens(tokens_BxLxT, positions_BxLxT)
        (hidden,), (keys, values) = self._through_layers((tokens,))
        return hidden, Memory(keys=keys, values=values, positions=positions_BxLxT)

    def with_lanes(self, prompt: Tokens, lanes: Tokens) -> tuple[jax.Array, jax.Array]:
        """Hidden states of a prompt, [B, 1, P, D], and of the lanes that continue it, [B, L, T, D].

        Each layer goes through both before the next one.
        """
        (of_prompt, of_lanes), _ = self._through_layers((prompt, lanes))
        return of_prompt, of_lanes

    def _through_layers(
        self, parts: tuple[Tokens, ...]
    ) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, jax.Array]]:
        """Hidden states of each part, of which the later ones continue the first, and the first
        one's keys and values, which take memory where they are used."""
        a = self.architecture
        graphdef, stacked = nnx.split(self.layers)
        # Once, and not in each layer of each pass.
        stacked = jax.tree.map(lambda x: x.astype(self.dtype) if x.ndim > 2 else x, stacked)
        windows = jnp.asarray(a.windows) if a.windows else jnp.zeros(a.layers, jnp.int32)
        before = (0, *(parts[0].ids.shape[-1] for _ in parts[1:]))
        kernels = [self._kernel(part.ids, size) for part, size in zip(parts, before, strict=True)]
        each = list(zip(parts, kernels, strict=True))
        groups, rotary = [each] if self.together else [[x] for x in each], Rotary.of(a, self.length)

        def layer(hidden: tuple[jax.Array, ...], xs: Any) -> tuple[tuple[jax.Array, ...], Any]:
            state, window, kind = xs
            block: Block = nnx.merge(graphdef, state)
            first, out = None, []
            for x, group in zip(hidden, groups, strict=True):
                positions = [part.positions for part, _ in group]
                scoring = [self._scoring(window, kernel) for _, kernel in group]
                attention = partial(attend_parts, positions=positions, scoring=scoring, first=first)
                rotation = rotary.rotation(kind, together(positions))
                x, first = self._layer(block, x, Pass(rotation, attention))
                out.append(x)
            assert first is not None
            return tuple(out), (first.keys, first.values)

        # Results of the linear maps are kept at most; the rest costs less to compute again than to
        # write and read: 0.85 to 0.9 of the time, a third of the memory (CPU, 4M to 12M).
        keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        body = jax.checkpoint(layer, prevent_cse=False, policy=None if self.remat else keep)
        start = tuple(self.embed(together([part.ids for part, _ in group])) for group in groups)
        hidden, memory = jax.lax.scan(body, start, (stacked, windows, rotary.layers))
        shapes = [[part.ids.shape for part, _ in group] for group in groups]
        return tuple(itertools.chain(*map(apart, map(self.norm, hidden), shapes))), memory

    def decoding(self) -> Decoding:
        """What `decode` reads, made once for all the tokens to decode. On a mesh each device has
        its share of the width of every matrix, where FSDP splits them too.

        `decode` alone goes through the layers without a scan, which for every token first copies
        each product's matrix out of the stack. At Qwen2.5-0.5B's widths (float32, 2 CPU cores,
        2026-11-23) a scan decoded 0.78 times as many tokens/s with 24 layers and 16 lanes, with 4
        layers 0.69 (2 lanes) to 0.93. It compiled in 2.0 s, this in 2.1 s (4 layers) to 4.3 s (24).
        """
        a = self.architecture
        graphdef, stacked = nnx.split(self.layers)

        def block(index: int) -> Block:
            take = lambda x: x[index].astype(self.dtype) if x.ndim > 2 else x[index]
            state = jax.tree.map(take, stacked)
            if self.mesh is not None:
                layout = devices.tree_by_rules(self.mesh, sharding.DECODING, {'layers': state})
                state = jax.lax.with_sharding_constraint({'layers': state}, layout)['layers']
            one: Block = nnx.merge(graphdef, state)
            return one.joined() if self.joins else one

        words = self._width(a.vocab_size)
        table_VxD = self.on_mesh(self.embed_tokens.embedding[...].astype(self.dtype), words)
        head = Head(table_VxD, parts_of(a).logits, self.mesh, of_words=True)
        if not a.tied:
            matrix_DxV = self.on_mesh(self.lm_head.kernel[...].astype(self.dtype), None, words)
            head = replace(head, matrix=matrix_DxV, of_words=False)
        return Decoding([block(i) for i in range(a.layers)], table_VxD, head)

    def _width(self, size: int) -> tuple[str, ...] | None:
        """The axes of the mesh that a matrix of this width is split over for decoding."""
        whole = self.mesh is None or size % devices.parts(self.mesh, sharding.WIDTH)
        return None if whole else sharding.WIDTH

    def decode(
        self,
        weights: Decoding,
        tokens_BxL: jax.Array,
        index: jax.Array,
        memory: Memory,
        prefix: Memory,
    ) -> tuple[jax.Array, Memory]:
        """One more token of every lane.

        Attention is of each device's rows; for all other products every device has the rows of
        those that it shares the weights with.

        Args:
          weights: see `decoding`.
          tokens_BxL: token ids.
          index: slot of the token, one for all rows.
          memory: the lanes' own, with room for every token to come.
          prefix: what every lane of a row continues.

        Returns:
          Hidden states [B, L, D] behind the final norm, of which `last_logits` makes those of what
          follows, and the memory with the token.
        """
        a, rows = self.architecture, 'data'
        at = jax.lax.dynamic_slice_in_dim(memory.positions, index, 1, axis=-1)
        x, layers = self._embed(weights.table_VxD, tokens_BxL[..., None], rows), []
        rotary = Rotary.of(a, self.length)

        for i, block in enumerate(weights.blocks):
            window = a.windows[i] if a.windows else 0
            scoring = self._scoring(jnp.asarray(window), self._token_kernel(at, window))

            def attention(
                q: jax.Array, k: jax.Array, v: jax.Array, i: int = i, scoring: Scoring = scoring
            ) -> tuple[jax.Array, Memory]:
                layer = memory.layer(i).write(index, k, v)
                return attend(q, at, layer, prefix.layer(i), scoring), layer

            rotation = rotary.rotation(rotary.of_layers[i], at)
            through = Pass(rotation, attention, rows, self._width(a.heads * a.head_dim))
            x, layer = self._layer(block, x, through)
            layers.append(layer)
        memory = memory._replace(
            keys=tuple(layer.keys for layer in layers),
            values=tuple(layer.values for layer in layers),
        )
        return self.norm(x)[:, :, 0], memory

    def last_logits(self, weights: Decoding, hidden_BxLxD: jax.Array) -> jax.Array:
        """Float32 logits [B, L, V] of a token of each lane: all words of each device's rows."""
        logits_BxLxV = weights.head.logits(self.on_mesh(hidden_BxLxD, 'data'))
        # In two steps, or the compiler would gather the matrix.
        words = self._width(self.architecture.vocab_size)
        return self.on_mesh(self.on_mesh(logits_BxLxV, 'data', None, words), devices.ROWS)

    @property
    def _heads(self) -> str | None:
        """The axis of the mesh that heads are split over: whole ones, since splitting within a head
        would cost a reduction for each score."""
        split = self.mesh and self.architecture.kv_heads % self.mesh.shape['tensor'] == 0
        return 'tensor' if split else None

    def _scoring(self, window: jax.Array, kernel: fused.Kernel | None = None) -> Scoring:
        a, parts = self.architecture, parts_of(self.architecture)
        scale = a.head_dim**-0.5 if parts.attention_scale is None else parts.attention_scale
        return Scoring(window=window, scale=scale, cap=parts.attention_cap, kernel=kernel)

    def _kernel(self, tokens_BxLxT: jax.Array, before: int) -> fused.Kernel | None:
        """Of attention over these tokens and those before them, where the devices have one."""
        a, (B, L, T) = self.architecture, tokens_BxLxT.shape
        window = fused.reach(a.windows, before + T)
        if window is None:
            return None
        scoring = self._scoring(jnp.asarray(window))
        query = jax.ShapeDtypeStruct((B, L, T, a.heads, a.head_dim), self.dtype)
        score = fused.Score(scale=scoring.scale, cap=scoring.cap, window=window)
        return fused.kernel(score, query, self.mesh, self._heads, follows=before > 0)

    def _token_kernel(self, at_BxLx1: jax.Array, window: int) -> fused.Kernel | None:
        """Of attention of one token of each lane, where the devices have one."""
        a, scoring = self.architecture, self._scoring(jnp.asarray(window))
        query = jax.ShapeDtypeStruct((*at_BxLx1.shape, a.heads, a.head_dim), self.dtype)
        score = fused.Score(scale=scoring.scale, cap=scoring.cap, window=window)
        attend = decode_kernel.kernel(score, query, self.mesh, self._heads)
        return attend and partial(attend, at_BxLx1)

    def _layer(self, block: Block, x_BxLxTxD: jax.Array, through: Pass) -> tuple[jax.Array, Memory]:
        """The layer's output, and what `Pass.attend` remembers."""
        rows = through.rows

        def attention(x: jax.Array) -> tuple[jax.Array, Memory]:
            q, k, v = block.self_attn.project(x, through.rotation)
            if through.width is not None:
                # Stated, or the compiler would split an adapter's products by rows already.
                by_heads = lambda y: self.on_mesh(y, rows, None, None, self._width(y.shape[3]))
                q, k, v = map(by_heads, (q, k, v))
            q, k, v = (self.on_mesh(y, devices.ROWS, None, None, self._heads) for y in (q, k, v))
            out, memory = through.attend(q, k, v)
            if through.width is not None:
                # In two steps, or the compiler would gather keys and values of all rows.
                out = self.on_mesh(out, devices.ROWS, None, None, self._heads)
                out = self.on_mesh(out, rows, None, None, through.width)
            return self.on_mesh(block.self_attn.o_proj(out), rows), memory

        x, memory = block(x_BxLxTxD, attention)
        return self.on_mesh(x, rows), memory
