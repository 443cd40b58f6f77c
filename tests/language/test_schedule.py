"""The share of the learning rate that an update has."""

import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.language.config import LanguageOptimizer
from sail_jax.language.schedule import step_size


def shares(updates, **settings):
    share = step_size(LanguageOptimizer(**settings), updates)
    return np.asarray([share(jnp.int32(step)) for step in range(updates)])


def test_without_settings_it_is_whole():
    np.testing.assert_array_equal(shares(4), 1)


@pytest.mark.parametrize('decay', ['none', 'linear', 'cosine'])
def test_it_rises_from_the_first_update_on_and_is_then_whole(decay):
    got = shares(12, warmup_updates=4, decay=decay)
    np.testing.assert_allclose(got[:5], [0.25, 0.5, 0.75, 1, 1], rtol=1e-6)


def test_it_falls_to_0_at_the_end_of_the_run():
    linear, cosine = (shares(12, warmup_updates=4, decay=d) for d in ('linear', 'cosine'))
    done = np.arange(8) / 8
    np.testing.assert_allclose(linear[4:], 1 - done, rtol=1e-6)
    np.testing.assert_allclose(cosine[4:], (1 + np.cos(np.pi * done)) / 2, rtol=1e-5)
