import json

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from sail_jax.errors import UserError
from sail_jax.language.model import lora, weights
from tests.support import tiny
from tests.support.tiny import assert_same_bits, trained, whole

EVERY = ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')


def logits(decoder):
    return decoder.logits(whole(decoder, tiny.tokens(2, 9))[0])


def test_new_adapter_changes_nothing_and_off_is_the_base_bit_for_bit():
    base = tiny.decoder('qwen2')
    new = lora.add(base, lora.Lora(rank=3), jax.random.key(0))
    np.testing.assert_array_equal(logits(new), logits(base))
    with_adapter, _ = trained()
    assert np.abs(logits(with_adapter) - logits(base)).max() > 0.1
    np.testing.assert_array_equal(logits(lora.off(with_adapter)), logits(base))


def test_policy_and_reference_share_the_frozen_weights():
    base = tiny.decoder('qwen2')
    adapted = lora.split(lora.add(base, lora.Lora(rank=3), jax.random.key(0)))
    frozen, ours = jax.tree.leaves(adapted.frozen), jax.tree.leaves(nnx.state(base))
    assert all(a is b for a, b in zip(frozen, ours, strict=True))
    reference = nnx.merge(adapted.off, adapted.frozen)
    np.testing.assert_array_equal(logits(reference), logits(base))


def test_maps_that_the_layers_have_not_are_refused_by_name():
    said = (
        'model.lora.targets: q_proj, up_proj: the layers of phi3 have down_proj, gate_up_proj, '
        'o_proj, qkv_proj'
    )
    with pytest.raises(UserError, match=f'^{said}$'):
        trained(('q_proj', 'o_proj', 'up_proj'), name='phi3')
    decoder, _ = trained(('qkv_proj', 'gate_up_proj'), name='phi3')
    np.testing.assert_allclose(logits(lora.merge(decoder)), logits(decoder), atol=1e-5)


def test_gradient_reaches_the_adapter_alone():
    adapted = lora.split(trained()[0])

    @jax.jit
    def grad(adapter, frozen):
        def loss(adapter):
            decoder = nnx.merge(adapted.on, adapter, frozen)
            return (whole(decoder, tiny.tokens(2, 9))[0] ** 2).sum()

        return jax.grad(loss)(adapter)

    gradient = grad(adapted.trained, adapted.frozen)
    assert jax.tree.structure(gradient) == jax.tree.structure(adapted.trained)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize('targets', [('v_proj',), EVERY])
def test_merged_model_computes_what_the_adapted_one_does(targets):
    decoder, _ = trained(targets)
    merged = lora.merge(decoder)
    assert not nnx.to_flat_state(nnx.state(merged, nnx.LoRAParam))
    np.testing.assert_allclose(logits(merged), logits(decoder), atol=1e-5)


def test_an_adapter_of_the_last_layers_leaves_the_others_as_they_are(tmp_path):
    base, settings = tiny.decoder('qwen2'), lora.Lora(rank=3, layers=2)
    adapted = lora.split(lora.add(base, settings, jax.random.key(0)))
    rule = optax.adamw(0.1, weight_decay=0.1)

    @jax.jit
    def step(adapter, moments, frozen):
        def loss(adapter):
            decoder = nnx.merge(adapted.on, adapter, frozen)
            return (whole(decoder, tiny.tokens(2, 9))[0] ** 3).sum()

        change, moments = rule.update(jax.grad(loss)(adapter), moments, adapter)
        return optax.apply_updates(adapter, change), moments

    adapter, moments = adapted.trained, rule.init(adapted.trained)
    for _ in range(2):
        adapter, moments = step(adapter, moments, adapted.frozen)
    for x in jax.tree.leaves(adapter):
        assert not x[0].any()
        assert all(np.abs(layer).max() > 0 for layer in x[1:])

    decoder = nnx.merge(adapted.on, adapter, adapted.frozen)
    path = lora.save(decoder, settings, tmp_path / 'a')
    written = json.loads((path / 'adapter_config.json').read_text())
    assert written['layers_to_transform'] == [1, 2]
    assert not any('layers.0' in name for name in load_file(path / 'adapter_model.safetensors'))
    loaded, read = lora.load(base, path)
    assert read == settings
    np.testing.assert_array_equal(logits(loaded), logits(decoder))
    with pytest.raises(UserError, match=r'^model.lora.layers: 4; the model has 3$'):
        lora.add(base, lora.Lora(layers=4), jax.random.key(0))


def test_adapter_is_not_exported_unmerged(tmp_path):
    with pytest.raises(ValueError, match=r'lora\.merge'):
        weights.save(trained()[0], tmp_path / 'a')


