"""Kernels of accelerators against attention written out: splash attention interpreted, and cuDNN's
layout of the tokens with the attention that JAX has for every device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.language.model import attention, fused
from sail_jax.language.model.attention import Memory, Scoring
from sail_jax.training import devices
from tests.support import tiny

HEADS, KV_HEADS, H, T, P = 4, 2, 8, 20, 12
LENGTHS = jnp.array([12, 5])
KERNELS = {
    'cudnn': partial(fused.cudnn, implementation='xla'),
    'splash': partial(fused.splash, interpret=True),
}


def arrays(lanes, dtype):
    """Queries, own keys and values, the prompt's keys and values, and weights of the outputs."""
    rng = np.random.default_rng(lanes)
    own, prompt = (2, KV_HEADS, lanes, T, H), (2, KV_HEADS, P, H)
    shapes = (2, lanes, T, HEADS, H), own, own, prompt, prompt, (2, lanes, T, HEADS * H)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def results(function, inputs, follows):
    """Output, and gradients of its weighted sum by all that goes in."""
    *inputs, weights = inputs
    B, L = inputs[0].shape[:2]
    positions = attention.response_positions(LENGTHS if follows else jnp.zeros(2, int), L, T)

    def out(query, keys, values, prompt_keys, prompt_values):
        at = attention.prompt_positions(LENGTHS, P)[:, 0]
        prefix = Memory(prompt_keys, prompt_values, at) if follows else None
        return function(query, Memory(keys, values, positions), prefix).reshape(B, L, T, -1)

    def value(*args):
        return (out(*args) * weights).astype(jnp.float32).sum()

    return jax.jit(out)(*inputs), jax.jit(jax.grad(value, range(5)))(*inputs)


def check(kernel, lanes, dtype, follows, score):
    def written_out(query, memory, prefix):
        scoring = Scoring(window=jnp.asarray(score.window), scale=score.scale, cap=score.cap)
        return attention.attend(query, memory.positions, memory, prefix, scoring)

    def in_kernel(query, memory, prefix):
        return KERNELS[kernel](query, memory, prefix, score)

    inputs = arrays(lanes, dtype)
    exact = results(written_out, [x.astype(jnp.float32) for x in inputs], follows)
    found = results(in_kernel, inputs, follows)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert a.dtype == dtype
        tolerance = 1e-5 if dtype == jnp.float32 else 0.02  # bfloat16 has 8 bits.
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))


SLOW = pytest.mark.slow


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('lanes', [pytest.param(1, marks=SLOW), 2, pytest.param(8, marks=SLOW)])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_lanes_look_back_on_the_prompt_they_share(kernel, lanes, dtype):
    check(kernel, lanes, dtype, True, fused.Score(scale=0.4, cap=None, window=0))


@pytest.mark.parametrize(
    ('kernel', 'dtype', 'follows', 'window', 'cap'),
    [
        ('cudnn', jnp.float32, True, 7, None),
        ('cudnn', jnp.float32, False, 7, None),
        pytest.param('cudnn', jnp.bfloat16, True, 7, None, marks=SLOW),
        pytest.param('cudnn', jnp.bfloat16, False, 7, None, marks=SLOW),
        pytest.param('splash', jnp.float32, False, 7, None, marks=SLOW),
        pytest.param('splash', jnp.bfloat16, False, 7, None, marks=SLOW),
        pytest.param('splash', jnp.float32, True, 0, 1.5, marks=SLOW),
        pytest.param('splash', jnp.bfloat16, True, 0, 1.5, marks=SLOW),
    ],
)
# parameters: one case each
def test_windows_and_caps_where_the_kernel_has_them(kernel, dtype, follows, window, cap):
    check(kernel, 2, dtype, follows, fused.Score(scale=0.4, cap=cap, window=window))


@pytest.mark.parametrize('follows', [True, False])
def test_a_kernel_on_a_mesh_is_that_of_its_devices(follows):
    mesh = devices.make_mesh(2)
    score = fused.Score(scale=0.4, cap=None, window=0)
    kernel = partial(KERNELS['cudnn'], score=score)
    inputs = arrays(2, jnp.float32)
    split = fused.over_devices(kernel, mesh, inputs[0], 'tensor', follows)
    for a, b in zip(
        jax.tree.leaves(results(split, inputs, follows)),
        jax.tree.leaves(results(kernel, inputs, follows)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_windows_that_all_layers_have_in_common():
    assert fused.reach((), 64) == fused.reach((0, 0), 64) == 0
    assert fused.reach((64, 0, 100), 64) == 0  # They hold all tokens.
    assert fused.reach((8, 8), 64) == 8
    # Gemma 3 has a kernel where its window holds all, and attention written out elsewhere.
    windows = tiny.FAMILIES['gemma3'].windows
    assert fused.reach(windows, 5) == 0
    assert fused.reach(windows, 6) is None
    assert fused.reach((8, 0), 64) is fused.reach((8, 9), 64) is None
