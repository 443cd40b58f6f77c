"""What a new adapter is, and what it adds."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sail_jax.language.model import lora
from sail_jax.language.model.layers import Linear
from tests.support import tiny


def test_an_adapter_is_scaled_and_each_map_has_its_own(x64):
    settings = lora.Lora(rank=3, alpha=5.0, targets=('q_proj', 'k_proj', 'v_proj'))
    decoder = lora.add(tiny.decoder('llama2'), settings, jax.random.key(0))
    layers = decoder.layers.self_attn
    a = [np.asarray(m.lora_a[...]) for m in (layers.q_proj, layers.k_proj, layers.v_proj)]
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
