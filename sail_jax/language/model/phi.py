"""What Phi-3's and Phi-4's networks have of their own: maps that are one matrix."""

import jax
import jax.numpy as jnp
from flax import nnx

from sail_jax.language.model.architecture import Architecture
from sail_jax.language.model.layers import MLP, Attention, Make, Parts


class FusedAttention(Attention):
    """Queries, keys and values of one map."""

    READERS = ()

    def __init__(self, make: Make, rngs: nnx.Rngs):
        a = make.architecture
        self.head_dim, out, kv = a.head_dim, a.heads * a.head_dim, a.kv_heads * a.head_dim
        self.bounds = out, out + kv
        self.qkv_proj = make.linear(a.hidden_size, out + 2 * kv, use_bias=False, rngs=rngs)
        self.o_proj = make.linear(out, a.hidden_size, use_bias=False, rngs=rngs)

    def maps(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v = map(self.heads, jnp.split(self.qkv_proj(x), self.bounds, -1))
        return q, k, v


class FusedMLP(MLP):
    """A gated MLP whose gate and values are of one map."""

    READERS = ()

    def __init__(self, make: Make, rngs: nnx.Rngs):
        width, inner = make.architecture.hidden_size, make.architecture.intermediate_size
        self.activation, self.gated = make.parts.activation, make.gated
        self.gate_up_proj = make.linear(width, 2 * inner, use_bias=False, rngs=rngs)
        self.down_proj = make.linear(inner, width, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = jnp.split(self.gate_up_proj(x), 2, -1)
        return self.down_proj(self.gated(self.activation, gate, up))


def parts(a: Architecture) -> Parts:
    """Of `phi3`."""
    del a
    return Parts(attention=FusedAttention, mlp=FusedMLP)
