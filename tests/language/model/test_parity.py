"""Against `transformers` on the same weights: tiny random checkpoints of every family."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sail_jax.language.model import architecture, attention, rotary, weights
from sail_jax.language.model.rope import Rope
from tests.support import tiny
from tests.support.tiny import FAMILIES, whole

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')


def random_checkpoint(of, path, dtype=None):
    """What `transformers` itself writes for a model of these sizes, every parameter random."""
    sizes = architecture.to_hf(FAMILIES.get(of, of))
    config = transformers.AutoConfig.for_model(
        **{k: v for k, v in sizes.items() if k != 'architectures'}
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype or torch.float32)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(float('norm' in key), 0.3)
    model.save_pretrained(path, max_shard_size='4KB' if of == 'llama3' else '1GB')
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


FACTORS = {'short_factor': (1.0, 1.5), 'long_factor': (3.0, 9.0)}
ROPES = {
    'yarn': Rope(kind='yarn', factor=4.0, original_max_position_embeddings=16, theta=1000.0),
    'yarn-mscale': Rope(
        kind='yarn',
        factor=4.0,
        original_max_position_embeddings=16,
        beta_fast=2.5,
        truncate=False,
        mscale=0.7,
        mscale_all_dim=0.3,
    ),
    'dynamic': Rope(kind='dynamic', factor=3.0, original_max_position_embeddings=16),
    'longrope': Rope(kind='longrope', factor=8.0, original_max_position_embeddings=16, **FACTORS),
    'longrope-attention': Rope(
        kind='longrope', original_max_position_embeddings=16, attention_factor=1.3, **FACTORS
    ),
}


@pytest.mark.parametrize('kind', ROPES)
@pytest.mark.parametrize('length', [12, 48])
def test_frequencies_are_those_of_transformers(kind, length):
    rope = ROPES[kind]
    update = {'rope': rope, 'max_positions': 16 if kind == 'dynamic' else 128}
    written = architecture.to_hf(FAMILIES['qwen2'].model_copy(update=update))
    config = transformers.AutoConfig.for_model(**written)
    compute = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[rope.kind]
    expected, scale = compute(config, 'cpu', seq_len=length)
    np.testing.assert_allclose(rotary.frequencies(rope, 4, length), expected, rtol=1e-6)
    assert rope.scale == pytest.approx(scale, rel=1e-6)
    within = rotary.frequencies(rope, 4)
    depends = rope.kind in ('dynamic', 'longrope') and length == 48
    assert np.allclose(within, expected, rtol=1e-4) is not depends


@pytest.mark.parametrize('kind', ['yarn', 'dynamic', 'longrope'])
def test_rope_beyond_the_original_length_is_that_of_transformers(kind, tmp_path):
    update = {'rope': ROPES[kind], 'max_positions': 16 if kind == 'dynamic' else 128}
    sizes = FAMILIES['qwen2'].model_copy(update=update)
    theirs = random_checkpoint(sizes, tmp_path)
    decoder = weights.load(tmp_path).of_length(48)
    assert decoder.architecture == sizes
    tokens_BxT = tiny.tokens(2, 48)
    logits = decoder.logits(whole(decoder, tokens_BxT)[0])
    np.testing.assert_allclose(logits, torch_logits(theirs, tokens_BxT), atol=2e-4, rtol=0)


def test_phi_has_longrope_of_a_part_of_each_head(tmp_path):
    factors = {'short_factor': (1.0, 1.5, 2.0), 'long_factor': (3.0, 9.0, 2.0)}
    rope = Rope(
        kind='longrope',
        factor=256 / 32,
        original_max_position_embeddings=32,
        partial_rotary_factor=0.75,
        **factors,
    )
    phi = FAMILIES['phi3'].model_copy(update={'rope': rope, 'windows': ()})
    theirs = random_checkpoint(phi, tmp_path)
    decoder = weights.load(tmp_path).of_length(40)
    assert decoder.architecture == phi
    tokens_BxT = tiny.tokens(2, 40)
    logits = decoder.logits(whole(decoder, tokens_BxT)[0])
    np.testing.assert_allclose(logits, torch_logits(theirs, tokens_BxT), atol=2e-4, rtol=0)


SLOW_FAMILIES = ('llama3', 'mistral', 'qwen2', 'qwen3', 'olmo2', 'smollm3')


@pytest.mark.parametrize(
    'name',
    [
        'gemma3',
        'phi3',
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_FAMILIES),
    ],
)
def test_gradients_are_those_of_transformers(name, tmp_path):
    """Of the mean log-probability of the tokens that follow, by every tensor of the checkpoint."""
    theirs = random_checkpoint(name, tmp_path)
    tokens_BxT = tiny.tokens(2, 32)
    ids = torch.tensor(np.asarray(tokens_BxT, np.int64))
    (-theirs(ids, labels=ids).loss).backward()

    decoder = weights.load(tmp_path)
    graphdef, params = nnx.split(decoder)
    positions = attention.prompt_positions(jnp.full(2, 32), 32)

    @jax.jit
    @jax.grad
    def gradient(params):
        model = nnx.merge(graphdef, params)
        logits = model.logits(model(tokens_BxT[:, None], positions)[0][:, 0, :-1])
        logp = jax.nn.log_softmax(logits)
        return jnp.take_along_axis(logp, tokens_BxT[:, 1:, None], -1).mean()

    flat = weights.parameters(nnx.merge(graphdef, gradient(params)))
    found = dict(theirs.named_parameters())
    places = weights.places(decoder)
    assert places.keys() == found.keys()
    for key, place in places.items():
        value = np.asarray(flat[place.parameter][...])
        value = value if place.layer is None else value[place.layer]
        value, wanted = value.T if place.transposed else value, found[key].grad.numpy()
        assert np.abs(wanted).max() > 1e-6, key
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(
    'name', ['qwen2', 'llama3', 'mistral', 'qwen3', 'gemma3', 'phi3', 'smollm3']
)
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
