"""Checkpoints of random weights in the usual sizes, and prompts for them."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import nnx

from sail_jax.language import weights
from sail_jax.language.architecture import Architecture, Rope
from sail_jax.language.model import Decoder


def qwen(vocab: int, width: int, mlp: int, layers: int, heads: int, kv_heads: int) -> Architecture:
    """A decoder of the Qwen2.5 family: biases on queries, keys and values, embeddings tied."""
    return Architecture(
        family='qwen2',
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=mlp,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width // heads,
        rope=Rope(theta=1e6),
        tied=True,
        qkv_bias=True,
        max_positions=4096,
    )


QWEN_05B = qwen(151_936, 896, 4864, layers=24, heads=14, kv_heads=2)
"""Qwen2.5-0.5B."""
LLAMA_8B = Architecture(
    family='llama',
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    norm_eps=1e-5,
    rope=Rope(theta=5e5),
    max_positions=8192,
)
"""Llama-3-8B."""
SIZES = {
    '1M': qwen(2048, 128, 384, layers=4, heads=4, kv_heads=2),
    '10M': qwen(8192, 320, 896, layers=6, heads=5, kv_heads=1),
    '40M': qwen(16_384, 512, 1536, layers=10, heads=8, kv_heads=2),
    'qwen2.5-0.5b': QWEN_05B,
}


def words(rng: np.random.Generator, count: int, vocab: int) -> str:
    """So many words of the tokeniser's that are no special tokens."""
    return ' '.join(f'w{index}' for index in rng.integers(2, vocab, count))


def write_checkpoint(path: Path, architecture: Architecture, seed: int = 0) -> Path:
    """A Hugging Face directory: random float32 weights, and a tokeniser of a word a token."""
    decoder = Decoder(architecture, rngs=nnx.Rngs(seed), param_dtype=jnp.float32)
    weights.save(decoder, path)
    vocabulary = {'<unk>': 0, '<eos>': 1}
    vocabulary |= {f'w{index}': index for index in range(2, architecture.vocab_size)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token='<unk>'))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path / 'tokenizer.json'))
    settings = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'eos_token': '<eos>',
        'pad_token': '<eos>',
        'unk_token': '<unk>',
    }
    weights.write_json(path / 'tokenizer_config.json', settings)
    return path


def write_pairs(
    path: Path, rows: int, prompt_tokens: int, response_tokens: int, vocab: int, seed: int = 0
) -> Path:
    """Prompts with a chosen and a rejected response, of these lengths, as JSONL in TRL's form."""
    rng = np.random.default_rng(seed)
    with path.open('w') as file:
        for _ in range(rows):
            # One place is the end of sequence's.
            chosen, rejected = (words(rng, response_tokens - 1, vocab) for _ in range(2))
            row = {
                'prompt': words(rng, prompt_tokens, vocab),
                'chosen': f' {chosen}',
                'rejected': f' {rejected}',
            }
            file.write(json.dumps(row) + '\n')
    return path
