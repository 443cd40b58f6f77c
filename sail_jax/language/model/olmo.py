"""What OLMo 2's networks have of their own (arXiv 2501.00656): norms behind attention and MLP, and
of all queries and all keys of a token at once."""

from collections.abc import Callable

import jax
from flax import nnx

from sail_jax.language.model.architecture import Architecture
from sail_jax.language.model.attention import Memory
from sail_jax.language.model.layers import Attention, Block, Make, Parts


class WideNormAttention(Attention):
    """Queries and keys are normalised over all heads together."""

    def __init__(self, make: Make, rngs: nnx.Rngs):
        super().__init__(make, rngs)
        a = make.architecture
        self.q_norm = make.norm(a.heads * a.head_dim, rngs)
        self.k_norm = make.norm(a.kv_heads * a.head_dim, rngs)

    def maps(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v = self.read(x)
        return self.heads(self.q_norm(q)), self.heads(self.k_norm(k)), self.heads(v)


class PostNormBlock(Block):
    """Attention and MLP, each before a norm."""

    def __init__(self, make: Make, rngs: nnx.Rngs):
        width, parts = make.architecture.hidden_size, make.parts
        self.self_attn = parts.attention(make, rngs)
        self.post_attention_layernorm = make.norm(width, rngs)
        self.mlp = parts.mlp(make, rngs)
        self.post_feedforward_layernorm = make.norm(width, rngs)

    def __call__(
        self, x: jax.Array, attend: Callable[[jax.Array], tuple[jax.Array, Memory]]
    ) -> tuple[jax.Array, Memory]:
        y, memory = attend(x)
        x = x + self.post_attention_layernorm(y)
        return x + self.post_feedforward_layernorm(self.mlp(x)), memory


def parts(a: Architecture) -> Parts:
    """Of `olmo2`."""
    del a
    return Parts(attention=WideNormAttention, block=PostNormBlock)
