"""No two numbers of a control run come from one key, whatever they decide."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.control import policy as control_policy
from sail_jax.control import rollout, workload
from sail_jax.control.config import ControlRun
from sail_jax.control.lanes import World
from sail_jax.core import update
from sail_jax.core.keys import EVALUATE, INIT, START, row_keys, stream
from sail_jax.core.types import Policies
from sail_jax.training import devices
from tests.support.keys import reused, uses
from tests.support.toy import SETTINGS, Point

B, K, T = 2, 2, 3
# All that draws is in use: four members of the family, a lane of the reference, labels by chance,
# two networks.
EVERYTHING = {
    'rollout': {'contexts': B, 'group_size': K, 'segment_length': T},
    'objective': {'mixture': {'dpr': 0.4, 'dpp': 0.2, 'ddp': 0.2}},
    'divergence': {'coefficient': 1.0, 'states': 'reference'},
    'labeller': {'rationality': 1.0, 'mistake': 0.2},
    'value': {'terminal': 'learned', 'hidden': [4]},
}


@pytest.fixture(scope='module')
def made():
    run = ControlRun.model_validate(SETTINGS | EVERYTHING)
    env = Point()
    networks = control_policy.make_networks(env, run)
    made = workload.make(env, networks, run, devices.make_mesh(B))
    init = lambda key: control_policy.init(key, env, networks, run)
    return run, env, networks, made, init


def test_a_run_uses_no_key_twice(made):
    run, env, networks, made, init = made
    policy, other = init(jax.random.key(8)), init(jax.random.key(9))

    def begin(seed):
        init(stream(seed, START))
        return made.init(stream(seed, INIT))

    def evaluate(seed):
        return rollout.episodes(
            World(env, networks, episode_length=2),
            Policies(policy, other),
            policy,
            jnp.asarray([False, False]),
            row_keys(stream(seed, EVALUATE), B),
        ).episode_return

    start = jax.jit(lambda: update.init(made, run, Policies(policy, other)))()
    draw = functools.partial(update.draw, made)
    of_updates = [uses(draw, start._replace(step=jnp.int32(step))) for step in range(2)]
    apart = [uses(begin, start.seed), uses(evaluate, start.seed), *of_updates]
    for found in apart:
        assert not reused(found)
    # One leads from the seed to all of them; each takes its own way from there.
    for one, another in itertools.combinations(map(set, apart), 2):
        assert all(use.what == 'random_fold_in' for use in one & another)
        assert not reused(one | another)
    # A normal number a lane, row and step; a route, a choice of a lane and labels a row.
    bits = [use for use in of_updates[0] if use.what == 'random_bits']
    assert len(bits) >= B * T + 4 * B


def noise(dist, raw_action):
    return np.array((raw_action - dist.loc) / dist.scale)


def test_steps_lanes_and_rows_have_noise_of_their_own(made):
    _, env, networks, _, init = made
    policy, other = init(jax.random.key(8)), init(jax.random.key(9))
    rows, steps = 40, 12
    contexts = rollout.init_contexts(env, row_keys(jax.random.key(1), rows), 1, 1)
    by_reference = jnp.zeros((rows, 3), bool).at[:, 2].set(True)
    segments, _ = jax.jit(
        lambda: rollout.segments(
            World(env, networks, episode_length=100),
            rollout.make_actor(networks, Policies(policy, other), by_reference),
            contexts,
            row_keys(jax.random.key(2), rows),
            lanes=3,
            segment_length=steps,
        )
    )()
    ours, theirs = (control_policy.actions(networks, p, segments.obs) for p in (policy, other))
    drawn = noise(ours, segments.raw_action)
    drawn[:, 2] = noise(theirs, segments.raw_action)[:, 2]
    # Standard normal, and no two steps, lanes, rows or entries of an action alike.
    assert abs(drawn.mean()) < 5 / drawn.size**0.5
    assert abs((drawn**2).mean() - 1) < 5 * (2 / drawn.size) ** 0.5
    for axis in range(4):
        turned = np.moveaxis(drawn, axis, 0).reshape(drawn.shape[axis], -1)
        r = np.corrcoef(turned)[np.triu_indices(len(turned), 1)]
        assert np.abs(r).max() < 6 / turned.shape[1] ** 0.5
