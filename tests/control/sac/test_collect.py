"""Environments side by side: ends of episodes, new ones, and simulators that break."""

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax.control.sac import collect
from tests.support.toy import Point, Poisoned

LIMIT, N = 3, 4


def walk(env, steps, action=0.0, envs=N):
    """Transitions of so many steps of the same action, and where the environments are then."""
    now = collect.begin(env, jax.random.split(jax.random.key(0), envs))
    begun, rows = now, []
    step = jax.jit(lambda now, action: collect.step(env, LIMIT, now, action))
    for _ in range(steps):
        now, row, finished = step(now, jnp.full((envs, env.action_size), action))
        rows.append((row, finished))
    return begun, now, rows


def test_a_time_limit_ends_and_does_not_terminate():
    begun, now, rows = walk(Point(spread=0.1), LIMIT)
    row, finished = rows[-1]
    assert finished.ended.all()
    assert row.ended.all()
    assert not row.terminated.any()
    assert not any(earlier.ended.any() for earlier, _ in rows[:-1])
    # What follows is the next episode; what the step led to stays with the step.
    np.testing.assert_array_equal(now.obs, begun.fresh.obs)
    np.testing.assert_array_equal(row.next_obs, begun.obs)
    assert now.used.all()
    np.testing.assert_allclose(
        finished.episode_return, LIMIT * (1 - np.linalg.norm(begun.obs, axis=1)), rtol=1e-5
    )
    assert not now.collected.any()


def test_leaving_the_disc_terminates():
    _, now, rows = walk(Point(spread=0.1, drift=0.8), 1)
    row, finished = rows[0]
    assert row.terminated.all()
    assert finished.ended.all()
    assert (np.linalg.norm(row.next_obs, axis=1) > 1).all()
    assert (np.linalg.norm(now.obs, axis=1) < 1).all()


def test_starts_that_were_used_are_made_anew_and_no_others():
    env = Point()
    now = collect.begin(env, jax.random.split(jax.random.key(0), N))
    now = now._replace(used=jnp.arange(N) == 1)
    after = collect.renew(env, now, jax.random.split(jax.random.key(5), N))
    same = np.asarray((after.fresh.obs == now.fresh.obs).all(1))
    np.testing.assert_array_equal(same, np.arange(N) != 1)
    assert not after.used.any()


def test_a_step_that_breaks_the_simulator_is_none():
    for what in ('obs', 'reward', 'done'):
        _, now, rows = walk(Poisoned(what, spread=0.3), 2, action=1.0, envs=32)
        broken = ~rows[-1][0].sound
        assert 0 < int(broken.sum()) < 32
        row, finished = rows[-1]
        np.testing.assert_array_equal(finished.broken, broken)
        assert finished.ended[broken].all()
        assert not row.terminated[broken].any()
        np.testing.assert_array_equal(row.next_obs[broken], row.obs[broken])
        np.testing.assert_array_equal(row.reward[broken], 0)
        assert all(np.isfinite(x).all() for x in (*row, now.obs))


def test_a_start_that_is_not_finite_is_no_step():
    _, _, rows = walk(Poisoned('reset', spread=0.5), 1, envs=32)
    row = rows[0][0]
    assert 0 < int((~row.sound).sum()) < 32
    assert np.isfinite(row.obs).all()
