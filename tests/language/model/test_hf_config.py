"""`config.json` against transformers: over combinations of its keys the logits are equal, or the
file is refused."""

import json
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sail_jax.errors import UserError
from sail_jax.language.model import architecture, weights
from sail_jax.language.model.families import FAMILIES
from tests.support import tiny

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

LAYERS, TOKENS = 2, 24
SIZES = {
    'vocab_size': 61,
    'hidden_size': 16,
    'intermediate_size': 24,
    'num_hidden_layers': LAYERS,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 8,
    'rms_norm_eps': 1e-6,
    'max_position_embeddings': 64,
}
LLAMA3 = {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 16,
}
YARN = {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 16}
LONG = {
    'rope_type': 'longrope',
    'short_factor': [1.0, 2.0],
    'long_factor': [3.0, 5.0],
    'original_max_position_embeddings': 16,
}
SLIDING, FULL = 'sliding_attention', 'full_attention'
ABSENT = object()


def one_of(*values):
    return st.sampled_from(values)


rope_objects = one_of(
    None,
    {},
    {'rope_type': 'default', 'rope_theta': 50.0},
    {'rope_theta': 80.0},
    {'type': 'linear', 'factor': 4.0},
    {'rope_type': 'linear', 'factor': 2, 'rope_theta': 30},
    {'type': 'linear', 'rope_type': 'default'},
    {'type': 'linear', 'rope_type': 'llama3', **{k: LLAMA3[k] for k in list(LLAMA3)[1:]}},
    LLAMA3,
    LLAMA3 | {'rope_theta': 40.0},
    {k: v for k, v in LLAMA3.items() if k != 'original_max_position_embeddings'},
    LLAMA3 | {'low_freq_factor': 4.0, 'high_freq_factor': 1.0},
    {'rope_type': 'linear'},
    {'rope_type': 'linear', 'factor': None},
    {'rope_type': 'linear', 'factor': '4'},
    {'rope_type': 'linear', 'factor': 4.0, 'partial_rotary_factor': 0.5},
    {'rope_type': 'default', 'partial_rotary_factor': 1.0},
    {'rope_type': 'dynamic', 'factor': 2.0},
    {'rope_type': 'dynamic', 'factor': 2.0, 'beta_fast': 3.0},
    {'rope_type': 'yarn', 'factor': 2.0},
    YARN,
    YARN | {'rope_theta': 70, 'beta_fast': 4, 'beta_slow': 0.5, 'truncate': False},
    YARN | {'attention_factor': 0.8},
    YARN | {'mscale': 0.7, 'mscale_all_dim': 0.4},
    YARN | {'factor': None},
    YARN | {'beta_fast': None},
    LONG,
    LONG | {'factor': 2.0},
    LONG | {'attention_factor': 1.2, 'type': 'su'},
    LONG | {'rope_type': 'su'},
    LONG | {'rope_type': 'yarn'},
    LONG | {'long_factor': [1.0]},
    LONG | {'long_factor': 3.0},
    {k: v for k, v in LONG.items() if k != 'original_max_position_embeddings'},
    {FULL: {'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 30.0}},
    {FULL: {'rope_type': 'default'}, SLIDING: {'rope_type': 'linear', 'factor': 4.0}},
    {FULL: {'rope_type': 'default'}, SLIDING: {'rope_type': 'default', 'rope_theta': 30.0}},
    {FULL: {'rope_type': 'linear', 'factor': 4.0}, SLIDING: None},
    {FULL: {'type': 'linear', 'factor': 4.0}},
    {FULL: YARN},
    {SLIDING: {'rope_theta': 9}, 'rope_theta': 8.0},
    [],
    3,
)
keys = {
    'rope_parameters': rope_objects,
    'rope_scaling': rope_objects,
    'rope_theta': one_of(100.0, 25, None, '100'),
    'original_max_position_embeddings': one_of(8, 32, None),
    'partial_rotary_factor': one_of(None, 1.0, 0.5),
    'sliding_window': one_of(3, 7, None, 0, 'x'),
    'use_sliding_window': one_of(True, False, None, 'yes'),
    'max_window_layers': one_of(0, 1, 2, 5, 'x', None),
    'layer_types': one_of(
        [SLIDING, FULL], [FULL, FULL], [SLIDING, SLIDING], [FULL], [], None, 5, ['chunked', FULL]
    ),
    'num_key_value_heads': one_of(4, 1, None, 0, 3, ABSENT),
    'head_dim': one_of(4, None, 0, ABSENT),
    'no_rope_layers': one_of([1, 0], [0, 0], [1], [1, 0, 1], None, 3),
    'no_rope_layer_interval': one_of(1, 2, 3, 0, None),
    'rope_local_base_freq': one_of(20.0, 30, None),
    'sliding_window_pattern': one_of(1, 2, 6, 0, None),
    'query_pre_attn_scalar': one_of(5, 7.5, 0, None),
    'hidden_activation': one_of('gelu_pytorch_tanh', 'silu', None),
    'attn_logit_softcapping': one_of(None, 0.5),
    'use_bidirectional_attention': one_of(True, False, None),
    'attention_bias': one_of(True, False, None, 'false'),
    'mlp_bias': one_of(True, False, 1),
    'rms_norm_eps': one_of(1e-2, None, ABSENT),
    'tie_word_embeddings': one_of(True, False, None, 'no'),
    'max_position_embeddings': one_of(32, ABSENT),
    'hidden_act': one_of('silu', 'gelu', 'relu', None, ABSENT),
    'is_causal': one_of(True, False, None),
    'final_logit_softcapping': one_of(None, 5.0),
    'attention_multiplier': one_of(None, 2.0),
    'pretraining_tp': one_of(1, 2),
    'quantization_config': one_of(None, {'quant_method': 'gptq', 'bits': 4}),
}


@st.composite
def configurations(draw):
    """A tiny model of a family with up to five keys changed, windows and RoPE more often."""
    data = SIZES | {'model_type': draw(one_of(*FAMILIES))}
    if data['model_type'] == 'phi3':
        data['head_dim'] = 4
    names = draw(st.lists(st.sampled_from(sorted(keys)), min_size=1, max_size=5, unique=True))
    data |= {name: draw(keys[name]) for name in names}
    return {key: value for key, value in data.items() if value is not ABSENT}


def equal_or_refused(data, path):
    """Whether it was read: then transformers reads it too, with the same logits."""
    path.mkdir(exist_ok=True)
    (path / 'config.json').write_text(json.dumps(data))
    try:
        ours = architecture.read(path)
    except UserError:
        return False
    config = transformers.AutoConfig.from_pretrained(path)
    config.pad_token_id = None  # Of a larger vocabulary.
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(float('norm' in key), 0.3)
    ids = tiny.tokens(1, TOKENS)
    with torch.no_grad():
        theirs = model(torch.tensor(np.asarray(ids))).logits.numpy()
    model.save_pretrained(path)
    (path / 'config.json').write_text(json.dumps(data))
    decoder = weights.load(path).of_length(TOKENS)
    assert decoder.architecture == ours
    logits = decoder.logits(tiny.whole(decoder, ids)[0])
    np.testing.assert_allclose(logits, theirs, atol=2e-4, rtol=0)
    return True


@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(configurations())
def test_combinations_of_keys_are_as_in_transformers_or_refused(tmp_path_factory, data):
    equal_or_refused(data, tmp_path_factory.getbasetemp() / 'config')


@pytest.mark.slow
@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(configurations())
def test_many_combinations_of_keys(tmp_path_factory, data):
    equal_or_refused(data, tmp_path_factory.getbasetemp() / 'config')


NEW = {'rope_type': 'default', 'rope_theta': 50.0}
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ('family', 'change', 'read'),
    [
        (
            'llama',
            {'rope_parameters': NEW, 'rope_scaling': {'type': 'linear', 'factor': 4.0}},
            True,
        ),
        ('qwen2', {'rope_parameters': NEW, 'rope_scaling': {}, 'rope_theta': 100.0}, True),
        ('llama', {'rope_scaling': LLAMA3, 'original_max_position_embeddings': 8}, True),
        ('mistral', {'sliding_window': 5, 'layer_types': [SLIDING, FULL]}, True),
        ('qwen3', {'use_sliding_window': True, 'sliding_window': 5, 'max_window_layers': 1}, True),
        ('llama', {'rope_parameters': {FULL: NEW}}, False),
        ('qwen2', {'rope_parameters': {FULL: NEW}}, False),
        ('qwen2', {'layer_types': 5}, False),
        ('qwen2', {'max_window_layers': 'x'}, False),
        ('qwen2', {'sliding_window': 5, 'layer_types': [SLIDING, FULL]}, False),
        ('llama', {'is_causal': False}, False),
        slow('llama', {'rope_scaling': YARN}, True),
        slow(
            'qwen3',
            {'rope_scaling': LONG | {'short_factor': [1] * 4, 'long_factor': [2] * 4}},
            True,
        ),
        slow('qwen2', {'rope_scaling': {'type': 'dynamic', 'factor': 2.0}}, True),
        slow('gemma3_text', {'sliding_window': 5, 'layer_types': [SLIDING, FULL]}, True),
        (
            'gemma3_text',
            {
                'sliding_window': 5,
                'sliding_window_pattern': 2,
                'rope_scaling': {'rope_type': 'linear', 'factor': 4.0},
                'rope_local_base_freq': 20,
                'query_pre_attn_scalar': 5,
                'final_logit_softcapping': 2.0,
            },
            True,
        ),
        ('gemma3_text', {'rope_parameters': {FULL: YARN}}, False),
        ('gemma3_text', {'attn_logit_softcapping': 50.0}, False),
        slow('phi3', {'head_dim': 4, 'rope_scaling': LONG, 'sliding_window': 5}, True),
        (
            'phi3',
            {
                'head_dim': 4,
                'partial_rotary_factor': 0.5,
                'original_max_position_embeddings': 16,
                'rope_scaling': LONG | {'short_factor': [2.0], 'long_factor': [4.0]},
            },
            True,
        ),
        ('phi3', {'head_dim': 4, 'rope_scaling': YARN}, False),
        slow('smollm3', {'no_rope_layers': [0, 1], 'rope_scaling': YARN}, True),
        ('smollm3', {'use_sliding_window': True, 'sliding_window': 5}, True),
        ('smollm3', {'no_rope_layers': [0]}, False),
    ],
)
def test_settings_beside_each_other(tmp_path, family, change, read):
    assert equal_or_refused(SIZES | {'model_type': family} | change, tmp_path) is read
