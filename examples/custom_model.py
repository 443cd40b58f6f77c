"""Two model families of one's own: a record, and a record with parts.

A family whose network is Llama's is one record. Gemma 2 is a record whose network has other parts:
those of Gemma 3, which `sail_jax.language.model.gemma` has (another norm, norms behind attention
and MLP too, GELU, embeddings that are scaled), and a cap of the scores. Names of tensors, layouts
on devices, adapters, sampling and training follow; nothing else is told of either.

    python examples/custom_model.py

makes a tiny random checkpoint of each, reads it, samples from it, and writes it again. With a
checkpoint that is there already, `sail_jax.train(..., overrides={'model.path': ...})` aligns it as
any other, once the record stands in `FAMILIES`.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from sail_jax import files
from sail_jax.language import export
from sail_jax.language.config import Sampling
from sail_jax.language.model import architecture, gemma, weights
from sail_jax.language.model.families import FAMILIES, Family
from sail_jax.language.model.layers import Parts
from sail_jax.language.model.transformer import Decoder

# Llama's network: biases as Qwen2's, a window in every other layer, and its own names of tensors.
PEAR = Family(
    'pear',
    'PearForCausalLM',
    keys={'sliding_window': (int | None, 16)},
    switches={'qkv_bias': True},
    looks_back_on_all=lambda keys, layer: layer % 2 == 0,
    tensor_names={'layers.mlp': 'layers.feed_forward', 'norm': 'final_norm'},
)


def gemma2_parts(a: architecture.Architecture) -> Parts:
    """Of arXiv 2408.00118."""
    return replace(gemma.gemma3(a), attention_cap=a.extras.get('attn_logit_softcapping'))


GEMMA2 = Family(
    'gemma2',
    'Gemma2ForCausalLM',
    keys={
        'num_key_value_heads': (int, 4),
        'head_dim': (int, 256),
        'max_position_embeddings': (int, 8192),
        'tie_word_embeddings': (bool, True),
        'sliding_window': (int | None, 4096),
        'attention_bias': (bool, False),
    },
    extras={
        'hidden_activation': (Literal['gelu_pytorch_tanh'], 'gelu_pytorch_tanh'),
        'query_pre_attn_scalar': (int | float, 256),
        'attn_logit_softcapping': (float | None, 50.0),
        'final_logit_softcapping': (float | None, 30.0),
    },
    looks_back_on_all=lambda keys, layer: layer % 2 == 1,
    activation='gelu_pytorch_tanh',
    parts=gemma2_parts,
)

FAMILIES |= {family.name: family for family in (PEAR, GEMMA2)}

SIZES = {
    'vocab_size': 257,
    'hidden_size': 32,
    'intermediate_size': 48,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 8,
    'max_position_embeddings': 128,
    'sliding_window': 16,
}


def make_checkpoint(family: str, path: Path) -> Path:
    """A tiny random model of the family, with a tokeniser of bytes."""
    a = architecture.from_hf(SIZES | {'model_type': family})
    weights.save(Decoder(a, rngs=nnx.Rngs(0)), path)
    letters = ['<|end|>', *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({letter: id for id, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(['<|end|>'])
    tokenizer.save(str(path / 'tokenizer.json'))
    files.write_json(path / 'tokenizer_config.json', {'eos_token': '<|end|>'})
    return path


def main(directory: Path) -> None:
    for family in ('pear', 'gemma2'):
        source = make_checkpoint(family, directory / family)
        decoder, tokenizer, _ = export.load(source)
        [[answer]] = export.generate(decoder, tokenizer, ['hello'], Sampling(max_tokens=24))
        print(f'{family}: {answer!r}')
        again = weights.save(decoder, directory / f'{family}-exported', source=source)
        same = (source / weights.SINGLE).read_bytes() == (again / weights.SINGLE).read_bytes()
        print(f'{family}: the tensors that were written again are {"" if same else "not "}the same')


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
