"""What MuJoCo Playground has of its own: settings of PPO, randomised physics."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.training.agents.ppo import train as ppo

from sail_jax.control import envs, reference
from sail_jax.control.config import Environment
from sail_jax.control.randomised import DRAWN, Randomised
from sail_jax.errors import UserError

registry = pytest.importorskip('mujoco_playground').registry

CARTPOLE = Environment(name='CartpoleBalance', backend='playground')


def heavier(model, key_N):
    """Each with other masses and another gravity; all else is shared."""
    draw = lambda key: jax.random.uniform(key, minval=1, maxval=3)
    factor_N = jax.vmap(draw)(key_N)
    changed = {
        'body_mass': factor_N[:, None] * model.body_mass,
        'opt.gravity': factor_N[:, None] * model.opt.gravity,
    }
    axes = jax.tree.map(lambda _: None, model).tree_replace(dict.fromkeys(changed, 0))
    return model.tree_replace(changed), axes


@pytest.fixture(scope='module')
def cartpole():
    return Randomised(envs.make(CARTPOLE), heavier)


def test_each_episode_has_physics_of_its_own_to_its_end(cartpole):
    key_3 = jax.random.split(jax.random.PRNGKey(0), 3)
    key_3 = jnp.stack([key_3[0], key_3[1], key_3[0]])
    step = jax.jit(jax.vmap(cartpole.step))
    first = state = jax.jit(jax.vmap(cartpole.reset))(key_3)
    for _ in range(3):
        state = step(state, jnp.full((3, 1), 0.3))
    for before, after in zip(first.info[DRAWN].values(), state.info[DRAWN].values(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert len(first.info[DRAWN]) == 2
    assert np.abs(state.obs[0] - state.obs[1]).max() > 1e-4
    np.testing.assert_array_equal(state.obs[0], state.obs[2])
    # As by an environment that has this model from the start.
    mine = envs.make(CARTPOLE)
    model, _ = heavier(mine.mjx_model, jax.random.split(key_3[0], 2)[:1])
    take = {'body_mass': model.body_mass[0], 'opt.gravity': model.opt.gravity[0]}
    mine._mjx_model = mine.mjx_model.tree_replace(take)
    alone = jax.tree.map(lambda x: x[0], first)
    alone = alone.replace(info={k: x for k, x in alone.info.items() if k != DRAWN})
    step_alone = jax.jit(mine.step)
    for _ in range(3):
        alone = step_alone(alone, jnp.full(1, 0.3))
    np.testing.assert_allclose(state.obs[0], alone.obs, rtol=1e-4, atol=1e-5)


def test_the_environment_itself_stays_as_it_was(cartpole):
    bare = envs.bare(envs.repeated(CARTPOLE.model_copy(update={'action_repeat': 2}), cartpole))
    before = jax.tree.leaves(bare.mjx_model)
    state = jax.eval_shape(cartpole.reset, jax.random.PRNGKey(0))
    jax.eval_shape(cartpole.step, state, jnp.ones(1))
    assert [id(x) for x in before] == [id(x) for x in jax.tree.leaves(bare.mjx_model)]
    assert not isinstance(bare, Randomised)


@pytest.mark.parametrize(
    ('env', 'said'),
    [
        ({'name': 'hopper'}, 'only environments of backend playground have such'),
        (
            {'name': 'CheetahRun', 'backend': 'playground'},
            'Playground has no randomiser for CheetahRun; it has for .*Go1JoystickFlatTerrain',
        ),
    ],
)
def test_where_nothing_randomises_it_is_said(env, said, capfd):
    with pytest.raises(UserError, match=rf'env\.randomised: {said}') as caught:
        envs.make(Environment(randomised=True, **env))
    assert '\n' not in str(caught.value)
    assert capfd.readouterr().out == ''


def test_ppo_takes_the_settings_that_playground_tuned():
    known = inspect.signature(ppo.train).parameters
    for name in registry.ALL_ENVS:
        settings = reference.suited(Environment(name=name, backend='playground'))
        assert set(settings) <= set(known)
        assert settings['batch_size'] * settings['num_minibatches'] % settings['num_envs'] == 0
        assert settings['normalize_observations']
    cheetah = reference.suited(Environment(name='CheetahRun', backend='playground'))
    assert cheetah['reward_scaling'] == 10
    assert reference.suited(Environment()) == reference.PPO
