import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sail_jax.errors import UserError
from sail_jax.language.config import StartModel, check_lengths
from sail_jax.language.model import architecture, attention, policy, rotary, transformer
from sail_jax.language.model.rope import Rope
from sail_jax.language.model.transformer import Tokens
from tests.support import small, tiny
from tests.support.tiny import FAMILIES, whole


def with_lanes(decoder, prompt, lanes):
    graphdef, state = nnx.split(decoder)
    run = jax.jit(lambda state, *parts: nnx.merge(graphdef, state).with_lanes(*parts))
    return run(state, prompt, lanes)


@pytest.mark.parametrize(
    'name',
    [
        'adapted qwen2',
        'gemma3',
        *(pytest.param(x, marks=pytest.mark.slow) for x in ('mistral', 'smollm3', 'phi3', 'olmo2')),
    ],
)
def test_decoding_token_by_token_gives_the_hidden_states_of_whole_sequences(name):
    adapted = name == 'adapted qwen2'
    some = ('q_proj', 'v_proj', 'up_proj', 'down_proj')
    decoder = tiny.trained(some)[0] if adapted else tiny.decoder(name)
    decoder.joins = adapted or name == 'olmo2'  # As on a GPU.
    prompt, response = tiny.tokens(2, 7), tiny.tokens(2, 3, 5, seed=1)
    lengths = jnp.array([6, 3])
    _, memory = whole(decoder, prompt, lengths)
    prefix, positions = attention.as_prefix(memory), attention.response_positions(lengths, 3, 5)
    at = attention.prompt_positions(lengths, 7)
    _, expected = with_lanes(decoder, Tokens(prompt[:, None], at), Tokens(response, positions))

    @jax.jit
    def decode(state, token, t, cache):
        decoder = nnx.merge(graphdef, state)
        weights = decoder.decoding()
        hidden, cache = decoder.decode(weights, token, t, cache, prefix.apart())
        return decoder.last_logits(weights, hidden), cache

    graphdef, state = nnx.split(decoder)
    cache = attention.empty_memory(decoder.architecture, positions, jnp.float32)
    for t in range(5):
        logits, cache = decode(state, response[..., t], t, cache)
        np.testing.assert_allclose(logits, decoder.logits(expected[:, :, t]), atol=2e-5)


def test_on_cpu_the_gradients_of_kernels_are_products_of_two_matrices():
    decoder, _ = tiny.trained(('q_proj', 'down_proj'))
    graphdef, state = nnx.split(decoder)
    at = attention.response_positions(jnp.zeros(2, int), 1, 7)

    def loss(state, ids):
        return nnx.merge(graphdef, state).with_lanes(Tokens(ids, at), Tokens(ids, at))[0].sum()

    text = str(jax.make_jaxpr(jax.grad(loss))(state, tiny.tokens(2, 1, 7)))
    summed = re.findall(r'dimension_numbers=\(\(\[([^]]*)\], \[[^]]*\]\), \(\[\], \[\]\)\)', text)
    assert len(summed) > 30
    assert not [axes for axes in summed if ',' in axes]


def test_a_prompt_and_its_lanes_may_be_the_tokens_of_one_lane():
    decoder = tiny.decoder('mistral')
    lengths = jnp.array([6, 3])
    prompt = Tokens(tiny.tokens(2, 7)[:, None], attention.prompt_positions(lengths, 7))
    lanes = Tokens(tiny.tokens(2, 3, 5, seed=1), attention.response_positions(lengths, 3, 5))

    @partial(jax.jit, static_argnums=0)
    def value_and_grad(together):
        def value(state):
            model = nnx.merge(graphdef, state)
            model.together = together
            of_prompt, of_lanes = model.with_lanes(prompt, lanes)
            return (of_prompt[:, 0, :3] ** 3).sum() + (of_lanes**3).sum(), of_lanes

        return jax.value_and_grad(value, has_aux=True)(state)

    graphdef, state = nnx.split(decoder)
    found, expected = value_and_grad(True), value_and_grad(False)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


