"""What a decoder's layers are made of, named as in Hugging Face's checkpoints.

A family with other layers than Llama's has `Parts` of its own, whose modules may be any of Flax
NNX: a `kernel` [in, out] is a checkpoint's `weight` [out, in], a `scale` or `embedding` its
`weight`, and any other parameter has its own name there.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sail_jax.language.model.architecture import Architecture
from sail_jax.language.model.attention import Memory
from sail_jax.language.model.families import FAMILIES, Family
from sail_jax.language.model.rotary import Rotation, rotate

STACKED = 'layers'
"""The entry of a decoder's parameters whose arrays are stacks, of a layer each."""


class Linear(nnx.Linear):
    """A linear map, with a low-rank adapter beside it where `lora.add` put one.

    Args:
      flat: all tokens are rows of one matrix. XLA's compiler for CPUs turns what has more axes
        around for a kernel's gradient, an element at a time, and computes it anew while it does: a
        fifth of learning's time (12M parameters, 2 CPU cores, 2026-11-27).
    """

    lora_a: nnx.LoRAParam | None = None
    """[in, rank]"""
    lora_b: nnx.LoRAParam | None = None
    """[rank, out]"""
    lora_scale: float = 0.0
    drop_key: nnx.Variable | None = None
    """Of each row, where `lora.drop` put it, [B]."""
    drop_rate: float = 0.0

    def __init__(self, *args: Any, flat: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.flat = flat

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        shape = (-1, inputs.shape[-1]) if self.flat else inputs.shape
        y = super().__call__(inputs.reshape(shape), out_sharding)
        if self.lora_a is not None:
            read = inputs
            if self.drop_key is not None:
                read = _dropped(inputs, self.drop_key[...], self.drop_rate)
            y = self._adapted(y, read.reshape(shape) @ self.lora_a[...].astype(y.dtype))
        return y.reshape(*inputs.shape[:-1], y.shape[-1])

    def _adapted(self, y: jax.Array, low: jax.Array) -> jax.Array:
        """y and what the adapter adds, of its first matrix's product."""
        assert self.lora_b is not None  # An adapter has both.
        return y + (low @ self.lora_b[...].astype(y.dtype)) * self.lora_scale

    def matrices(self) -> list[jax.Array]:
        """What its input is multiplied by: the kernel, and an adapter's first matrix."""
        first = [] if self.lora_a is None else [self.lora_a[...]]
        return [self.kernel[...], *first]

    def finished(self, y: jax.Array, low: jax.Array | None = None) -> jax.Array:
        """What it gives, of its input's products with `matrices`."""
        if self.bias is not None:
            y = y + self.bias[...].astype(y.dtype)
        return y if low is None else self._adapted(y, low)


def _dropped(x_BxLxTxD: jax.Array, key_B: jax.Array, rate: float) -> jax.Array:
    def of_row(x: jax.Array, key: jax.Array) -> jax.Array:
        # A prompt and its responses go through a layer one after the other, equally long perhaps.
        lanes, tokens, _ = x.shape
        key = jax.random.fold_in(key, tokens)
        key = jax.random.fold_in(key, lanes) if lanes > 1 else key
        return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)

    return jax.vmap(of_row)(x_BxLxTxD, key_B)


class OneKernelNorm(nnx.RMSNorm):
    """RMSNorm, multiplied by its scale last: in this order XLA's compiler for GPUs makes one kernel
    of it and of the sum that is normalised, and three of Flax's."""

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        assert mask is None  # Nothing of a hidden state is hidden.
        assert self.scale is not None  # Each norm of a decoder has one.
        x, scale = self.promote_dtype((x, self.scale[...]), dtype=self.dtype)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide *= jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + self.epsilon)
        return (wide * scale).astype(x.dtype)


Activation = Callable[[jax.Array], jax.Array]


def gated(activation: Activation, gate: jax.Array, up: jax.Array) -> jax.Array:
    """`activation(gate) * up`."""
    return activation(gate) * up


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated_in_one_kernel(activation: Activation, gate: jax.Array, up: jax.Array) -> jax.Array:
    """`gated`, of whose two gradients XLA's compiler for GPUs makes one kernel."""
    return gated(activation, gate, up)


def _gated_forward(activation: Activation, *maps: jax.Array) -> tuple[jax.Array, Any]:
    return gated(activation, *maps), maps


def _gated_backward(activation: Activation, maps: Any, gradient: jax.Array) -> Any:
    # The compiler joins kernels that read the same array, but not one straight from a product.
    gradient = jax.lax.optimization_barrier(gradient)
    return jax.vjp(partial(gated, activation), *maps)[1](gradient)


gated_in_one_kernel.defvjp(_gated_forward, _gated_backward)


class Make(NamedTuple):
    """Makes the maps and norms of a model, in its types and as its family has them."""

    architecture: Architecture
    parts: 'Parts'
    linear: Callable[..., Linear]
    """`(size in, size out, use_bias=, rngs=)`."""
    norm: Callable[[int, nnx.Rngs], nnx.Module]
    """`(size, rngs)`."""
    on_gpu: bool
    """Whether it is for a GPU."""

    @property
    def gated(self) -> Callable[..., Any]:
        """How MLPs are gated: `(activation, gate, up)`."""
        return gated_in_one_kernel if self.on_gpu else gated


