"""A tiny checkpoint with its tokeniser, a file of prompts, and a run on them."""

import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from sail_jax.language.config import LanguageRun
from sail_jax.language.data import tokens
from sail_jax.language.model import weights
from sail_jax.language.model.transformer import Decoder
from tests.support import tiny, tiny_tokenizer

SETTINGS = {
    'workload': 'language',
    'total_prompts': 16,
    'prompts_per_update': 4,
    'group_size': 2,
    'sampling': {'max_tokens': 6},
    'objective': {'beta': 0.1, 'response_grad': 1.0},
    'optimizer': {'learning_rate': 3e-3},
    'evaluation': {'every_updates': 2, 'prompts': 4},
    'checkpoints': {'every_updates': 2},
    'logging': {'tensorboard': False},
}
WORDS = ['the cat', 'what a cat', 'no', 'yes and', 'hello', 'a mat', 'the mat sat', 'bad']


def checkpoint(path: Path, name: str = 'qwen1.5', multiple: int = 1) -> Path:
    """A new model over the ids of the tokeniser, and more up to a multiple."""
    tiny_tokenizer.write(path.parent / f'{path.name}-tokenizer')
    size = tokens.load(path.parent / f'{path.name}-tokenizer').vocab_size
    size += -size % multiple
    architecture = tiny.FAMILIES[name].model_copy(update={'vocab_size': size, 'layers': 2})
    graphdef, state = nnx.split(Decoder(architecture, rngs=nnx.Rngs(0)))
    # Of the size that such narrow matrices need; no token is much more probable than another.
    state = jax.tree.map(lambda x: x if x.ndim < 2 or (x == 1).all() else 10 * x, state)
    weights.save(nnx.merge(graphdef, state), path)
    tiny_tokenizer.write(path)
    return path


def data(path: Path, rows: int = 16, pairs: bool = False) -> Path:
    """Prompts, or pairs whose chosen response says yes."""
    lines = []
    for i in range(rows):
        row = {'prompt': f'{WORDS[i % len(WORDS)]} {i}'}
        if pairs:
            row |= {'chosen': ' yes' * (1 + i % 2), 'rejected': ' no no'}
        lines.append(json.dumps(row))
    path.write_text('\n'.join(lines) + '\n')
    return path


def run(checkpoint: Path, prompts: Path, **settings) -> LanguageRun:
    """A few updates of a tiny model; sections are merged."""
    base = SETTINGS | {
        'model': {'path': str(checkpoint)},
        'data': {'path': str(prompts), 'max_prompt_tokens': 32, 'max_response_tokens': 8},
    }
    merged = {
        key: {**base[key], **value} if isinstance(base.get(key), dict) else value
        for key, value in settings.items()
    }
    return LanguageRun.model_validate(base | merged)


def letters(prompts: list, responses: list[str]) -> list[float]:
    """A reward that can be learned: the share of letters among what could be one."""
    return [sum(c.isascii() and c.isalpha() for c in response) / 6 for response in responses]


def logits(decoder: Decoder, ids_BxT: np.ndarray) -> np.ndarray:
    """Of plain sequences, [B, T, V]."""
    return np.asarray(decoder.logits(tiny.whole(decoder, ids_BxT)[0]))
