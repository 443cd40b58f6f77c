"""A trained policy as a function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.control import act, contract
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun
from tests.support.toy import SETTINGS, Point


class Seen(Point):
    """A point that is observed otherwise."""

    def __init__(self, observe):
        super().__init__()
        self._observe = observe

    def reset(self, rng):
        state = super().reset(rng)
        return state.replace(obs=self._observe(state.pipeline_state))

    def step(self, state, action):
        state = super().step(state, action)
        return state.replace(obs=self._observe(state.pipeline_state))


@pytest.mark.parametrize(
    'observe',
    [
        lambda p: p[0],
        lambda p: p > 0,
        lambda p: {'state': p, 'more': p},
        lambda p: {'state': p, 'more': p[0]},
        lambda p: {'b': p, 'a': p[0] > 0},
        lambda p: {'b': {'c': p, 'd': p[0]}, 'a': p[:1]},
        lambda p: {0: p, 1: p[:1]},
    ],
)
def test_a_loaded_policy_takes_observations_as_the_environment_gives_them(observe):
    env, run = Seen(observe), ControlRun.model_validate(SETTINGS)
    sound = contract.sound(env)
    networks = control_policy.make_networks(sound, run)
    policy = control_policy.init(jax.random.key(0), sound, networks, run)
    greedy = act.make(run, policy, deterministic=True, env=env)
    keys_N = jax.vmap(jax.random.PRNGKey)(jnp.arange(3))
    theirs, ours = (jax.vmap(of.reset)(keys_N).obs for of in (env, sound))
    actions = greedy(theirs)
    assert actions.shape == (3, 2)
    np.testing.assert_array_equal(actions, greedy(ours))
    alone = jax.tree.map(lambda x: np.asarray(x[1]), theirs)
    np.testing.assert_allclose(greedy(alone), actions[1], atol=1e-6)
