"""Mutated model files: read, or refused in one line; never a traceback, and nothing else than what
the file says."""

import json
import os
import random

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from sail_jax.errors import UserError
from sail_jax.language.model import architecture, lora, weights
from sail_jax.language.model.transformer import Decoder
from tests.support import tiny
from tests.support.mutation import mutate

SCALING = {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 64,
}
MORE = {
    'rope_parameters': SCALING | {'rope_theta': 5e5},
    'rope_scaling': {'type': 'linear', 'factor': 4.0},
    'partial_rotary_factor': 1.0,
    'original_max_position_embeddings': 32,
    'layer_types': ['full_attention'] * 3,
    'use_sliding_window': True,
    'sliding_window': 5,
    'max_window_layers': 1,
    'quantization_config': None,
    'is_causal': True,
}


def changed_json(data, rng):
    """With changed values and keys, some of them names that do not fit a line."""
    changed = mutate(data, rng)
    if rng.random() < 0.1:
        changed[rng.choice(['a\nb', '\x1b]0;title\x07', 'a' * 5000])] = 1
    return changed


def read_or_refused(call, *arguments):
    """What was read, or None."""
    try:
        return call(*arguments)
    except UserError as error:
        refusal = str(error)
    assert refusal
    assert refusal.isprintable()
    assert len(refusal) < 1000
    return None


@settings(max_examples=400)
@given(seed=st.integers(0, 2**32))
@example(seed=284)  # Gemma 3, none of whose layers has a window.
def test_changed_configurations(seed):
    rng = random.Random(seed)
    data = architecture.to_hf(tiny.FAMILIES[rng.choice(sorted(tiny.FAMILIES))])
    data |= dict(rng.sample(sorted(MORE.items()), rng.randint(0, 3)))
    changed = json.loads(json.dumps(changed_json(data, rng)))
    ours = read_or_refused(architecture.from_hf, changed)
    if ours is None:
        return
    assert architecture.from_hf(json.loads(json.dumps(architecture.to_hf(ours)))) == ours
    for name, theirs in architecture.RENAMED.items():
        if changed.get(theirs) is not None:
            assert changed[theirs] == getattr(ours, name)
            assert isinstance(changed[theirs], bool) is (name == 'tied')
    if seed % 20 == 0:  # Takes a while.
        nnx.eval_shape(lambda: Decoder(ours, rngs=nnx.Rngs(0)))


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    small = {'layers': 1, 'hidden_size': 8, 'intermediate_size': 8}
    path = tmp_path_factory.mktemp('model')
    return weights.save(tiny.decoder('llama2', update=small), path / 'm')


@pytest.fixture(scope='module')
def adapter(model):
    chosen = lora.Lora(rank=2, alpha=4.0, targets=('q_proj',))
    decoder = lora.add(weights.load(model), chosen, jax.random.key(0))
    return lora.save(decoder, chosen, model.parent / 'a')


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32))
def test_changed_adapter_configurations(adapter, seed):
    rng = random.Random(seed)
    file = adapter.parent / 'adapter_config.json'
    data = json.loads((adapter / 'adapter_config.json').read_text())
    data |= {'init_lora_weights': True, 'use_qalora': False, 'exclude_modules': None}
    file.write_text(json.dumps(changed_json(data, rng)))
    ours = read_or_refused(lora.read_settings, file.parent)
    if ours is None:
        return
    changed = json.loads(file.read_text())
    assert (ours.rank, ours.alpha) == (changed['r'], changed['lora_alpha'])
    assert list(ours.targets) == changed['target_modules']
    on = {key for key in lora.PLAIN if changed.get(key) not in (None, False, {}, [], '')}
    assert {key: changed[key] for key in on} == {key: lora.PLAIN[key] for key in on}


def damage(content, rng):
    """Changes bytes of the header, the header's text, or the length of the file."""
    size = int.from_bytes(content[:8], 'little')
    header, rest = content[8 : 8 + size], content[8 + size :]
    match rng.randrange(4):
        case 0:
            where = rng.randrange(8 + size)
            return content[:where] + bytes([rng.randrange(256)]) + content[where + 1 :]
        case 1:
            return content[: rng.randrange(len(content))]
        case 2:
            return os.urandom(rng.randrange(64)) + content
    text = json.dumps(changed_json(json.loads(header), rng)).encode('utf-8', 'surrogatepass')
    return len(text).to_bytes(8, 'little') + text + rest


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_damaged_headers_of_weights(model, seed):
    rng = random.Random(seed)
    path = model.parent / 'damaged'
    path.mkdir(exist_ok=True)
    (path / 'config.json').write_bytes((model / 'config.json').read_bytes())
    file = path / 'model.safetensors'
    file.write_bytes(damage((model / 'model.safetensors').read_bytes(), rng))
    decoder = read_or_refused(weights.load, path)
    if decoder is None:
        return
    tensors = load_file(file)
    for name, place in weights.places(decoder).items():
        ours = weights._tensor(weights.parameters(decoder)[place.parameter], place, None)
        np.testing.assert_array_equal(ours, tensors[name])
