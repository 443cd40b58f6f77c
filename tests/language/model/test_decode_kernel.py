"""The kernel of one token's attention, interpreted where no GPU is there, against attention written
out; and a norm that GPUs make one kernel of, against Flax's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sail_jax.language.model import attention, decode_kernel, layers
from sail_jax.language.model.attention import Memory, Scoring
from sail_jax.language.model.fused import Score, first_device, is_ampere
from sail_jax.language.model.layers import OneKernelNorm
from sail_jax.training import devices

SLOW = pytest.mark.slow
NO_GPU = not is_ampere(first_device(None))
KV_HEADS, GROUP, H, S, P = 2, 3, 16, 150, 32
"""More places than are scored at once, and no whole number of those."""
LENGTHS = jnp.array([32, 5])


def arrays(lanes, dtype):
    """Queries, and keys and values of lanes and prompt."""
    rng = np.random.default_rng(lanes)
    own, prompt = (2, KV_HEADS, lanes, S, H), (2, KV_HEADS, P, H)
    shapes = (2, lanes, 1, KV_HEADS * GROUP, H), own, own, prompt, prompt
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def both(function, index, query, keys, values, prompt_keys, prompt_values):
    """What `(positions, query, memory, prefix)` makes of the token at `index`."""
    positions = attention.response_positions(LENGTHS, query.shape[1], S)
    at = attention.prompt_positions(LENGTHS, P)[:, 0]
    memory, prefix = Memory(keys, values, positions), Memory(prompt_keys, prompt_values, at)
    return function(positions[..., index, None], query, memory, prefix)


def written_out(window, positions, query, memory, prefix):
    scoring = Scoring(window=jnp.asarray(window), scale=0.4)
    return attention.attend(query, positions, memory, prefix, scoring).reshape(query.shape)


@pytest.mark.parametrize(
    ('lanes', 'dtype', 'window'),
    [
        (2, jnp.float32, 0),
        pytest.param(2, jnp.bfloat16, 0, marks=SLOW),
        pytest.param(1, jnp.float32, 9, marks=SLOW),
        pytest.param(1, jnp.bfloat16, 9, marks=SLOW),
        pytest.param(8, jnp.bfloat16, 11, marks=SLOW),
    ],
)
def test_a_token_looks_back_on_its_lane_and_the_prompt(lanes, dtype, window):
    score = Score(scale=0.4, cap=None, window=window)
    interpret = NO_GPU or dtype == jnp.float32  # Which GPUs would multiply in fewer bits.
    kernel = jax.jit(partial(both, partial(decode_kernel.attend, score=score, interpret=interpret)))
    exact = jax.jit(partial(both, partial(written_out, window)))
    inputs = arrays(lanes, dtype)
    for index in (0, 7, 130, S - 1):
        found = kernel(index, *inputs)
        assert found.dtype == dtype
        expected = exact(index, *(x.astype(jnp.float32) for x in inputs))
        tolerance = 1e-5 if dtype == jnp.float32 else 0.02  # bfloat16 has 8 bits.
        np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=0, atol=tolerance)


def test_places_that_are_not_seen_have_no_influence():
    score = Score(scale=0.4, cap=None, window=0)
    kernel = jax.jit(partial(both, partial(decode_kernel.attend, score=score, interpret=True), 7))
    query, keys, values, prompt_keys, prompt_values = arrays(2, jnp.float32)
    later, padding = np.arange(S)[:, None] > 7, np.arange(P)[:, None] >= 5
    other = lambda x: jnp.where(later, jnp.nan, x)
    other_prompt = lambda x: x.at[1].set(jnp.where(padding, jnp.nan, x[1]))
    changed = query, other(keys), values, other_prompt(prompt_keys), prompt_values
    expected = kernel(query, keys, values, prompt_keys, prompt_values)
    np.testing.assert_array_equal(kernel(*changed), expected)


def test_on_a_mesh_each_device_has_its_rows_and_heads():
    mesh = devices.make_mesh(2)
    score = Score(scale=0.4, cap=None, window=0)
    kernel = partial(decode_kernel.attend, score=score, interpret=True)
    inputs = arrays(2, jnp.float32)
    split = decode_kernel.over_devices(kernel, mesh, 2, 'tensor')
    found = jax.jit(partial(both, split, 7))(*inputs)
    np.testing.assert_allclose(found, jax.jit(partial(both, kernel, 7))(*inputs), atol=1e-6)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_a_norm_in_another_order_is_flaxs(dtype):
    rng = np.random.default_rng(0)
    x, weights = (jnp.asarray(rng.standard_normal((5, 24)), jnp.float32) for _ in range(2))
    scale = jnp.asarray(rng.standard_normal(24), jnp.float32)

    def value(norm_class, x, scale):
        norm = norm_class(24, epsilon=1e-3, dtype=dtype, rngs=nnx.Rngs(0))
        norm.scale = nnx.Param(scale)
        return (norm(x.astype(dtype)).astype(jnp.float32) * weights).sum()

    found, expected = (
        jax.value_and_grad(partial(value, norm), (0, 1))(x, scale)
        for norm in (OneKernelNorm, nnx.RMSNorm)
    )
    tolerance = 1e-5 if dtype == jnp.float32 else 0.03
    close = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(close, found, expected)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_an_mlp_gated_in_one_kernel_is_gated_alike(dtype):
    rng = np.random.default_rng(0)
    gate, up, weights = (jnp.asarray(rng.standard_normal((5, 24)), dtype) for _ in range(3))

    def value(gated, gate, up):
        return (gated(jax.nn.silu, gate, up) * weights).sum()

    found, expected = (
        jax.value_and_grad(jax.checkpoint(partial(value, gated)), (0, 1))(gate, up)
        for gated in (layers.gated_in_one_kernel, layers.gated)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