def test_adapter_round_trips_bit_for_bit(tmp_path):
    decoder, settings = trained(EVERY)
    lora.save(decoder, settings, tmp_path / 'a')
    loaded, read = lora.load(tiny.decoder('qwen2'), tmp_path / 'a')
    assert read == settings
    lora.save(loaded, read, tmp_path / 'b')
    a, b = (load_file(tmp_path / x / 'adapter_model.safetensors') for x in 'ab')
    assert_same_bits(a, b)
    np.testing.assert_array_equal(logits(loaded), logits(decoder))


Q0 = 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'


@pytest.mark.parametrize(
    ('config', 'change', 'message'),
    [
        ({'peft_type': 'IA3'}, None, "peft_type: 'IA3'; only 'LORA'"),
        ({'bias': 'all'}, None, "bias: 'all'; only 'none' is supported"),
        ({'layers_to_transform': 0}, None, 'does not have: .*layers.0'),
        ({'layers_to_transform': [0, 2]}, None, r'transform: \[0, 2\]; only the last layers of a'),
        ({'layers_to_transform': ['2']}, None, r"layers_to_transform: \['2'\]; only the last"),
        ({'layers_to_transform': [1, 2, 3, 4]}, None, '4 layers; the model has 3'),
        ({'init_lora_weights': 'pissa'}, None, "init_lora_weights: 'pissa': such an adapter"),
        ({'init_lora_weights': 'pissa_niter_4'}, None, "init_lora_weights: 'pissa_niter_4'"),
        ({'init_lora_weights': 'olora'}, None, "init_lora_weights: 'olora'"),
        ({'init_lora_weights': 'corda'}, None, "init_lora_weights: 'corda'"),
        ({'init_lora_weights': 'loftq'}, None, "init_lora_weights: 'loftq'"),
        ({'init_lora_weights': ['x']}, None, r"init_lora_weights: \['x'\]"),
        ({'alora_invocation_tokens': [4]}, None, r'alora_invocation_tokens: \[4\]; a variant'),
        ({'use_qalora': True}, None, 'use_qalora: True; a variant'),
        ({'target_parameters': ['x']}, None, 'target_parameters: .* a variant'),
        ({'trainable_token_indices': [1]}, None, 'trainable_token_indices: .* a variant'),
        ({'exclude_modules': ['q_proj']}, None, 'exclude_modules: .* a variant'),
        ({'kasa_config': {'beta': 1.0}}, None, 'kasa_config: .* a variant'),
        ({'of_a_later_peft': 1}, None, 'of_a_later_peft: 1; a variant of LoRA that is not'),
        ({'r': '3'}, None, "r: .*got '3'"),
        ({'lora_alpha': float('inf')}, None, 'lora_alpha: .*got inf'),
        ({'use_dora': True}, None, 'use_dora: True; only False'),
        ({'rank_pattern': {'q_proj': 4}}, None, 'rank_pattern: .* only {}'),
        ({'target_modules': 'all-linear'}, None, "target_modules: a pattern, 'all-linear'"),
        ({'target_modules': ['lm_head']}, None, "target_modules.0: .*got 'lm_head'"),
        ({'r': 0}, None, 'r: .*got 0'),
        ({'r': 4}, None, 'shape \\(3, 24\\); the configuration needs \\(4, 24\\)'),
        ({'r': None}, None, 'r: .*got None'),
        ({}, lambda x: x.pop(Q0), f'tensors missing: {Q0} \\(1 in all\\)'),
        ({}, lambda x: x.update(other=x[Q0]), 'does not have: other'),
    ],
)
def test_adapter_that_does_not_fit_is_named(tmp_path, config, change, message):
    decoder, settings = trained()
    path = lora.save(decoder, settings, tmp_path / 'a')
    file = path / 'adapter_config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    if change:
        content = load_file(path / 'adapter_model.safetensors')
        change(content)
        save_file(content, path / 'adapter_model.safetensors')
    with pytest.raises(UserError, match=message) as caught:
        lora.load(tiny.decoder('qwen2'), path)
    assert '\n' not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('config.yaml', 'a run, and no adapter; `sail-jax export .*/a DIR --adapter` writes that'),
        ('config.json', 'a model, and no adapter: it has no adapter_config.json'),
        ('mine/adapter_config.json', 'no adapter_config.json; .*, e.g. .*/a/mine'),
        ('none', 'adapter_config.json: No such file or directory'),
    ],
)
def test_what_is_no_adapter_is_said(tmp_path, name, said):
    file = tmp_path / 'a' / name
    file.parent.mkdir(parents=True)
    file.write_text('{}')
    with pytest.raises(UserError, match=said):
        lora.read_settings(tmp_path / 'a')


