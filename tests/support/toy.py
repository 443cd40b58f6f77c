"""A real, tiny environment with Brax's interface: a point that must stay near the origin."""

import jax
import jax.numpy as jnp
from brax.envs.base import Env, State

import sail_jax
from sail_jax.control.config import ControlRun


class Point(Env):
    """The action pushes a point in the plane; the episode ends where it leaves the unit disc.

    The reward is 1 minus the distance from the origin. `info['born']` keeps the start position, so
    that tests can tell new episodes from continued ones; `info['nothing']` is empty, as some arrays
    of MJX are.
    """

    def __init__(self, drift: float = 0.0, spread: float = 0.5):
        self._drift, self._spread = drift, spread

    def reset(self, rng: jax.Array) -> State:
        position = jax.random.uniform(rng, (2,), minval=-self._spread, maxval=self._spread)
        zero = jnp.zeros(())
        return State(
            position, position, zero, zero, {}, {'born': position, 'nothing': jnp.zeros(0)}
        )

    def step(self, state: State, action: jax.Array) -> State:
        position = state.pipeline_state + 0.1 * action + self._drift
        distance = jnp.linalg.norm(position)
        return state.replace(
            pipeline_state=position,
            obs=position,
            reward=1 - distance,
            done=(distance > 1).astype(jnp.float32),
        )

    @property
    def observation_size(self) -> int:
        return 2

    @property
    def action_size(self) -> int:
        return 2

    @property
    def backend(self) -> str:
        return 'none'


class Poisoned(Point):
    """Gives something that is not finite to the right of x = 0.4, without saying that it ends.

    Args:
      what: `obs`, `reward`, `done`; or `reset`: the observations of a new episode that begins
        there.
    """

    def __init__(self, what: str, value: float = jnp.nan, **kwargs: float):
        super().__init__(**kwargs)
        self._what, self._value = what, value

    def reset(self, rng: jax.Array) -> State:
        state = super().reset(rng)
        return self._poison(state) if self._what == 'reset' else state

    def step(self, state: State, action: jax.Array) -> State:
        return self._poison(super().step(state, action))

    def _poison(self, state: State) -> State:
        name = 'obs' if self._what == 'reset' else self._what
        bad = state.pipeline_state[0] > 0.4
        return state.replace(**{name: jnp.where(bad, self._value, getattr(state, name))})


SETTINGS = {
    'total_env_steps': 4 * 4 * 3 * 5,
    'updates_per_dispatch': 2,
    'env': {'episode_length': 20},
    'policy': {'hidden': [8]},
    'rollout': {'contexts': 4, 'group_size': 3, 'segment_length': 5},
    'evaluation': {'episodes': 4, 'every_updates': 2},
    'checkpoints': {'every_updates': 2},
    'logging': {'tensorboard': False},
}


def make_run(**settings) -> ControlRun:
    """A run of few updates; sections replace those of `SETTINGS`."""
    return ControlRun.model_validate({**SETTINGS, **settings})


def train(path, run=None, env=None, **kwargs):
    """Trains it, on the point where no environment is given."""
    return sail_jax.train(run or make_run(), path, env=env or Point(), quiet=True, **kwargs)
