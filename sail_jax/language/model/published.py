"""Sizes of models that are not at hand, from the `config.json` that their makers publish: enough to
plan a run with."""

import logging
from pathlib import Path
from typing import Any

from sail_jax import files, hub
from sail_jax.errors import UserError
from sail_jax.language.model import architecture as architectures
from sail_jax.language.model.architecture import Architecture

log = logging.getLogger(__name__)


# parameters: the columns of a table
def _sizes(
    family: str,
    vocabulary: int,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    **more: Any,
) -> dict[str, Any]:
    return {
        'model_type': family,
        'vocab_size': vocabulary,
        'hidden_size': hidden,
        'intermediate_size': intermediate,
        'num_hidden_layers': layers,
        'num_attention_heads': heads,
        'num_key_value_heads': kv_heads,
        'max_position_embeddings': 32_768,
        'rope_theta': 1e6,
        **more,
    }


LLAMA = {'rope_theta': 5e5, 'rms_norm_eps': 1e-5, 'max_position_embeddings': 8192}
LONG = LLAMA | {'max_position_embeddings': 131_072}
TIED = {'tie_word_embeddings': True}
WIDE = {'head_dim': 128}
GEMMA = {'head_dim': 256, 'sliding_window': 512}
LONG_PHI = {'max_position_embeddings': 131_072}
OLMO = {'max_position_embeddings': 4096}
SMOL = TIED | {'max_position_embeddings': 8192}
# Their rotary frequencies are left out: no shape depends on them.
PUBLISHED = {
    'llama-3-8b': _sizes('llama', 128_256, 4096, 14_336, 32, 32, 8, **LLAMA),
    'llama-3-70b': _sizes('llama', 128_256, 8192, 28_672, 80, 64, 8, **LLAMA),
    'llama-3.1-8b': _sizes('llama', 128_256, 4096, 14_336, 32, 32, 8, **LONG),
    'llama-3.1-70b': _sizes('llama', 128_256, 8192, 28_672, 80, 64, 8, **LONG),
    'llama-3.2-1b': _sizes('llama', 128_256, 2048, 8192, 16, 32, 8, **LONG, **TIED),
    'llama-3.2-3b': _sizes('llama', 128_256, 3072, 8192, 28, 24, 8, **LONG, **TIED, **WIDE),
    'mistral-7b': _sizes('mistral', 32_768, 4096, 14_336, 32, 32, 8, sliding_window=None),
    'qwen1.5-0.5b': _sizes('qwen2', 151_936, 1024, 2816, 24, 16, 16, **TIED),
    'qwen2.5-0.5b': _sizes('qwen2', 151_936, 896, 4864, 24, 14, 2, **TIED),
    'qwen2.5-1.5b': _sizes('qwen2', 151_936, 1536, 8960, 28, 12, 2, **TIED),
    'qwen2.5-3b': _sizes('qwen2', 151_936, 2048, 11_008, 36, 16, 2, **TIED),
    'qwen2.5-7b': _sizes('qwen2', 152_064, 3584, 18_944, 28, 28, 4),
    'qwen3-0.6b': _sizes('qwen3', 151_936, 1024, 3072, 28, 16, 8, **TIED, **WIDE),
    'qwen3-1.7b': _sizes('qwen3', 151_936, 2048, 6144, 28, 16, 8, **TIED, **WIDE),
    'qwen3-4b': _sizes('qwen3', 151_936, 2560, 9728, 36, 32, 8, **TIED, **WIDE),
    'qwen3-8b': _sizes('qwen3', 151_936, 4096, 12_288, 36, 32, 8, **WIDE),
    'gemma-3-270m': _sizes('gemma3_text', 262_144, 640, 2048, 18, 4, 1, **GEMMA),
    'gemma-3-1b': _sizes('gemma3_text', 262_144, 1152, 6912, 26, 4, 1, **GEMMA),
    'phi-3-mini': _sizes('phi3', 32_064, 3072, 8192, 32, 32, 32, sliding_window=2047),
    'phi-3.5-mini': _sizes('phi3', 32_064, 3072, 8192, 32, 32, 32, **LONG_PHI),
    'phi-4': _sizes('phi3', 100_352, 5120, 17_920, 40, 40, 10, max_position_embeddings=16_384),
    'phi-4-mini': _sizes('phi3', 200_064, 3072, 8192, 32, 24, 8, **LONG_PHI, **TIED),
    'olmo-2-0425-1b': _sizes('olmo2', 100_352, 2048, 8192, 16, 16, 16, **OLMO),
    'olmo-2-1124-7b': _sizes('olmo2', 100_352, 4096, 11_008, 32, 32, 32, **OLMO),
    'olmo-2-1124-13b': _sizes('olmo2', 100_352, 5120, 13_824, 40, 40, 40, **OLMO),
    'smollm2-135m': _sizes('llama', 49_152, 576, 1536, 30, 9, 3, **SMOL),
    'smollm2-360m': _sizes('llama', 49_152, 960, 2560, 32, 15, 5, **SMOL),
    'smollm2-1.7b': _sizes('llama', 49_152, 2048, 8192, 24, 32, 32, **SMOL),
    'smollm3-3b': _sizes('smollm3', 128_256, 2048, 11_008, 36, 16, 4, **TIED),
}
"""By names that the directories of these models, and of those made of them, contain."""


def architecture(path: Path) -> Architecture:
    """That of a checkpoint directory, or, where there is none, what is published under its name,
    which is said.

    Raises:
      UserError: as of `architecture.read`; there is no directory, and nothing is known of its name.
    """
    if hub.is_address(path) or files.exists(path):
        return architectures.read(path)
    names = [name for name in PUBLISHED if name in path.name.lower()]
    if not names:
        raise UserError(
            f'{path}: no such directory, and no model whose sizes are known: '
            f'{", ".join(PUBLISHED)}; a directory with the config.json of the model is enough'
        )
    name = max(names, key=len)
    log.warning('%s: not at hand; planned with the published sizes of %s', path, name)
    return architectures.from_hf(PUBLISHED[name], name)
