"""Segments against a plain Python loop over the same environment."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.control import policy as control_policy
from sail_jax.control import rollout
from sail_jax.control.config import ControlRun
from sail_jax.control.lanes import World
from sail_jax.core.keys import row_keys
from sail_jax.core.types import Policies
from tests.support.toy import SETTINGS, Point, Poisoned

B, L, T = 4, 3, 6


def setup(env, episode_length=100, clock=0, seed=0):
    run = ControlRun.model_validate(SETTINGS)
    networks = control_policy.make_networks(env, run)
    policy = control_policy.init(jax.random.key(1), env, networks, run)
    other = control_policy.init(jax.random.key(2), env, networks, run)
    contexts = rollout.init_contexts(env, row_keys(jax.random.key(seed), B), 1, 1)
    contexts = contexts._replace(clock_B=jnp.full(B, clock))
    return run, networks, policy, other, contexts


def run_segments(env, contexts, networks, policies, by_reference=None, episode_length=100, rows=B):
    keys = row_keys(jax.random.key(3), B)[:rows]
    contexts = jax.tree.map(lambda x: x[:rows], contexts)
    return jax.jit(
        lambda policies, contexts: rollout.segments(
            World(env, networks, episode_length),
            rollout.make_actor(networks, policies, by_reference),
            contexts,
            keys,
            lanes=L,
            segment_length=T,
        )
    )(Policies(*policies), contexts)


def replay(env, state, raw_actions):
    """One lane by hand: rewards and observations up to and including the first `done`."""
    observations, rewards = [state.obs], []
    for raw in raw_actions:
        state = env.step(state, jnp.tanh(raw))
        rewards.append(state.reward)
        if state.done:
            return observations, rewards, state, True
        observations.append(state.obs)
    return observations, rewards, state, False


def test_segments_replay_by_hand():
    env = Point(drift=0.08)
    _, networks, policy, other, contexts = setup(env)
    segments, _ = run_segments(env, contexts, networks, (policy, other))
    lengths = []
    for b in range(B):
        state = jax.tree.map(lambda x, b=b: x[b], contexts.env_state)
        for lane in range(L):
            obs, rewards, last, done = replay(env, state, segments.raw_action[b, lane])
            n = len(rewards)
            lengths.append(n)
            np.testing.assert_array_equal(segments.mask[b, lane], np.arange(T) < n)
            np.testing.assert_allclose(segments.reward[b, lane, :n], rewards, rtol=1e-5, atol=1e-6)
            assert not segments.reward[b, lane, n:].any()
            np.testing.assert_allclose(segments.obs[b, lane, :n], obs[:n], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(segments.last_obs[b, lane], last.obs, rtol=1e-5, atol=1e-6)
            assert bool(segments.terminated[b, lane]) == done == bool(segments.ended[b, lane])
    assert min(lengths) < T == max(lengths), 'the test wants lanes that end and lanes that do not'


def test_log_probs_are_those_of_the_policy_that_acted():
    env = Point()
    _, networks, policy, other, contexts = setup(env)
    by_reference = jnp.zeros((B, L), bool).at[1].set(True).at[:, 2].set(True)
    segments, _ = run_segments(env, contexts, networks, (policy, other), by_reference)
    for p, chosen in ((policy, ~by_reference), (other, by_reference)):
        dist = control_policy.actions(networks, p, segments.obs)
        logp = control_policy.log_prob(dist, segments.raw_action)
        np.testing.assert_allclose(logp[chosen], segments.logp[chosen], rtol=1e-4, atol=1e-5)
        assert np.abs(logp[~chosen] - segments.logp[~chosen]).max() > 1e-2


def test_a_row_depends_on_its_own_key_alone():
    env = Point()
    _, networks, policy, other, contexts = setup(env)
    whole, _ = run_segments(env, contexts, networks, (policy, other))
    part, _ = run_segments(env, contexts, networks, (policy, other), rows=2)
    np.testing.assert_array_equal(whole.raw_action[:2], part.raw_action)


def test_the_time_limit_ends_without_termination():
    env = Point()
    _, networks, policy, other, contexts = setup(env, clock=7)
    segments, _ = run_segments(env, contexts, networks, (policy, other), episode_length=10)
    np.testing.assert_array_equal(segments.mask[0, 0], [1, 1, 1, 0, 0, 0])
    assert segments.ended.all()
    assert not segments.terminated.any()


@pytest.mark.parametrize(
    ('what', 'value'),
    [
        *itertools.product(['obs', 'reward', 'reset'], [jnp.nan, jnp.inf, -jnp.inf]),
        ('done', jnp.nan),
    ],
)
def test_a_simulator_that_is_not_finite_is_cut_and_counted(what, value):
    env = Poisoned(what, value, drift=0.03)
    _, networks, policy, other, contexts = setup(env)
    segments, _ = run_segments(env, contexts, networks, (policy, other))
    assert 0 < segments.not_finite.sum() < B * L
    assert jax.tree.all(jax.tree.map(lambda x: jnp.isfinite(x).all(), segments))
    assert (segments.ended >= segments.not_finite).all()


def test_contexts_go_on_or_start_afresh_from_new_states():
    env = Point(drift=0.05)
    _, networks, policy, other, contexts = setup(env)
    segments, states = run_segments(env, contexts, networks, (policy, other))
    ended = segments.ended.at[0].set(True).at[1].set(False)
    keys = row_keys(jax.random.key(5), B)
    after = rollout.next_contexts(env, contexts, states, ended, T, keys)
    again = rollout.next_contexts(env, after, states, ended, T, row_keys(jax.random.key(6), B))
    born, position = after.env_state.info['born'], after.env_state.pipeline_state
    np.testing.assert_array_equal(position[0], born[0])
    assert (born[0] != contexts.env_state.info['born'][0]).any()
    assert (born[0] != again.env_state.info['born'][0]).any()
    assert after.clock_B[0] == 0
    assert after.clock_B[1] == contexts.clock_B[1] + T
    np.testing.assert_array_equal(born[1], contexts.env_state.info['born'][1])
    assert any(np.array_equal(position[1], states.pipeline_state[1, lane]) for lane in range(L))


def test_lanes_are_chosen_evenly():
    env = Point()
    rows = 3000
    contexts = rollout.init_contexts(env, row_keys(jax.random.key(0), rows), 1, 1)
    lane = jnp.arange(L, dtype=jnp.float32)[None, :, None]
    fork = lambda x: jnp.repeat(x[:, None], L, 1)
    states = jax.tree.map(fork, contexts.env_state)
    states = states.replace(pipeline_state=jnp.broadcast_to(lane, (rows, L, 2)))
    after = rollout.next_contexts(
        env, contexts, states, jnp.zeros((rows, L), bool), T, row_keys(jax.random.key(9), rows)
    )
    counts = np.bincount(np.asarray(after.env_state.pipeline_state[:, 0], int), minlength=L)
    assert np.abs(counts - rows / L).max() < 4 * (rows * 2 / 9) ** 0.5


@pytest.mark.parametrize('deterministic', [False, True])
def test_episodes_are_whole_and_their_kl_is_that_of_the_visited_states(deterministic):
    env = Point(drift=0.05)
    _, networks, policy, other, _ = setup(env)
    lanes = jnp.full(2, deterministic)
    keys = row_keys(jax.random.key(4), 5)
    world = World(env, networks, episode_length=30)
    same = rollout.episodes(world, Policies(policy, policy), policy, lanes, keys)
    ours = rollout.episodes(world, Policies(policy, other), policy, lanes, keys)
    np.testing.assert_array_equal(same.episode_return, ours.episode_return)
    np.testing.assert_allclose(same.kl_policy_to_start, 0, atol=1e-5)
    np.testing.assert_allclose(same.logp, same.reference_logp)
    assert (ours.kl_policy_to_start > 0).all()
    assert (ours.kl_start_to_policy > 0).all()
    assert (ours.length < 30).any()
    if deterministic:
        np.testing.assert_array_equal(ours.episode_return[:, 0], ours.episode_return[:, 1])
    else:
        assert (ours.episode_return[:, 0] != ours.episode_return[:, 1]).all()
