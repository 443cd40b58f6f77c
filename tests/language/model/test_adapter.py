"""What a new adapter is, and what it adds."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sail_jax.language.model import layers, lora
from sail_jax.language.model.layers import Linear
from tests.support import tiny


def test_an_adapter_is_scaled_and_each_map_has_its_own(x64):
    settings = lora.Lora(rank=3, alpha=5.0, targets=('q_proj', 'k_proj', 'v_proj'))
    decoder = lora.add(tiny.decoder('llama2'), settings, jax.random.key(0))
    attn = decoder.layers.self_attn
    a = [np.asarray(m.lora_a[...]) for m in (attn.q_proj, attn.k_proj, attn.v_proj)]
    assert all(np.abs(x - y).min() > 0 for x, y in ((a[0], a[1]), (a[1], a[2]), (a[0], a[2])))
    assert all(np.abs(x[0] - x[1]).min() > 0 for x in a)
    # Uniform within 1 / sqrt(in).
    bound = tiny.SIZES['hidden_size'] ** -0.5
    assert all(0.9 * bound < np.abs(x).max() <= bound for x in a)

    rng = np.random.default_rng(0)
    linear = Linear(4, 2, rngs=nnx.Rngs(0))
    x, low, high = (rng.normal(size=shape) for shape in ((7, 4), (4, 3), (3, 2)))
    plain = linear(jnp.asarray(x))
    lora._attach(linear, settings, jnp.asarray(low), jnp.asarray(high))
    np.testing.assert_allclose(linear(jnp.asarray(x)) - plain, x @ low @ high * 5 / 3, rtol=1e-4)


def test_all_linear_maps_of_the_layers_get_one():
    decoder = lora.add(
        tiny.decoder('qwen2'),
        lora.Lora.model_validate({'rank': 2, 'targets': 'all-linear'}),
        jax.random.key(0),
    )
    adapted = {name for name, linear in lora._linears(decoder) if linear.lora_a is not None}
    attention = {f'self_attn.{name}_proj' for name in 'qkvo'}
    assert adapted == attention | {f'mlp.{name}_proj' for name in ('gate', 'up', 'down')}


def test_dropout_is_of_an_adapters_input_and_right_on_average():
    rng, rate = np.random.default_rng(0), 0.25
    x, low, high = (rng.normal(size=shape) for shape in ((2, 3, 5, 4), (4, 3), (3, 2)))
    linear = Linear(4, 2, rngs=nnx.Rngs(0))
    plain = linear(jnp.asarray(x))
    lora._attach(linear, lora.Lora(rank=3, alpha=3.0), jnp.asarray(low), jnp.asarray(high))
    whole, graphdef, state = linear(jnp.asarray(x)), *nnx.split(linear)

    @jax.jit
    def dropped(key_B):
        linear = nnx.merge(graphdef, state)
        linear.drop_key, linear.drop_rate = nnx.Variable(key_B), rate
        return linear(jnp.asarray(x))

    keys = jax.random.split(jax.random.key(1), (1000, 2))
    each = jax.vmap(dropped)(keys)
    np.testing.assert_allclose(each.mean(0), whole, atol=0.2 * np.abs(whole - plain).max())
    # A row's zeros are its own key's, and no two tokens have the same.
    one, other = dropped(keys[0]), dropped(jnp.stack([keys[0, 0], keys[1, 1]]))
    np.testing.assert_array_equal(one[0], other[0])
    assert np.abs(one[1] - other[1]).max() > 0.1
    scaled = np.linalg.lstsq((low @ high).T, np.asarray(one - plain).reshape(-1, 2).T)[0]
    assert len(np.unique(np.round(scaled, 3))) > 20


def test_a_prompt_and_responses_of_its_length_drop_apart():
    key_B = jax.random.split(jax.random.key(3), 2)
    one, lanes = (layers._dropped(jnp.ones((2, n, 8, 16)), key_B, 0.5) for n in (1, 3))
    kept = [np.asarray(one[:, 0]) > 0, *(np.asarray(lanes[:, lane]) > 0 for lane in range(3))]
    for a, b in itertools.combinations(kept, 2):
        assert 0.35 < (a == b).mean() < 0.65


def test_a_model_drops_in_its_adapter_alone():
    settings = lora.Lora(rank=3, targets=('all-linear',))
    base = tiny.decoder('qwen2')
    new = lora.add(base, settings, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 2)
    ids = tiny.tokens(2, 9)
    expected = tiny.whole(base, ids)[0]
    # What a new adapter reads is of no account.
    np.testing.assert_array_equal(tiny.whole(lora.drop(new, keys, 0.5), ids)[0], expected)
    state = nnx.state(new, nnx.LoRAParam)
    nnx.update(new, jax.tree.map(lambda x: x + 0.1, state))
    dropped = [tiny.whole(lora.drop(new, k, 0.5), ids)[0] for k in (keys, keys, keys[::-1])]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert np.abs(dropped[0] - dropped[2]).max() > 0.01
    assert np.abs(dropped[0] - tiny.whole(new, ids)[0]).max() > 0.01
