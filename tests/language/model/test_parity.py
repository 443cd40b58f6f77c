"""Against `transformers` on the same weights: tiny random checkpoints of every family."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.language.model import architecture, weights
from tests.support import tiny
from tests.support.tiny import FAMILIES, whole

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')


def random_checkpoint(name, path, dtype=None):
    """What `transformers` itself writes for a model of these sizes, every parameter random."""
    config = transformers.AutoConfig.for_model(
        **{k: v for k, v in architecture.to_hf(FAMILIES[name]).items() if k != 'architectures'}
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype or torch.float32)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(float('norm' in key), 0.3)
    model.save_pretrained(path, max_shard_size='4KB' if name == 'llama3' else '1GB')
    return model.eval()


def torch_logits(model, tokens_BxT):
    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens_BxT))).logits.float().numpy()


@pytest.mark.parametrize('name', FAMILIES)
def test_logits_are_those_of_transformers(name, tmp_path):
    theirs = random_checkpoint(name, tmp_path / 'theirs')
    tokens_BxT = tiny.tokens(2, 48)
    expected = torch_logits(theirs, tokens_BxT)

    decoder = weights.load(tmp_path / 'theirs')
    assert decoder.architecture == FAMILIES[name]
    logits = decoder.logits(whole(decoder, tokens_BxT)[0])
    print(f'{name}: largest difference {np.abs(logits - expected).max():.1e}', end=' ')
    print(f'of logits up to {np.abs(expected).max():.1f}')
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)

    # And back: what we write is what they had, and they load it.
    ours = weights.save(decoder, tmp_path / 'ours', source=tmp_path / 'theirs')
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        ours, output_loading_info=True
    )
    assert not any(report[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    for key, value in theirs.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    np.testing.assert_array_equal(torch_logits(again.eval(), tokens_BxT), expected)


@pytest.mark.parametrize('name', ['qwen2', 'llama3', 'mistral', 'qwen3'])
def test_transformers_loads_a_model_made_from_scratch(name, tmp_path):
    decoder = tiny.decoder(name)
    path = weights.save(decoder, tmp_path / 'a')
    model = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    tokens_BxT = tiny.tokens(1, 40)
    expected = decoder.logits(whole(decoder, tokens_BxT)[0])
    np.testing.assert_allclose(torch_logits(model, tokens_BxT), expected, atol=1e-4, rtol=0)


def test_bfloat16_checkpoint_of_transformers_round_trips(tmp_path):
    theirs = random_checkpoint('qwen2', tmp_path / 'theirs', torch.bfloat16)
    decoder = weights.load(tmp_path / 'theirs', dtype=jnp.bfloat16)
    ours = weights.save(decoder, tmp_path / 'ours', source=tmp_path / 'theirs')
    again = transformers.AutoModelForCausalLM.from_pretrained(ours, dtype='auto')
    assert again.dtype == torch.bfloat16
    for key, value in theirs.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    # Two bfloat16 programs round differently, so each is held against the same one in float32.
    tokens_BxT = tiny.tokens(4, 32)
    rounded = torch_logits(again.eval(), tokens_BxT)
    widened = transformers.AutoModelForCausalLM.from_pretrained(ours, dtype=torch.float32)
    exact = torch_logits(widened.eval(), tokens_BxT)
    logits = decoder.logits(whole(decoder, tokens_BxT)[0])
    error = lambda x: np.sqrt(np.mean((x - exact) ** 2))
    assert error(logits) < 1.5 * error(rounded)
    same = weights.load(tmp_path / 'theirs')
    logits = same.logits(whole(same, tokens_BxT)[0])
    np.testing.assert_allclose(logits, exact, atol=1e-4, rtol=0)


def test_configuration_of_transformers_5_uses_rope_parameters(tmp_path):
    random_checkpoint('llama3', tmp_path / 'theirs')
    written = json.loads((tmp_path / 'theirs' / 'config.json').read_text())
    assert written['rope_parameters']['rope_theta'] == 500_000.0
    assert 'rope_theta' not in written
