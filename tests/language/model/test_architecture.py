import contextlib
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail_jax import files
from sail_jax.errors import UserError
from sail_jax.language.model import architecture
from tests.support.tiny import FAMILIES

LLAMA = architecture.to_hf(FAMILIES['llama2'])
LLAMA3 = {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 64,
}


@pytest.mark.parametrize('name', FAMILIES)
def test_written_configuration_reads_back_equal(name):
    ours = FAMILIES[name]
    assert architecture.from_hf(json.loads(json.dumps(architecture.to_hf(ours)))) == ours


def test_reads_rope_of_transformers_4_and_5():
    scaling = {
        'rope_type': 'llama3',
        'factor': 32.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 8192,
    }
    old = LLAMA | {'rope_theta': 5e5, 'rope_scaling': scaling}
    new = {k: v for k, v in LLAMA.items() if k != 'rope_theta'}
    new |= {'rope_parameters': scaling | {'rope_theta': 5e5}}
    assert architecture.from_hf(old) == architecture.from_hf(new)
    assert architecture.from_hf(old).rope.theta == 5e5
    assert architecture.from_hf(old).rope.factor == 32


def test_defaults_of_absent_keys_are_those_of_transformers():
    old = {
        k: v
        for k, v in LLAMA.items()
        if k not in ('num_key_value_heads', 'head_dim', 'rope_theta', 'tie_word_embeddings')
    }
    ours = architecture.from_hf(old)
    assert (ours.kv_heads, ours.head_dim, ours.rope.theta, ours.tied) == (4, 4, 10_000, False)


def test_of_two_settings_the_one_that_transformers_takes():
    linear = {'type': 'linear', 'factor': 4.0}
    both = LLAMA | {'rope_theta': 25.0, 'rope_scaling': linear}
    both |= {'rope_parameters': {'rope_type': 'default', 'rope_theta': 50.0}}
    rope = architecture.from_hf(both).rope
    assert (rope.kind, rope.factor, rope.theta) == ('linear', 4, 25)
    rope = architecture.from_hf(both | {'rope_scaling': None}).rope
    assert (rope.kind, rope.theta) == ('default', 50)

    beside = LLAMA | {'rope_scaling': LLAMA3, 'original_max_position_embeddings': 32}
    assert architecture.from_hf(beside).rope.original_max_position_embeddings == 32
    inside = {k: v for k, v in LLAMA3.items() if k != 'original_max_position_embeddings'}
    bare = LLAMA | {'rope_scaling': inside, 'max_position_embeddings': 128}
    assert architecture.from_hf(bare).rope.original_max_position_embeddings == 128

    layers = {'sliding_window': 5, 'layer_types': ['full_attention'] * 2 + ['sliding_attention']}
    mistral = architecture.to_hf(FAMILIES['mistral']) | layers
    assert architecture.from_hf(mistral).windows == (0, 0, 5)
    qwen = architecture.to_hf(FAMILIES['qwen2']) | layers
    qwen |= {'use_sliding_window': True, 'max_window_layers': 0}
    assert architecture.from_hf(qwen).windows == (0, 0, 5)


def test_what_changes_nothing_is_read():
    more = {'residual_multiplier': 1.0, 'is_causal': True, 'quantization_config': None}
    more |= {'partial_rotary_factor': 1.0, 'sliding_window': None, 'unsloth_version': '2026.1'}
    assert architecture.from_hf(LLAMA | more) == architecture.from_hf(LLAMA)


def test_windows_by_layer_read_back_equal():
    mistral = FAMILIES['mistral'].model_copy(update={'windows': (5, 0, 5)})
    assert architecture.from_hf(architecture.to_hf(mistral)) == mistral