def test_padding_has_no_influence():
    decoder = tiny.decoder('llama3')
    prompt, lengths = tiny.tokens(2, 9), jnp.array([5, 9])
    short, _ = whole(decoder, prompt[:1, :5])
    padded, _ = whole(decoder, prompt, lengths)
    other, _ = whole(decoder, prompt.at[0, 5:].set(0), lengths)
    np.testing.assert_array_equal(padded[0, :5], other[0, :5])
    np.testing.assert_allclose(padded[0, :5], short[0], atol=2e-5)

    response, positions = tiny.tokens(2, 2, 3), attention.response_positions(lengths, 2, 3)
    at = attention.prompt_positions(lengths, 9)
    a, b = (
        with_lanes(decoder, Tokens(x[:, None], at), Tokens(response, positions))[1]
        for x in (prompt, prompt.at[0, 5:].set(0))
    )
    np.testing.assert_array_equal(a, b)


def test_remat_changes_neither_values_nor_gradients():
    tokens = tiny.tokens(2, 1, 6)
    positions = attention.prompt_positions(jnp.array([6, 5]), 6)

    def value_and_grad(remat):
        graphdef, params = nnx.split(tiny.decoder('llama2', remat=remat))
        loss = lambda params: (nnx.merge(graphdef, params)(tokens, positions)[0] ** 2).sum()
        return jax.jit(jax.value_and_grad(loss))(params)

    for a, b in zip(
        jax.tree.leaves(value_and_grad(False)), jax.tree.leaves(value_and_grad(True)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_program_does_not_grow_with_depth():
    def lines(layers):
        sizes = FAMILIES['llama2'].model_copy(update={'layers': layers})
        build = lambda: transformer.Decoder(sizes, rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(nnx.eval_shape(build))
        forward = lambda params, tokens: whole(nnx.merge(graphdef, params), tokens)[0]
        return jax.jit(forward).lower(params, tiny.tokens(1, 4)).as_text().count('\n')

    assert lines(2) == lines(40)


@pytest.mark.parametrize(
    ('rope', 'longest'),
    [
        (Rope(kind='longrope', short_factor=(1.0, 1.0), long_factor=(2.0, 3.0)), 64),
        (Rope(kind='dynamic', factor=3.0, original_max_position_embeddings=64), 192),
        (Rope(kind='yarn', factor=4.0, original_max_position_embeddings=32), 128),
        (Rope(kind='linear', factor=4.0), 64),
    ],
)
def test_the_longest_sequence_of_a_run_chooses_frequencies_where_they_depend_on_it(
    tmp_path, rope, longest
):
    if rope.kind == 'longrope':
        rope = rope.model_copy(update={'original_max_position_embeddings': 32})
    sizes = FAMILIES['qwen2'].model_copy(update={'rope': rope, 'max_positions': 64})
    assert sizes.longest == longest
    (tmp_path / 'config.json').write_text(json.dumps(architecture.to_hf(sizes)))
    depends = rope.kind in ('longrope', 'dynamic')
    for length, other in ((None, False), (32, False), (65, depends)):
        made = policy.read(StartModel(path=tmp_path), length=length)
        for decoder in (made.policy, made.reference):
            model = decoder(made.abstract, made.abstract_shared)
            assert model.length == (length if other else None)
    with pytest.raises(UserError, match=f'has {longest} positions'):
        check_lengths(small.run('m', 'd', sampling={'max_tokens': longest}), sizes.longest)


def test_bfloat16_computes_in_bfloat16_with_float32_logits():
    decoder = tiny.decoder('qwen3', dtype=jnp.bfloat16)
    tokens, positions = tiny.tokens(1, 2, 3), jnp.zeros((1, 2, 3), int)
    hidden, memory = jax.eval_shape(decoder, tokens, positions)
    assert hidden.dtype == memory.keys.dtype == memory.values.dtype == jnp.bfloat16
    assert jax.eval_shape(decoder.logits, hidden).dtype == jnp.float32


def test_llama3_keeps_short_wavelengths_and_stretches_long_ones():
    rope = FAMILIES['llama3'].rope
    plain = rotary.frequencies(rope.model_copy(update={'kind': 'default'}), 64)
    scaled = rotary.frequencies(rope, 64)
    wavelength = 2 * np.pi / plain
    kept, stretched = wavelength < 64 / 4, wavelength > 64
    np.testing.assert_allclose(scaled[kept], plain[kept], rtol=1e-6)
    np.testing.assert_allclose(scaled[stretched], plain[stretched] / 8, rtol=1e-6)
    between = ~kept & ~stretched
    assert between.any()
    assert (scaled[between] < plain[between]).all()
    assert (scaled[between] > plain[between] / 8).all()
