"""Fingerprints of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.training import integrity


def test_every_flipped_bit_is_seen():
    tree = {
        'a': jnp.linspace(-1, 1, 7),
        'b': jnp.arange(5, dtype=jnp.int32),
        'c': jnp.ones((2, 2), jnp.bfloat16),
        'd': jnp.asarray([True, False]),
    }
    mark = integrity.fingerprint(tree)
    for name, leaf in tree.items():
        for index in range(leaf.size):
            data = bytearray(np.asarray(leaf).tobytes())
            step = leaf.dtype.itemsize
            data[index * step + step - 1] ^= 1
            changed = np.frombuffer(bytes(data), leaf.dtype).reshape(leaf.shape)
            assert integrity.fingerprint({**tree, name: jnp.asarray(changed)}) != mark
    assert integrity.fingerprint({**tree, 'a': tree['a'][::-1]}) != mark


@pytest.mark.parametrize('shape', [(), (2,), (4, 2)])
def test_every_flipped_bit_of_arrays_of_64_bits_is_seen(shape):
    with jax.enable_x64(True):
        leaf = np.random.default_rng(0).normal(size=shape)
        mark = integrity.fingerprint({'a': jnp.asarray(leaf)})
        for bit in range(leaf.nbytes * 8):
            data = bytearray(leaf.tobytes())
            data[bit // 8] ^= 1 << bit % 8
            changed = np.frombuffer(bytes(data), leaf.dtype).reshape(shape)
            assert integrity.fingerprint({'a': jnp.asarray(changed)}) != mark