def test_qwen_window_starts_at_max_window_layers_and_only_if_used():
    qwen = architecture.to_hf(FAMILIES['qwen2']) | {'sliding_window': 7, 'max_window_layers': 2}
    assert architecture.from_hf(qwen).windows == ()
    assert architecture.from_hf(qwen | {'use_sliding_window': True}).windows == (0, 0, 7)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'model_type': 'gpt2'}, "config.json: model_type: 'gpt2'; supported: llama, mistral"),
        (
            {'model_type': 'gemma3'},
            r"model_type: 'gemma3'; .*; its text part saved by itself is a gemma3_text \(docs/",
        ),
        ({'model_type': None}, 'config.json: model_type: None'),
        ({'hidden_act': 'gelu'}, "config.json: hidden_act: 'gelu'; supported: silu"),
        ({'hidden_size': None}, 'config.json: hidden_size: Field required'),
        ({'hidden_size': 'big'}, "config.json: hidden_size: .*, got 'big'"),
        ({'vocab_size': 10**12}, 'config.json: vocab_size: .* less than or equal to 4194304'),
        ({'num_hidden_layers': 0}, 'config.json: num_hidden_layers: .*, got 0'),
        ({'num_key_value_heads': 3}, 'config.json: 4 attention heads do not divide by 3'),
        ({'head_dim': 5}, 'config.json: head_dim: .* multiple of 2, got 5'),
        ({'rope_scaling': {'type': 'proportional'}}, "rope type: 'proportional'; supported"),
        ({'rope_scaling': {'type': 'yarn'}}, 'rope_scaling: rope type yarn needs factor'),
        ({'rope_scaling': {'type': 'linear'}}, 'rope type linear needs factor'),
        ({'rope_scaling': 3}, 'rope_scaling: expected an object, got 3'),
        ({'rope_parameters': 3}, 'rope_parameters: expected an object, got 3'),
        ({'rope_scaling': {'type': 'linear', 'factor': '4'}}, "rope_scaling: factor: .*, got '4'"),
        ({'rope_scaling': {'type': 'linear', 'factor': 1e300}}, 'rope.factor: .* less than'),
        ({'rope_scaling': {'factor': 4.0}}, 'rope_scaling.factor: not of rope type default'),
        (
            {'rope_parameters': {'full_attention': {'rope_theta': 1.0}}},
            'rope_parameters: by type of layer .*full_attention',
        ),
        (
            {'rope_scaling': LLAMA3 | {'low_freq_factor': 4.0}},
            'rope: high_freq_factor 4 is not above low_freq_factor 4',
        ),
        (
            {'rope_scaling': LLAMA3 | {'original_max_position_embeddings': 2**40}},
            'rope.original_max_position_embeddings: .* less than',
        ),
        ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor: .*, got 0.5'),
        ({'rope_theta': '1e4'}, "rope_theta: .*, got '1e4'"),
        ({'tie_word_embeddings': 'false'}, "tie_word_embeddings: .*, got 'false'"),
        ({'attention_bias': 'false'}, "attention_bias: .*, got 'false'"),
        ({'vocab_size': True}, 'vocab_size: .*, got True'),
        ({'num_key_value_heads': 0}, 'num_key_value_heads: .*, got 0'),
        ({'hidden_size': 18}, 'hidden_size 18 does not divide by 4 attention heads'),
        ({'sliding_window': 64}, 'sliding_window: .*, got 64'),
        ({'layer_types': 5}, 'layer_types: .*, got 5'),
        ({'model_type': 'mistral', 'sliding_window': 0}, 'sliding_window: expected at least 1'),
        ({'model_type': 'mistral', 'sliding_window': 2**40}, 'sliding_window.* less than'),
        (
            {'model_type': 'mistral', 'layer_types': ['full_attention']},
            '1 layer_types for 3 layers',
        ),
        ({'model_type': 'qwen2', 'max_window_layers': 'x'}, "max_window_layers: .*, got 'x'"),
        ({'model_type': 'qwen2', 'use_sliding_window': 'yes'}, "use_sliding_window: .*, got 'yes'"),
        (
            {'model_type': 'qwen2', 'sliding_window': 5, 'layer_types': ['sliding_attention'] * 3},
            r'sliding_attention, but no sliding_window \(use_sliding_window is false\)',
        ),
        ({'final_logit_softcapping': 30.0}, 'final_logit_softcapping: 30.0: not of a llama'),
        ({'is_causal': False}, 'is_causal: False: not of a llama'),
        ({'residual_multiplier': 0.2}, 'residual_multiplier: 0.2: not of a llama'),
        (
            {'quantization_config': {'quant_method': 'fp8'}},
            r"quantization_config \('fp8'\): quantised weights are not read",
        ),
    ],
)
def test_bad_configuration_is_named_in_one_line(change, message):
    data = {k: v for k, v in (LLAMA | change).items() if v is not None}
    with pytest.raises(UserError, match=message) as caught:
        architecture.from_hf(data)
    assert '\n' not in str(caught.value)


@given(
    st.sampled_from(sorted(LLAMA)),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([]) | st.just({}),
)
def test_any_value_of_any_key_is_read_or_refused(key, value):
    with contextlib.suppress(UserError):
        architecture.from_hf(LLAMA | {key: value})


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'{"a": ', 'not valid JSON'),
        (b'[1]', 'expected a JSON object, got list'),
        (b'\xff\xfe', 'not valid JSON'),
        (None, 'No such file'),
    ],
)
def test_unreadable_file_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / 'config.json').write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        architecture.read(tmp_path)
    assert str(tmp_path / 'config.json') in str(caught.value)


@pytest.mark.parametrize('size', [None, files.MAX_JSON + 1])
def test_what_is_no_file_or_absurdly_large_is_not_read(tmp_path, size):
    path = tmp_path / 'config.json'
    if size is None:
        path.symlink_to('/dev/null')
    else:
        path.touch()
        os.truncate(path, size)
    said = 'not a regular file' if size is None else 'over 16777216 bytes; at most that'
    with pytest.raises(UserError, match=f'^{path}: {said}'):
        architecture.read(tmp_path)
