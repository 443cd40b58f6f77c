"""Tiny decoders, one of each family."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sail_jax.language.model import lora
from sail_jax.language.model.architecture import Architecture
from sail_jax.language.model.attention import prompt_positions
from sail_jax.language.model.rope import Rope
from sail_jax.language.model.transformer import Decoder

SIZES = {
    'vocab_size': 61,
    'hidden_size': 16,
    'intermediate_size': 24,
    'layers': 3,
    'heads': 4,
    'kv_heads': 2,
    'head_dim': 4,
    'max_positions': 256,
}
# Of the 8 frequencies of 16 entries one is kept, one lies in the interpolated band.
LLAMA3 = Rope(theta=500_000.0, kind='llama3', factor=8.0, original_max_position_embeddings=64)
FAMILIES = {
    'llama2': Architecture(**SIZES | {'family': 'llama', 'kv_heads': 4}),
    'llama2-linear': Architecture(**SIZES, family='llama', rope=Rope(kind='linear', factor=4.0)),
    'llama3': Architecture(
        **SIZES | {'family': 'llama', 'head_dim': 16, 'norm_eps': 1e-5, 'rope': LLAMA3}
    ),
    'llama-biases': Architecture(
        **SIZES, family='llama', qkv_bias=True, out_bias=True, mlp_bias=True
    ),
    'mistral': Architecture(**SIZES, family='mistral', windows=(5, 5, 5)),
    'qwen1.5': Architecture(**SIZES | {'family': 'qwen2', 'kv_heads': 4, 'qkv_bias': True}),
    'qwen2': Architecture(
        **SIZES, family='qwen2', qkv_bias=True, tied=True, rope=Rope(theta=1_000_000.0)
    ),
    'qwen2-windows': Architecture(**SIZES, family='qwen2', qkv_bias=True, windows=(0, 3, 3)),
    'qwen3': Architecture(**SIZES | {'family': 'qwen3', 'head_dim': 6, 'qk_norm': True}, tied=True),
    'gemma3': Architecture(
        **SIZES | {'family': 'gemma3_text', 'qk_norm': True, 'tied': True, 'head_dim': 6},
        rope=Rope(theta=1e6, kind='linear', factor=8.0),
        local_rope=Rope(),
        windows=(5, 0, 5),
        extras={'query_pre_attn_scalar': 9, 'final_logit_softcapping': 30.0},
    ),
    'phi3': Architecture(
        **SIZES | {'family': 'phi3', 'hidden_size': 32, 'head_dim': 8, 'windows': (7, 7, 7)},
        rope=Rope(partial_rotary_factor=0.75),
    ),
    'olmo2': Architecture(**SIZES, family='olmo2', rope=Rope(theta=500_000.0)),
    'smollm3': Architecture(
        **SIZES, family='smollm3', rope=Rope(theta=2e6), tied=True, unrotated=(1,)
    ),
}


def decoder(name: str = 'qwen2', seed: int = 0, update: dict | None = None, **kwargs) -> Decoder:
    """Random parameters, biases and norms included, large enough for distinct logits."""
    architecture = FAMILIES[name].model_copy(update=update or {})
    build = lambda: Decoder(architecture, rngs=nnx.Rngs(0), **kwargs)
    graphdef, abstract = nnx.split(nnx.eval_shape(build))
    rng = np.random.default_rng(seed)
    draw = lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape), x.dtype)
    return nnx.merge(graphdef, jax.tree.map(draw, abstract))


def trained(
    targets: tuple[str, ...] = ('q_proj', 'v_proj', 'down_proj'), name: str = 'qwen2', **kwargs
) -> tuple[Decoder, lora.Lora]:
    """A model with an adapter that does something, and the adapter's settings."""
    settings = lora.Lora(rank=3, alpha=5.0, targets=targets)
    base = decoder(name, **kwargs)
    model = lora.add(base, settings, jax.random.key(0))
    adapter = nnx.state(model, nnx.LoRAParam)
    nnx.update(
        model,
        jax.tree.map(lambda x: x + 0.2 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), adapter),
    )
    return model, settings


def tokens(*shape: int, seed: int = 0) -> jax.Array:
    """Random token ids."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, SIZES['vocab_size'], shape))


@partial(jax.jit, static_argnums=0)
def _call(graphdef, state, *args):
    return nnx.merge(graphdef, state)(*args)


def call(decoder: Decoder, *args):
    """`decoder(*args)`, compiled."""
    return _call(*nnx.split(decoder), *args)


def whole(decoder: Decoder, tokens_BxT: jax.Array, lengths_B: jax.Array | None = None):
    """Hidden states [B, T, D] and memory of plain sequences."""
    B, T = tokens_BxT.shape
    lengths_B = jnp.full(B, T) if lengths_B is None else lengths_B
    hidden, memory = call(decoder, tokens_BxT[:, None], prompt_positions(lengths_B, T))
    return hidden[:, 0], memory


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].shape == b[name].shape
        assert a[name].tobytes() == b[name].tobytes()
