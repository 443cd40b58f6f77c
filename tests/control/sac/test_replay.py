"""The ring of env steps: what is kept, drawn, cut into segments and given other rewards."""

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax.control.sac import replay
from tests.support.sac import row

N = 2
ADD = jax.jit(replay.add)
SAMPLE = jax.jit(replay.sample, static_argnums=2)
SEGMENTS = jax.jit(replay.segments, static_argnums=(2, 3, 4))


def filled(rows, steps, envs=N, ended=()):
    there = replay.init(rows, row(0, envs))
    for t in range(steps):
        there = ADD(there, row(t, envs, ended=t in ended))
    return there


def test_the_ring_keeps_the_newest():
    there = filled(rows=3, steps=5)
    np.testing.assert_array_equal(there.steps.reward[:, 0], [300, 400, 200])
    np.testing.assert_array_equal(there.steps.reward[:, 1], [301, 401, 201])
    assert (int(there.filled), int(there.written)) == (3, 5)


def test_all_that_is_there_is_drawn_and_nothing_else():
    there = filled(rows=8, steps=3)
    batch = SAMPLE(there, jax.random.key(0), 200)
    assert set(np.asarray(batch.reward).tolist()) == {0, 1, 100, 101, 200, 201}
    np.testing.assert_array_equal(batch.obs[:, 0], batch.reward)
    np.testing.assert_array_equal(batch.next_obs[:, 0], batch.reward + 100)


def test_every_reward_is_written_anew_in_parts_that_do_not_divide_the_rows():
    envs = replay.RELABEL_STEPS // 2  # Two rows at once, of five.
    there = filled(rows=5, steps=5, envs=envs)
    new = replay.relabelled(there, lambda obs, action: obs.sum(-1) + action[..., 0], there.filled)
    np.testing.assert_array_equal(new, 2 * there.steps.reward)
    after = replay.with_rewards(there, new)
    np.testing.assert_array_equal(after.steps.true_reward, there.steps.true_reward)
    np.testing.assert_array_equal(after.steps.reward, new)


def test_rows_that_nobody_wrote_are_not_looked_at():
    there = filled(rows=8, steps=3, envs=replay.RELABEL_STEPS)
    new = replay.relabelled(there, lambda obs, action: jnp.ones(obs.shape[:-1]), there.filled)
    np.testing.assert_array_equal(new[:, 0], [1, 1, 1, 0, 0, 0, 0, 0])


def test_segments_are_in_order_over_the_end_of_the_ring():
    there = filled(rows=6, steps=9, ended=(5,))
    cut, whole = SEGMENTS(there, jax.random.key(0), 300, 3, 5)
    first = np.asarray(cut.reward[:, 0])
    # The newest five are steps 4 to 8: of two environments segments from 4, 5 and 6.
    assert set(first.tolist()) == {400, 401, 500, 501, 600, 601}
    np.testing.assert_array_equal(cut.reward, first[:, None] + 100 * np.arange(3))
    # Step 5 ended an episode: whole is what does not go on after it.
    np.testing.assert_array_equal(np.asarray(whole), first >= 600)


def test_a_segment_of_broken_steps_is_not_whole():
    there = ADD(filled(rows=6, steps=3), row(3, sound=False))
    cut, whole = SEGMENTS(there, jax.random.key(0), 50, 2, 6)
    np.testing.assert_array_equal(np.asarray(whole), np.asarray(cut.reward[:, -1]) < 300)


def test_where_there_is_no_room_for_a_segment_none_is_whole():
    _, whole = SEGMENTS(filled(rows=6, steps=2), jax.random.key(0), 9, 3, 6)
    assert not whole.any()