class OfOneInput(nnx.Module):
    """A module of which several linear maps read the same."""

    READERS: ClassVar[tuple[str, ...]] = ()
    """Their names."""
    joined: nnx.Variable | None = None
    """The matrices of all of them, side by side, where `join` put them."""

    def join(self) -> None:
        """Puts them there."""
        maps = [getattr(self, name) for name in self.READERS]
        if matrices := [matrix for linear in maps for matrix in linear.matrices()]:
            self.joined = nnx.Variable(jnp.concatenate(matrices, axis=-1))

    def read(self, x: jax.Array) -> list[jax.Array]:
        """What each of the maps gives of x."""
        maps: list[Linear] = [getattr(self, name) for name in self.READERS]
        if self.joined is None:
            return [linear(x) for linear in maps]
        widths = [matrix.shape[-1] for linear in maps for matrix in linear.matrices()]
        products = iter(jnp.split(x @ self.joined[...], np.cumsum(widths)[:-1], axis=-1))
        return [
            linear.finished(*itertools.islice(products, len(linear.matrices()))) for linear in maps
        ]


class Attention(OfOneInput):
    """Grouped-query self-attention."""

    READERS = ('q_proj', 'k_proj', 'v_proj')

    def __init__(self, make: Make, rngs: nnx.Rngs):
        a = make.architecture
        self.head_dim, into, out = a.head_dim, a.hidden_size, a.heads * a.head_dim
        kv = a.kv_heads * a.head_dim
        self.q_proj = make.linear(into, out, use_bias=a.qkv_bias, rngs=rngs)
        self.k_proj = make.linear(into, kv, use_bias=a.qkv_bias, rngs=rngs)
        self.v_proj = make.linear(into, kv, use_bias=a.qkv_bias, rngs=rngs)
        self.o_proj = make.linear(out, into, use_bias=a.out_bias, rngs=rngs)
        if a.qk_norm:
            self.q_norm, self.k_norm = make.norm(a.head_dim, rngs), make.norm(a.head_dim, rngs)

    def heads(self, y: jax.Array) -> jax.Array:
        """[..., heads * H] as [..., heads, H]."""
        return y.reshape(*y.shape[:-1], -1, self.head_dim)

    def maps(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values, normalised where they are, before they are rotated."""
        q, k, v = map(self.heads, self.read(x))
        if hasattr(self, 'q_norm'):
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def project(self, x: jax.Array, rotation: Rotation) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of tokens [B, L, T, D]: [B, L, T, heads, H] each."""
        q, k, v = self.maps(x)
        return rotate(q, rotation), rotate(k, rotation), v


class MLP(OfOneInput):
    """A gated MLP; with silu it is SwiGLU (arXiv 2002.05202)."""

    READERS = ('gate_proj', 'up_proj')

    def __init__(self, make: Make, rngs: nnx.Rngs):
        a = make.architecture
        self.activation, self.gated = make.parts.activation, make.gated
        self.gate_proj = make.linear(
            a.hidden_size, a.intermediate_size, use_bias=a.mlp_bias, rngs=rngs
        )
        self.up_proj = make.linear(
            a.hidden_size, a.intermediate_size, use_bias=a.mlp_bias, rngs=rngs
        )
        self.down_proj = make.linear(
            a.intermediate_size, a.hidden_size, use_bias=a.mlp_bias, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(self.gated(self.activation, *self.read(x)))


class Block(nnx.Module):
    """One layer: attention and MLP, each behind a norm."""

    def __init__(self, make: Make, rngs: nnx.Rngs):
        width, parts = make.architecture.hidden_size, make.parts
        self.input_layernorm = make.norm(width, rngs)
        self.self_attn = parts.attention(make, rngs)
        self.post_attention_layernorm = make.norm(width, rngs)
        self.mlp = parts.mlp(make, rngs)

    def __call__(
        self, x: jax.Array, attend: Callable[[jax.Array], tuple[jax.Array, Memory]]
    ) -> tuple[jax.Array, Memory]:
        """The layer's output, and what attention remembers.

        Args:
          x: hidden states [B, L, T, D].
          attend: the layer's attention, of what stands behind the norm before it.
        """
        y, memory = attend(self.input_layernorm(x))
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), memory

    def joined(self) -> Self:
        """For decoding: itself, with one product for all maps of one input. XLA's compiler for GPUs
        makes one of them too, but with adapters it joins their matrices anew for every token. One
        for TPUs reads more, not less."""
        for module in (self.self_attn, self.mlp):
            if isinstance(module, OfOneInput):
                module.join()
        return self


def unchanged(x: jax.Array) -> jax.Array:
    """x."""
    return x


@dataclass(frozen=True)
class Parts:
    """What a family's network is made of; by default Llama's."""

    norm: Callable[..., nnx.Module] = nnx.RMSNorm
    """`(size, epsilon=, rngs=, dtype=, param_dtype=)`."""
    activation: Activation = jax.nn.silu
    """Of the MLP's gate; the record's `activation` is its name."""
    attention: type[Attention] = Attention
    attention_scale: float | None = None
    """Of the products of queries and keys; None is `head_dim ** -0.5`."""
    attention_cap: float | None = None
    """Attention's scores are bent to lie within it, `cap * tanh(score / cap)`."""
    mlp: Callable[[Make, nnx.Rngs], nnx.Module] = MLP
    block: type[Block] = Block
    embedding: Callable[[jax.Array], jax.Array] = unchanged
    """From the embeddings of tokens to what the first layer reads, [..., D]."""
    logits: Callable[[jax.Array], jax.Array] = unchanged
    """From what the output matrix gives to the logits, each by itself: a cap or a scale."""


def parts_of(architecture: Architecture) -> Parts:
    """What the architecture's family makes its network of."""
    return _parts(FAMILIES[architecture.family], architecture)


@cache  # JAX takes other function objects for another network, and compiles anew.
def _parts(family: Family, architecture: Architecture) -> Parts:
    return Parts() if family.parts is None else family.parts(architecture)
