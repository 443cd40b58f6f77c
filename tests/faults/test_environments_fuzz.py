"""Environments that are broken at random: one line, or an environment that keeps its types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.envs.base import Env, State
from brax.envs.wrappers import training

from sail_jax.control import contract
from sail_jax.errors import UserError

CASES = 200
REAL = ('bool', 'int32', 'uint8', 'float16', 'float32')
ODD = (*REAL, 'uint32', 'complex64', 'key')
SHAPES = ((), (1,), (2,), (3,), (0,), (2, 3))
CONTAINERS = (
    lambda x, rng: x,
    lambda x, rng: {'state': x},
    lambda x, rng: {'b': x, 'a': x},
    lambda x, rng: {'state': x, 'pixels': jnp.zeros((4, 4))},
    lambda x, rng: {'deep': {'er': x}},
    lambda x, rng: [x, x],
    lambda x, rng: (x,),
    lambda x, rng: None,
    lambda x, rng: {},
)
OBJECTS = (
    None,
    7,
    'ant',
    Env,
    dict,
    lambda: None,
    np.zeros(3),
    object(),
    [],
    {'reset': 1},
    float,
    jnp.zeros(2),
)
ACTION_SIZES = (1, 2, 2, 2, 2, 0, -1, 2.0, None, '2', True, np.int64(3), 10**9, [2], jnp.ones(2))


def leaf(rng, types=ODD, shapes=SHAPES):
    """A value of a random type and shape, sometimes one that is not JAX's."""
    dtype, shape = types[rng.integers(len(types))], shapes[rng.integers(len(shapes))]
    if rng.random() < 0.15:
        return [0.5, 1, True, np.zeros(shape), np.float64(2)][rng.integers(5)]
    if rng.random() < 0.03:
        return ['text', object(), lambda: 0, np.array(['a'])][rng.integers(4)]
    if dtype == 'key':
        return jax.random.split(jax.random.key(0), shape) if shape else jax.random.key(0)
    return jnp.zeros(shape, dtype)


def fault(rng):
    """What a function does besides returning, mostly nothing."""
    kinds = (
        lambda state: 1 / 0,
        lambda state: [][1],
        lambda state: int(state.obs),
        lambda state: np.asarray(jax.tree.leaves(state.obs)[0]) + 1,
        lambda state: 1 if state.reward > 0 else 2,
        lambda state: state.nothing,
        lambda state: (_ for _ in ()).throw(RuntimeError('a\nb' * 200)),
        lambda state: jnp.zeros(2) @ jnp.zeros(3),
    )
    return kinds[rng.integers(len(kinds))] if rng.random() < 0.15 else lambda state: None


class Broken:
    """Reset and step return what they are given; each part of it is as before or drawn anew."""

    backend = 'none'
    observation_size = 2

    def __init__(self, rng):
        self.action_size = 2
        if rng.random() < 0.1:
            self.action_size = ACTION_SIZES[rng.integers(len(ACTION_SIZES))]
        container = 0 if rng.random() < 0.6 else rng.integers(len(CONTAINERS))
        self._parts = [self._draw(rng, container) for _ in range(2)]
        again = rng.random(5) < 0.75  # Most parts of step are as those of reset.
        same = [a if keep else b for a, b, keep in zip(*self._parts, again, strict=True)]
        self._parts[1] = same
        self._faults = fault(rng), fault(rng)
        self._kind = rng.integers(40)

    def _draw(self, rng, container):
        plain = rng.random() < 0.7
        obs = leaf(rng, REAL if plain else ODD, ((2,), (3,)) if plain else SHAPES)
        return [
            CONTAINERS[container](obs, rng),
            leaf(rng, REAL if plain else ODD, ((), (1,)) if plain else SHAPES),
            leaf(rng, REAL if plain else ODD, ((), (1,)) if plain else SHAPES),
            {key: leaf(rng) for key in ('x', 'y', 'z')[: rng.integers(3)]},
            {key: leaf(rng) for key in ('n', 'm', 'k')[: rng.integers(4)]},
        ]

    def _state(self, of):
        obs, reward, done, metrics, info = self._parts[of]
        state = State(None, obs, reward, done, metrics, info)
        self._faults[of](state)
        others = {0: (obs, state), 1: {'obs': obs}, 2: None, 3: [state], 4: obs}
        return others.get(self._kind, state)

    def reset(self, rng):
        return self._state(0)

    def step(self, state, action):
        state.obs, state.info  # noqa: B018
        return self._state(1)


def wrapped(env, rng):
    kinds = (
        training.VmapWrapper,
        training.AutoResetWrapper,
        training.EvalWrapper,
        lambda env: training.EpisodeWrapper(env, 3, 1),
        lambda env: type('Own', (), {'env': env, 'reset': env.reset, 'step': env.step})(),
    )
    return kinds[rng.integers(len(kinds))](env)


def generated(seed):
    rng = np.random.default_rng(seed)
    if seed < len(OBJECTS):
        return OBJECTS[seed]
    env = Broken(rng)
    return wrapped(env, rng) if rng.random() < 0.05 else env


def tried(seed):
    """Whether it was taken. What is taken keeps shapes and types, and is read as the policy does.

    Raises:
      UserError: it is refused.
    """
    env = contract.sound(generated(seed))
    state = jax.eval_shape(env.reset, jax.random.PRNGKey(0))
    for leaf in (state.reward, state.done):
        assert leaf.shape == ()
        assert jnp.issubdtype(leaf.dtype, jnp.floating)
    obs = state.obs['state'] if isinstance(state.obs, dict) else state.obs
    assert obs.ndim == 1
    assert obs.size
    action = jnp.zeros(env.action_size)
    start = env.reset(jax.random.PRNGKey(0))
    jax.eval_shape(lambda: jax.lax.scan(lambda s, _: (env.step(s, action), None), start, length=2))
    for leaf in jax.tree.leaves(state):
        assert not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key), 'no checkpoint takes it'


def test_environments_that_are_broken_at_random_are_refused_in_one_line_or_are_right():
    taken = refused = 0
    for seed in range(CASES):
        try:
            tried(seed)
            taken += 1
        except UserError as error:
            line = str(error)
            assert line.startswith('env: '), f'{seed}: {line}'
            assert '\n' not in line, f'{seed}: {line}'
            assert len(line) < 700, f'{seed}: {line}'
            refused += 1
        except Exception as error:
            pytest.fail(f'{seed}: {type(error).__name__}: {error}')
    assert refused > 100, 'broken enough'
    assert taken > 15, 'not all of them'
