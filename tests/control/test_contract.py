"""Environments from Python: what is right, what is made right, and one line for the rest."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs as brax_envs
from brax.envs.base import State
from brax.envs.wrappers import training
from jax.experimental import checkify

import sail_jax
from sail_jax.control import contract, envs, task
from sail_jax.control.config import ControlRun, Environment
from sail_jax.errors import UserError
from tests.support.toy import SETTINGS, Point


class Changed(Point):
    """A point whose states are changed on their way out.

    Args:
      reset, step: the fields of a state, as functions of it; see `change`.
    """

    def __init__(self, reset=None, step=None):
        super().__init__(drift=0.3)
        self._reset, self._step = reset or {}, step or {}

    def reset(self, rng):
        return change(super().reset(rng), self._reset)

    def step(self, state, action):
        return change(super().step(state, action), self._step)


def change(state, functions):
    return state.replace(**{key: function(state) for key, function in functions.items()})


def both(**functions):
    return Changed(functions, functions)


def as_dict(**parts):
    return lambda s: {key: part(s.pipeline_state) for key, part in parts.items()}


def count(start, more):
    """`info['n']` of one type at reset, and of another in step."""
    return Changed({'info': lambda s: {'n': start}}, {'info': lambda s: {'n': s.info['n'] + more}})


def carrying_key():
    """A key of the new kind in the state, that noise is drawn from."""

    class Noisy(Point):
        def reset(self, rng):
            state = super().reset(rng)
            return state.replace(info={'key': jax.random.wrap_key_data(rng)})

        def step(self, state, action):
            key, now = jax.random.split(state.info['key'])
            state = super().step(state, action + jax.random.normal(now, (2,)))
            return state.replace(info={'key': key})

    return Noisy()


Step = namedtuple('Step', ['obs', 'reward', 'done'])


class Tupled(Point):
    """Its state has what is read of it, and no method `replace`."""

    def reset(self, rng):
        state = super().reset(rng)
        return Step(state.obs, state.reward, state.done)

    def step(self, state, action):
        after = super().step(State(state.obs, *state), action)
        return Step(after.obs, after.reward, after.done)


def checked(check):
    def function(state):
        check(state.done < 2, 'no end is this far')
        return state.done

    return function


RIGHT = {
    'weak types': Changed({'reward': lambda s: 0.0, 'done': lambda s: 0.0}),
    'a dict with state': both(obs=as_dict(state=lambda p: p, more=lambda p: jnp.stack([p, p]))),
    'integers': both(obs=lambda s: (s.obs * 10).astype(jnp.int32)),
    'checks for debugging': both(done=checked(checkify.debug_check)),
    'prints': both(done=lambda s: jax.debug.print('{}', s.done, ordered=True) or s.done),
}
MADE_RIGHT = {
    'reward of shape (1,)': both(reward=lambda s: s.reward[None]),
    'reward of shape (1,) in step': Changed(step={'reward': lambda s: s.reward[None]}),
    'reward of shape (1,) at reset': Changed({'reward': lambda s: s.reward[None]}),
    'an int at reset': Changed({'reward': lambda s: jnp.zeros((), jnp.int32)}),
    'python numbers': Changed({'reward': lambda s: 0, 'done': lambda s: False}),
    'done is bool': both(done=lambda s: s.done > 0),
    'done is bool in step': Changed(step={'done': lambda s: s.done > 0}),
    'done is int of shape (1,)': both(done=lambda s: s.done.astype(jnp.int32)[None]),
    'a count that becomes float': count(0, 0.5),
    'a flag that becomes a count': count(False, 1),
    'one observation': both(obs=lambda s: s.pipeline_state[0]),
    'observations are bool': both(obs=lambda s: s.pipeline_state > 0),
    'a dict without state': both(obs=as_dict(b=lambda p: p, a=lambda p: p[0] > 0)),
    'a key': carrying_key(),
    'a reward in bfloat16': both(reward=lambda s: s.reward.astype(jnp.bfloat16)),
    'a reward in float16': both(reward=lambda s: s.reward.astype(jnp.float16)),
    'a state that is a NamedTuple': Tupled(),
    'a dict by numbers': both(obs=lambda s: {0: s.pipeline_state, 1: s.pipeline_state[:1]}),
}


@pytest.mark.parametrize('env', RIGHT.values(), ids=RIGHT)
def test_a_right_environment_is_left_as_it_is(env):
    assert contract.sound(env) is env


@pytest.mark.parametrize('env', MADE_RIGHT.values(), ids=MADE_RIGHT)
def test_what_is_made_right_is_the_same_episode(env):
    sound = contract.sound(env)
    key, action = jax.random.PRNGKey(3), jnp.asarray([0.3, -0.2])
    ours, theirs = sound.reset(key), env.reset(key)
    types = [(x.shape, x.dtype) for x in jax.tree.leaves(ours)]
    while not theirs.done:
        ours, theirs = sound.step(ours, action), env.step(theirs, action)
        assert [(x.shape, x.dtype) for x in jax.tree.leaves(ours)] == types
        for leaf in (ours.reward, ours.done):
            assert (leaf.shape, leaf.dtype) == ((), jnp.float32)
        np.testing.assert_allclose(ours.reward, np.reshape(theirs.reward, ()), rtol=1e-6)
        assert bool(ours.done) == bool(np.reshape(theirs.done, ()))
        seen = np.hstack([np.ravel(leaf) for leaf in jax.tree.leaves(theirs.obs)])
        if isinstance(theirs.obs, dict):
            np.testing.assert_array_equal(ours.obs['state'], seen)
            assert ours.obs.keys() == {'state', *map(str, theirs.obs)}
        else:
            np.testing.assert_array_equal(ours.obs, seen)


def raising(error):
    def function(state):
        raise error

    return function


class Gymnax:
    action_size = 2

    def reset(self, key, params=None):
        return jnp.zeros(2), {'x': jnp.zeros(2)}

    def step(self, key, state, action, params=None):
        return jnp.zeros(2), state, 0.0, False, {}


class Remembers(Point):
    """Keeps in itself what belongs into the state."""

    def reset(self, rng):
        self.wind = jax.random.normal(rng, (2,))
        return super().reset(rng)

    def step(self, state, action):
        return super().step(state, action + self.wind)


class RemembersSteps(Point):
    """Keeps in itself what the last step did."""

    last = None

    def step(self, state, action):
        jerk = 0.0 if self.last is None else action - self.last
        self.last = action
        return super().step(state, action + 0 * jerk)


class CountsInReset(Point):
    """Reads in reset what a step has left."""

    last = jnp.zeros(2)

    def reset(self, rng):
        state = super().reset(rng)
        return state.replace(obs=state.obs + 0 * self.last)

    def step(self, state, action):
        self.last = action
        return super().step(state, action)


def sized(size):
    return type('Sized', (Point,), {'action_size': size})()


Gymnasium = type('CartPoleEnv', (), {'__module__': 'gymnasium.envs.classic_control.cartpole'})
TO_DONE = {'done': lambda s: s.done if s.obs[0] > 0 else 0 * s.done}

REFUSED = {
    'obs of another shape': (
        Changed(step={'obs': lambda s: jnp.hstack([s.obs, s.obs])}),
        r'env: Changed: obs is float32\[2\] in .* reset returns, and float32\[4\] in that of step',
    ),
    'reward of two': (
        both(reward=lambda s: s.obs),
        r'reset: reward is float32\[2\]; expected one number; one environment is asked for, not a',
    ),
    'reward of a dict': (both(reward=lambda s: {'a': s.reward}), 'reward is a dict; expected one'),
    'no reward at reset': (Changed({'reward': lambda s: None}), 'reward is a NoneType'),
    'a complex reward': (
        both(reward=lambda s: s.reward * 1j),
        r'reward is complex64\[\]; expected',
    ),
    'info that is late': (
        Changed(step={'info': lambda s: {**s.info, 'late': s.done}}),
        r"info\['late'\] is in the state that step returns; reset's must have it too",
    ),
    'info that is lost': (
        Changed({'info': lambda s: {**s.info, 'early': s.done}}, {'info': lambda s: {}}),
        r"info\['born'\] is in the state that reset returns, and not in that of step",
    ),
    'metrics that are late': (
        Changed(step={'metrics': lambda s: {'x': {'y': s.done}}}),
        r"metrics\['x'\]\['y'\] is in the state that step returns",
    ),
    'bits that become numbers': (
        count(jnp.zeros(2, jnp.uint32), 0.5),
        r"info\['n'\] is uint32\[2\] in the state that reset returns, and float32\[2\] in",
    ),
    'a tuple that becomes a list': (
        Changed({'info': lambda s: {'n': (s.done,)}}, {'info': lambda s: {'n': [s.done]}}),
        'are built otherwise',
    ),
    'an image': (both(obs=lambda s: jnp.zeros((8, 8, 3))), r'obs is float32\[8,8,3\]; .*flatten'),
    'an image in a dict': (
        both(obs=as_dict(eye=lambda p: jnp.zeros((4, 4)))),
        r"obs\['eye'\] is float32\[4,4\]; expected a vector",
    ),
    'a state that is a dict': (
        both(obs=as_dict(state=lambda p: {'x': p})),
        r"obs\['state'\] is a dict; expected an array",
    ),
    'a list': (both(obs=lambda s: [s.obs, s.obs]), r'obs is a list; expected an array \[N\]'),
    'no observation': (both(obs=lambda s: None), 'obs is a NoneType'),
    'an empty one': (both(obs=lambda s: s.obs[:0]), 'obs is empty'),
    'floats of 8 bits': (
        both(obs=lambda s: s.obs.astype(jnp.float8_e4m3fn)),
        r'obs is float8_e4m3fn\[2\]; expected real numbers',
    ),
    'a reward of 4 bits in step': (
        Changed(step={'reward': lambda s: s.reward.astype(jnp.int4)}),
        r'step: reward is int4\[\]; expected one number',
    ),
    'a generator': (
        type('Yields', (Point,), {'step': lambda self, state, action: (yield state)})(),
        'env: Yields.step: raised TypeError: .*generator',
    ),
    'an empty dict': (both(obs=lambda s: {}), 'obs is empty'),
    'step raises': (
        Changed(step={'done': raising(RuntimeError('no\ncontact solver'))}),
        r'env: Changed.step: raised RuntimeError: no contact solver \(test_contract.py:\d+\)',
    ),
    'reset raises': (
        Changed({'done': raising(FileNotFoundError('assets/robot.xml'))}),
        r'env: Changed.reset: raised FileNotFoundError: assets/robot.xml \(test_contract',
    ),
    'step branches': (
        Changed(step=TO_DONE),
        r'step: raised TracerBoolConversionError: .*use jnp.where, jax.lax.cond .* \(test_contr',
    ),
    'reset branches': (Changed(TO_DONE), 'reset: raised TracerBoolConversionError'),
    'step checks': (
        Changed(step={'done': checked(checkify.check)}),
        r'step: raised ValueError: .*checkify.check which was not functionalized',
    ),
    'reset checks': (
        Changed({'done': checked(checkify.check)}),
        r'reset: raised ValueError: .*checkify.check which was not functionalized',
    ),
    'numpy': (Changed(step={'obs': lambda s: np.asarray(s.obs)}), 'raised TracerArrayConversionEr'),
    'an index': (
        Changed(step={'obs': lambda s: jnp.zeros(int(s.obs[0]))}),
        'step: raised ConcretizationTypeError: a value that only the compiled program knows',
    ),
    'a state of its own': (
        Remembers(),
        r'step: raised UnexpectedTracerError: .*put it into the state \(test_contract',
    ),
    'the last action': (
        RemembersSteps(),
        r'step: raised UnexpectedTracerError: .*put it into the state \(test_contract',
    ),
    'the last action in reset': (
        CountsInReset(),
        r'reset: raised UnexpectedTracerError: .*put it into the state \(test_contract',
    ),
    'text in the state': (both(info=lambda s: {'x': 'text'}), 'reset: raised TypeError: .*str'),
    'an action of another size': (sized(3), r'env: Sized.step: raised TypeError: .*\(toy.py:\d+\)'),
    'no actions': (sized(0), r'Sized.action_size: 0; expected a whole number from 1 to 65536'),
    'a fraction of an action': (sized(2.0), r'action_size: 2\.0; expected a whole number'),
    'a method': (sized(lambda self: 2), 'Sized.action_size is a method; make it a property'),
    'a property that raises': (
        sized(property(raising(KeyError('nu')))),
        r"env: Sized.action_size: raised KeyError: 'nu' \(test_contract.py:\d+\)",
    ),
    'a class': (Point, r'env: the class Point; give an instance of it, Point\(\)'),
    'a function': (lambda: Point(), 'env: function has no reset, step, action_size'),
    'a name': ('hopper', r"env: a name, 'hopper'; the setting env.name takes it"),
    'a number': (3, 'env: int has no reset'),
    'of Gymnax': (
        Gymnax(),
        r"reset: returned a tuple of 2, as Gymnax.*; expected Brax's State \(pipeline_state, obs",
    ),
    'of Gymnasium': (Gymnasium(), 'CartPoleEnv is an environment of Gymnasium; expected .* JAX'),
    'of a space': (
        type('Own', (), {'action_space': 2, 'reset': print, 'step': print})(),
        r'Own has no action_size \(action_space is of Gym and Gymnax\)',
    ),
    'batched': (training.VmapWrapper(Point()), 'env: wrapped in VmapWrapper; give the bare'),
    'cut': (training.EpisodeWrapper(Point(), 5, 1), 'env: wrapped in EpisodeWrapper'),
    'reset': (training.AutoResetWrapper(Point()), 'env: wrapped in AutoResetWrapper'),
    'wrapped for training': (training.wrap(Point(), 5, 1), 'env: wrapped in AutoResetWrapper'),
    'wrapped within a wrapper': (
        brax_envs.Wrapper(training.EvalWrapper(Point())),
        r'env: wrapped in EvalWrapper; .*\(brax.envs.get_environment, or env.unwrapped\)',
    ),
    'as brax.envs.create has it': (
        brax_envs.create('fast', auto_reset=True),
        'env: wrapped in AutoResetWrapper',
    ),
}


@pytest.mark.parametrize(('env', 'said'), REFUSED.values(), ids=REFUSED)
def test_a_wrong_environment_is_one_line_before_anything_is_written(env, said, tmp_path):
    with pytest.raises(UserError, match=said) as caught:
        sail_jax.train(ControlRun.model_validate(SETTINGS), tmp_path / 'run', env=env)
    assert '\n' not in str(caught.value)
    assert str(caught.value).startswith('env: ')
    assert not list(tmp_path.iterdir())


def test_steps_with_any_state_are_repeated():
    env = envs.make(Environment(action_repeat=2), Tupled())
    after = jax.eval_shape(lambda key: env.step(env.reset(key), jnp.zeros(2)), jax.random.key(0))
    assert after.obs.shape == (2,)


def test_wrappers_of_a_users_own_are_taken():
    assert isinstance(contract.sound(brax_envs.Wrapper(Point())), brax_envs.Wrapper)


@pytest.mark.slow
def test_what_was_made_right_trains_and_goes_on_bit_for_bit(tmp_path):
    run = ControlRun.model_validate(SETTINGS)
    longer = run.model_copy(update={'total_env_steps': 2 * run.total_env_steps})

    def env():
        noisy = carrying_key()
        step = noisy.step
        noisy.step = lambda s, action: change(
            step(s, action),
            {'done': lambda s: (s.done > 0)[None], 'obs': as_dict(x=lambda p: p, y=jnp.sum)},
        )
        reset = noisy.reset
        noisy.reset = lambda rng: change(
            reset(rng), {'reward': lambda s: 0, 'obs': as_dict(x=lambda p: p, y=jnp.sum)}
        )
        return noisy

    sail_jax.train(run, tmp_path / 'halves', env=env(), quiet=True)
    halves = sail_jax.train(longer, tmp_path / 'halves', env=env(), resume=True, quiet=True)
    whole = sail_jax.train(longer, tmp_path / 'whole', env=env(), quiet=True)
    jax.tree.map(np.testing.assert_array_equal, halves.policy, whole.policy)
    assert whole.after['eval/length'] > 1


def test_keys_of_other_generators_are_taken():
    # Of four numbers where threefry's have two.
    jax.config.update('jax_default_prng_impl', 'rbg')
    try:
        made = task.make(ControlRun.model_validate(SETTINGS), env=Point())
        assert made.batch_bytes() > 0
        start = jax.eval_shape(made.workload.init, jax.random.key(0))
        assert jax.tree.leaves(start)
    finally:
        jax.config.update('jax_default_prng_impl', 'threefry2x32')
