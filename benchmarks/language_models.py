"""Published sizes of the models that the configurations name: their `config.json`, and no weights.

From `Qwen/Qwen2.5-0.5B-Instruct` and `meta-llama/Meta-Llama-3-8B-Instruct` on Hugging Face.
"""

from pathlib import Path
from typing import Any, NamedTuple

from sail_jax.language.model import architecture as architectures
from sail_jax.language.model.architecture import Architecture


class Published(NamedTuple):
    """What of a checkpoint the shapes of its programs depend on."""

    config: dict[str, Any]
    eos_ids: tuple[int, ...]

    @property
    def architecture(self) -> Architecture:
        """As a checkpoint's would be read."""
        return architectures.from_hf(self.config)


PUBLISHED = {
    'Qwen2.5-0.5B-Instruct': Published(
        {
            'model_type': 'qwen2',
            'vocab_size': 151_936,
            'hidden_size': 896,
            'intermediate_size': 4864,
            'num_hidden_layers': 24,
            'num_attention_heads': 14,
            'num_key_value_heads': 2,
            'rms_norm_eps': 1e-6,
            'rope_theta': 1_000_000.0,
            'tie_word_embeddings': True,
            'max_position_embeddings': 32_768,
            'use_sliding_window': False,
        },
        (151_645, 151_643),
    ),
    'Meta-Llama-3-8B-Instruct': Published(
        {
            'model_type': 'llama',
            'vocab_size': 128_256,
            'hidden_size': 4096,
            'intermediate_size': 14_336,
            'num_hidden_layers': 32,
            'num_attention_heads': 32,
            'num_key_value_heads': 8,
            'rms_norm_eps': 1e-5,
            'rope_theta': 500_000.0,
            'tie_word_embeddings': False,
            'max_position_embeddings': 8192,
        },
        (128_001, 128_009),
    ),
}


def published(path: Path) -> Published:
    """Of the checkpoint that a configuration's `model.path` names.

    Raises:
      KeyError: a model that is not listed.
    """
    return PUBLISHED[path.name]


def small(hidden: int, layers: int, heads: int) -> Architecture:
    """A Qwen2-like network that two cores can train."""
    return Architecture(
        family='qwen2',
        vocab_size=8192,
        hidden_size=hidden,
        intermediate_size=-(-hidden * 11 // 4 // 64) * 64,
        layers=layers,
        heads=heads,
        kv_heads=2,
        head_dim=hidden // heads,
        qkv_bias=True,
        tied=True,
        max_positions=1024,
    )


SMALL = {'4M': small(192, 6, 6), '12M': small(320, 8, 10), '32M': small(512, 10, 8)}
"""By parameters, embedding included."""


def parameter_count(a: Architecture) -> int:
    """Of all matrices; the embedding counts once where it is the output matrix too."""
    attention = a.hidden_size * a.head_dim * (2 * a.heads + 2 * a.kv_heads)
    mlp = 3 * a.hidden_size * a.intermediate_size
    return a.layers * (attention + mlp) + a.vocab_size * a.hidden_size * (1 if a.tied else 2)
