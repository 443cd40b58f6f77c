"""Families of one's own: `examples/custom_model.py` adds a record, and one with parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh
from safetensors import safe_open

from sail_jax.language.config import Sampling
from sail_jax.language.model import architecture, logprobs, lora, sampler, sharding, weights
from sail_jax.language.model.transformer import Decoder
from sail_jax.training import devices
from tests.support import examples, tiny


def decoder_of(custom_model, family, **update):
    """Random parameters, norms included, of the example's sizes."""
    a = architecture.from_hf(custom_model.SIZES | {'model_type': family} | update)
    graphdef, state = nnx.split(Decoder(a, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype)
    return nnx.merge(graphdef, jax.tree.map(draw, state))


def test_a_cap_of_logits_is_in_what_is_sampled_and_in_what_is_trained():
    decoder = decoder_of(examples.load('custom_model'), 'gemma2', final_logit_softcapping=2.0)
    prompts = sampler.pad_prompts([[1, 2, 3], [4, 5]])
    graphdef, state = nnx.split(decoder)

    @jax.jit
    def both(state):
        model = nnx.merge(graphdef, state)
        drawn = sampler.generate(
            model,
            prompts,
            jax.random.split(jax.random.key(0), 2),
            group_size=2,
            settings=Sampling(max_tokens=6),
            eos_E=jnp.asarray([0]),
        )
        predicted = logprobs.predictions(model, prompts, drawn.tokens_BxKxR)
        again = logprobs.log_probs(predicted, drawn.tokens_BxKxR)
        return drawn, again, model.logits(predicted.hidden)

    drawn, logp, logits = both(state)
    mask = drawn.mask_BxKxR
    np.testing.assert_allclose(logp[mask], drawn.logp_BxKxR[mask], atol=1e-5)
    assert 1 < np.abs(logits).max() <= 2


@pytest.mark.parametrize('family', ['pear', 'gemma2'])
def test_layouts_and_names_of_tensors_follow_from_the_names_of_modules(family, tmp_path):
    decoder = decoder_of(examples.load('custom_model'), family)
    settings = lora.Lora(rank=4, targets=('q_proj', 'up_proj'))
    adapted = lora.add(decoder, settings, jax.random.key(0))
    mesh = AbstractMesh((2, 2, 2), devices.AXES)
    layouts = devices.tree_by_rules(mesh, sharding.RULES, nnx.state(adapted))
    for path, layout in jax.tree_util.tree_leaves_with_path(layouts):
        name, used = jax.tree_util.keystr(path), {axis for axis in layout.spec if axis}
        if 'kernel' in name and 'lm_head' not in name:
            assert used == {'fsdp', 'tensor'}, name
        if 'norm' in name:
            assert not used, name
    mlp = 'feed_forward' if family == 'pear' else 'mlp'
    assert f'model.layers.1.{mlp}.up_proj.weight' in weights.places(decoder)
    with safe_open(lora.save(adapted, settings, tmp_path / 'a') / lora.WEIGHTS, 'numpy') as file:
        file.get_slice(f'base_model.model.model.layers.1.{mlp}.up_proj.lora_A.weight')
    again, _ = lora.load(decoder, tmp_path / 'a')
    for a, b in zip(*map(jax.tree.leaves, map(nnx.state, (adapted, again))), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_family_with_parts_of_its_own_computes_what_transformers_does(tmp_path):
    torch, transformers = map(pytest.importorskip, ('torch', 'transformers'))
    custom_model = examples.load('custom_model')
    for change in ({}, {'attention_bias': True, 'attn_logit_softcapping': 0.5}):
        path = tmp_path / str(len(change))
        config = transformers.AutoConfig.for_model(
            'gemma2', attn_implementation='eager', **custom_model.SIZES | change
        )
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3)
        model.save_pretrained(path)
        ids = tiny.tokens(2, 40)
        with torch.no_grad():
            expected = model(torch.tensor(np.asarray(ids))).logits.numpy()
        decoder = weights.load(path)
        assert decoder.architecture.windows == (16, 0)
        logits = decoder.logits(tiny.whole(decoder, ids)[0])
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