def test_settings_that_are_off_or_inert_are_read(tmp_path):
    decoder, settings = trained()
    path = lora.save(decoder, settings, tmp_path / 'a')
    config = json.loads((path / 'adapter_config.json').read_text())
    config |= {'of_a_later_peft': None, 'use_qalora': False, 'qalora_group_size': 16}
    config |= {'init_lora_weights': 'gaussian', 'loftq_config': {}, 'peft_version': '9'}
    del config['bias']
    (path / 'adapter_config.json').write_text(json.dumps(config))
    assert lora.load(tiny.decoder('qwen2'), path)[1] == settings


@pytest.mark.parametrize(
    ('settings', 'plain'),
    [
        ({}, True),
        ({'init_lora_weights': False}, True),
        ({'init_lora_weights': 'gaussian'}, True),
        ({'init_lora_weights': 'orthogonal'}, True),
        ({'init_lora_weights': 'pissa'}, False),
        ({'init_lora_weights': 'olora'}, False),
        ({'use_rslora': True}, False),
        ({'use_dora': True}, False),
        ({'rank_pattern': {'q_proj': 2}}, False),
        ({'alpha_pattern': {'q_proj': 2}}, False),
        ({'layers_to_transform': 1}, False),
        ({'layers_to_transform': 2}, True),
        ({'layers_to_transform': [2, 1], 'layers_pattern': 'layers'}, True),
        ({'bias': 'all'}, False),
        ({'lora_bias': True}, False),
        ({'modules_to_save': ['lm_head']}, False),
        ({'trainable_token_indices': [1, 2]}, False),
        ({'alora_invocation_tokens': [4]}, False),
        ({'task_type': None}, True),
        ({'target_modules': 'all-linear'}, True),
        ({'target_modules': ['self_attn.q_proj', 'mlp.down_proj', 'q_proj']}, True),
        ({'target_modules': ['layers.0.self_attn.q_proj']}, False),
        ({'target_modules': ['layers.0.self_attn.q_proj', 'mlp.up_proj']}, False),
        ({'target_modules': ['q_proj', 'lm_head']}, False),
        ({'target_modules': r'.*\.(q|v)_proj'}, False),
        ({'exclude_modules': ['layers.0.self_attn.q_proj']}, False),
    ],
)
def test_adapters_of_peft_are_read_as_peft_does_or_refused(tmp_path, settings, plain):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    peft = pytest.importorskip('peft')
    base = weights.save(tiny.decoder('llama3'), tmp_path / 'base')
    load = transformers.AutoModelForCausalLM.from_pretrained
    config = {'r': 4, 'lora_alpha': 8, 'target_modules': ['q_proj', 'down_proj']}
    config |= {'task_type': 'CAUSAL_LM'} | settings
    model = peft.get_peft_model(load(base), peft.LoraConfig(**config))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'lora_' in name:
                parameter.normal_(0, 0.2)
    model.save_pretrained(tmp_path / 'adapter')
    try:
        ours = lora.load(weights.load(base), tmp_path / 'adapter')[0]
    except UserError:
        assert not plain
        return
    assert plain
    theirs = peft.PeftModel.from_pretrained(load(base), tmp_path / 'adapter').eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(np.asarray(tiny.tokens(2, 9)))).logits.numpy()
    np.testing.assert_allclose(logits(ours), expected, atol=1e-4, rtol=0)


def test_peft_and_we_read_each_others_adapters(tmp_path):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    peft = pytest.importorskip('peft')
    decoder, settings = trained(EVERY)
    weights.save(tiny.decoder('qwen2'), tmp_path / 'base')
    lora.save(decoder, settings, tmp_path / 'ours', base=tmp_path / 'base')
    weights.save(lora.merge(decoder), tmp_path / 'merged')

    def theirs(model):
        with torch.no_grad():
            return model.eval()(torch.tensor(np.asarray(tiny.tokens(2, 9)))).logits.numpy()

    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'base')
    model = peft.PeftModel.from_pretrained(base, tmp_path / 'ours')
    np.testing.assert_allclose(theirs(model), logits(decoder), atol=1e-4, rtol=0)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'merged')
    np.testing.assert_allclose(theirs(merged), logits(decoder), atol=1e-4, rtol=0)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'lora_' in name:
                parameter.normal_(0, 0.2)
    model.save_pretrained(tmp_path / 'theirs')
    loaded, read = lora.load(weights.load(tmp_path / 'base'), tmp_path / 'theirs')
    assert (read.rank, read.alpha, set(read.targets)) == (3, 5.0, set(EVERY))
    np.testing.assert_allclose(theirs(model), logits(loaded), atol=1e-4, rtol=0)
