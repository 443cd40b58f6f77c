"""The unsupervised reward: distances to neighbours, by looking at all pairs."""

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax.control.sac import explore, replay
from tests.support.sac import row


def states(steps, rows):
    there = replay.init(rows, row(0))
    obs = jax.random.normal(jax.random.key(0), (steps, 2, 3))
    add = jax.jit(replay.add)
    for t in range(steps):
        there = add(there, row(t)._replace(obs=obs[t]))
    return there, obs.reshape(-1, 3)


def test_the_distance_is_that_to_the_kth_other_state_of_what_was_written():
    there, obs = states(steps=5, rows=9)
    distances = jax.jit(explore.distances, static_argnums=(2, 3))
    got = distances(obs[3:6], there, 8, 3)
    apart = np.linalg.norm(obs[3:6, None] - obs[None], axis=-1)
    np.testing.assert_allclose(got, np.sort(apart, axis=1)[:, 3], rtol=1e-5)


def test_distances_are_over_their_standard_deviation_so_far():
    first, second = jnp.asarray([1.0, 3.0, 8.0]), jnp.asarray([2.0, 2.0, 5.0])
    statistics, _ = explore.reward(explore.init(), first)
    _, reward = explore.reward(statistics, second)
    np.testing.assert_allclose(reward, second / np.std([1, 3, 8, 2, 2, 5]), rtol=1e-4)
