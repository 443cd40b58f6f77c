"""What a query attends to, and that only distances between positions count."""

import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.language.model import attention, rotary
from sail_jax.language.model.attention import NOWHERE, Memory, Scoring
from sail_jax.language.model.rope import Rope
from sail_jax.language.model.rotary import Rotation

B, L, T, P, HEADS, KV_HEADS, H = 2, 2, 4, 3, 4, 2, 6
RNG = np.random.default_rng(0)
QUERY = RNG.normal(size=(B, L, T, HEADS, H))
OWN_KEYS, OWN_VALUES = RNG.normal(size=(2, B, KV_HEADS, L, T, H))
KEYS, VALUES = RNG.normal(size=(2, B, KV_HEADS, P, H))
# Prompts of 3 and 2 tokens, the second padded.
BEFORE = np.array([[0, 1, 2], [0, 1, NOWHERE]])
AFTER = np.broadcast_to(np.array([3, 2])[:, None, None] + np.arange(T), (B, L, T))


@pytest.mark.parametrize('window', [0, 1, 3, 100])
@pytest.mark.parametrize('with_prefix', [True, False])
@pytest.mark.parametrize(('scale', 'cap'), [(H**-0.5, None), (0.7, 2.0)])
def test_attention_is_softmax_over_what_is_visible(x64, window, with_prefix, scale, cap):
    prefix = Memory(jnp.asarray(KEYS), jnp.asarray(VALUES), jnp.asarray(BEFORE))
    own = Memory(jnp.asarray(OWN_KEYS), jnp.asarray(OWN_VALUES), jnp.asarray(AFTER))
    got = attention.attend(
        jnp.asarray(QUERY),
        own.positions,
        own,
        prefix if with_prefix else None,
        Scoring(window=jnp.asarray(window), scale=scale, cap=cap),
    ).reshape(B, L, T, HEADS, H)
    for b, lane, t, head in np.ndindex(B, L, T, HEADS):
        shared = head // (HEADS // KV_HEADS)
        keys, values = OWN_KEYS[b, shared, lane], OWN_VALUES[b, shared, lane]
        positions = AFTER[b, lane]
        if with_prefix:
            keys, values = (
                np.concatenate(x) for x in ((keys, KEYS[b, shared]), (values, VALUES[b, shared]))
            )
            positions = np.concatenate([positions, BEFORE[b]])
        back = AFTER[b, lane, t] - positions
        visible = (back >= 0) & ((back < window) | (window == 0))
        score = keys @ QUERY[b, lane, t, head] * scale
        score = cap * np.tanh(score / cap) if cap else score
        weight = np.where(visible, np.exp(score), 0)
        wanted = weight / weight.sum() @ values
        np.testing.assert_allclose(got[b, lane, t, head], wanted, rtol=1e-5, atol=1e-6)


def scores(rope, query_position, key_position):
    turned = lambda position: Rotation((position * rotary.frequencies(rope, H))[None, None])
    query, key = jnp.asarray(QUERY[0, 0, :1]), jnp.asarray(QUERY[0, 1, :1])
    turn = lambda x, position: rotary.rotate(x[None], turned(position))
    return np.asarray((turn(query, query_position) * turn(key, key_position)).sum(-1))


def test_scores_depend_on_distance_alone():
    rope = Rope(theta=100.0)
    np.testing.assert_allclose(scores(rope, 9, 4), scores(rope, 25, 20), rtol=1e-4)
    np.testing.assert_allclose(scores(rope, 3, 3), scores(rope, 0, 0), rtol=1e-4)
    assert np.abs(scores(rope, 9, 4) - scores(rope, 4, 9)).max() > 1e-2
    # Positions are stretched by the factor.
    linear = Rope(theta=100.0, kind='linear', factor=4.0)
    np.testing.assert_allclose(scores(linear, 36, 16), scores(rope, 9, 4), rtol=1e-4)


def test_frequencies_are_powers_of_theta():
    got = rotary.frequencies(Rope(theta=100.0), 4)
    np.testing.assert_allclose(got, [1, 0.1], rtol=1e-6)
