"""What Gemma's networks have of their own (arXiv 2503.19786)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from sail_jax.language.model.architecture import Architecture
from sail_jax.language.model.attention import Memory
from sail_jax.language.model.layers import Block, Make, Parts, unchanged


class UnitOffsetNorm(nnx.Module):
    """RMSNorm times one plus its scale, which is 0 at first."""

    def __init__(
        self, size: int, *, epsilon: float, rngs: nnx.Rngs, dtype: jnp.dtype, param_dtype: jnp.dtype
    ):
        self.epsilon, self.dtype = epsilon, dtype
        self.scale = nnx.Param(jnp.zeros(size, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt((y**2).mean(-1, keepdims=True) + self.epsilon)
        return (y * (1 + self.scale[...].astype(jnp.float32))).astype(self.dtype)


class SandwichBlock(Block):
    """Attention and MLP between two norms each."""

    def __init__(self, make: Make, rngs: nnx.Rngs):
        super().__init__(make, rngs)
        width = make.architecture.hidden_size
        self.pre_feedforward_layernorm = make.norm(width, rngs)
        self.post_feedforward_layernorm = make.norm(width, rngs)

    def __call__(
        self, x: jax.Array, attend: Callable[[jax.Array], tuple[jax.Array, Memory]]
    ) -> tuple[jax.Array, Memory]:
        y, memory = attend(self.input_layernorm(x))
        x = x + self.post_attention_layernorm(y)
        y = self.mlp(self.pre_feedforward_layernorm(x))
        return x + self.post_feedforward_layernorm(y), memory


def gelu(x: jax.Array) -> jax.Array:
    """The approximation by tanh."""
    return jax.nn.gelu(x, approximate=True)


def gemma3(a: Architecture) -> Parts:
    """The parts of Gemma 3; those of Gemma 2 are these with a cap of the scores."""
    cap = a.extras.get('final_logit_softcapping')
    capped = None if cap is None else lambda x: float(cap) * jnp.tanh(x / float(cap))
    return Parts(
        norm=UnitOffsetNorm,
        activation=gelu,
        attention_scale=float(a.extras['query_pre_attn_scalar']) ** -0.5,
        block=SandwichBlock,
        # Rounded as the embeddings are.
        embedding=lambda x: x * jnp.asarray(a.hidden_size**0.5, x.dtype),
        logits=capped or unchanged,
    )
