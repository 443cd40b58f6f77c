"""Environments by name."""

import contextlib
import difflib
import io
import logging
import math
import threading
from typing import Any

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from brax import envs
from brax.envs.base import Env, State, Wrapper

from sail_jax.control import contract, randomised
from sail_jax.control.config import PYTHON, Environment
from sail_jax.control.lanes import select
from sail_jax.control.randomised import Randomised
from sail_jax.errors import UserError, one_line

NAMES = (
    'inverted_pendulum',
    'reacher',
    'pusher',
    'swimmer',
    'hopper',
    'walker2d',
    'halfcheetah',
    'ant',
    'humanoid',
)
BACKENDS = ('spring', 'positional', 'generalized', 'mjx')
_LOG = logging.getLogger(__name__)


class Repeated(Wrapper):
    """An environment whose step is several of its own, by one action; nothing happens after its
    `done`."""

    def __init__(self, env: Env, times: int):
        super().__init__(env)
        self._times = times

    def step(self, state: Any, action: jax.Array) -> State:
        def once(carry: tuple[Any, jax.Array], _: None) -> tuple[tuple[Any, jax.Array], None]:
            before, total = carry
            ended = before.done > 0
            after = self.env.step(before, action)
            total += jnp.where(ended, 0, after.reward)
            return (select(ended, before, after), total), None

        start = (state, jnp.zeros((), jnp.float32))
        (state, total), _ = jax.lax.scan(once, start, length=self._times)
        return state.replace(reward=total)

    @property
    def dt(self) -> float:
        """Seconds of a step."""
        env: Any = self.env
        return env.dt * self._times


def make(settings: Environment, env: Any = None) -> Env:
    """The environment, bare: without episode limit, batching or automatic reset.

    Args:
      env: any environment with Brax's interface, see `contract.sound`; replaces `name` and
        `backend`.

    Raises:
      UserError: unknown name or backend, or a pair that Brax does not have; overrides that there
        are not; an environment that is not what it should be.
    """
    for key in ('overrides', 'randomised'):
        if getattr(settings, key) and (env is not None or settings.backend != 'playground'):
            raise UserError(f'env.{key}: only environments of backend playground have such')
    env = _by_name(settings) if env is None else contract.sound(env)
    return repeated(settings, env)


def repeated(settings: Environment, env: Env) -> Env:
    """The environment with as many steps in one as is set."""
    return env if settings.action_repeat == 1 else Repeated(env, settings.action_repeat)


def bare(env: Env) -> Env:
    """The environment below what is done to its steps and physics here."""
    while isinstance(env, Repeated | Randomised):
        env = env.env
    return env


def given(env: Env) -> Env:
    """The environment as Brax, Playground or Python gave it."""
    env = bare(env)
    return env.env if isinstance(env, contract.Sound) else env


def _by_name(settings: Environment) -> Env:
    if settings.backend == PYTHON:
        raise UserError(
            f'env.backend: python: {settings.name} is an environment from Python, which its name '
            'does not find; give it from Python, as env='
        )
    if settings.backend == 'playground':
        return _playground(settings)
    if settings.name not in NAMES:
        raise UserError(f'env.name: {_unknown("environment", settings.name, NAMES)}')
    if settings.backend not in BACKENDS:
        names = (*BACKENDS, 'playground')
        raise UserError(f'env.backend: {_unknown("backend", settings.backend, names)}')
    try:
        return envs.get_environment(settings.name, backend=settings.backend)
    except ValueError:
        have = [backend for backend in BACKENDS if _has(settings.name, backend)]
        raise UserError(
            f'env.backend: {settings.name} has no {settings.backend}; it has {", ".join(have)}'
        ) from None


def _has(name: str, backend: str) -> bool:
    try:
        envs.get_environment(name, backend=backend)
    except ValueError:
        return False
    return True


def _playground(settings: Environment) -> Env:
    name = settings.name
    try:
        from mujoco_playground import registry
    except Exception as error:  # An ImportError, or what a MuJoCo that does not suit it lacks.
        raise UserError(
            'env.backend: playground needs MuJoCo Playground '
            f"(pip install 'sail-jax[playground]'): {one_line(error)}"
        ) from None
    if name not in registry.ALL_ENVS:
        raise UserError(f'env.name: {_unknown("Playground environment", name, registry.ALL_ENVS)}')
    randomiser = randomised.of_playground(name) if settings.randomised else None
    config = registry.get_default_config(name)
    overrides = _overrides(settings, config)
    steps = settings.episode_length * settings.action_repeat
    if 'episode_length' in config and config.episode_length != steps:
        _LOG.warning(
            "%s's own episodes have %d of its steps, this run's %d "
            '(env.episode_length, env.action_repeat)',
            name,
            config.episode_length,
            steps,
        )
    printed = io.StringIO()
    waiting = threading.Timer(5, _LOG.warning, ('Playground loads %s and fetches its robots', name))
    waiting.start()
    try:
        # It prints, and draws a bar of its own.
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            env: Any = registry.load(name, config_overrides=overrides)  # Of Brax's interface.
    except Exception as error:  # Of git, of a file that is not there, of MuJoCo.
        raise UserError(
            f'env.name: {name}: Playground raised {type(error).__name__}: {one_line(error)}'
            f'{_of_robots(name)}'
        ) from error
    finally:
        waiting.cancel()
    if settings.overrides:  # What Playground has by itself has been tried.
        _try(env, settings)
    return Randomised(env, randomiser) if randomiser else env


def _try(env: Any, settings: Environment) -> None:
    """Tries on shapes what overrides made of an environment.

    Raises:
      UserError: it raises, or its states are none to train on.
    """
    try:
        contract.sound(env)
    except UserError as error:
        raise UserError(f'env.overrides: {", ".join(settings.overrides)}: {error}') from error


COUNTED = {'episode_length': 'env.episode_length', 'action_repeat': 'env.action_repeat'}
"""What Playground leaves to those who train, and what it is here."""
MAX_STEPS = 2**20
"""Of the physics, in one of the environment's."""


def _overrides(settings: Environment, config: Any) -> dict[str, Any] | None:
    """Of the environment's own configuration.

    Raises:
      UserError: a key that it does not have, a value of another type, what is a setting here.
    """
    known = _flat(config.lock().to_dict()) if settings.overrides else {}
    for key, value in settings.overrides.items():
        if key in COUNTED:
            raise UserError(f'env.overrides.{key}: is the setting {COUNTED[key]} here')
        if key not in known:
            unknown = _unknown('key', key, tuple(known))
            raise UserError(f'env.overrides: {settings.name}: {unknown}')
        try:
            # Playground's takes a switch for a number, and null for anything.
            if not _alike(value, known[key]):
                raise TypeError
            config.update_from_flattened_dict({key: value})
        except (TypeError, ValueError):
            raise UserError(
                f'env.overrides.{key}: {value!r:.80}; {settings.name} has {known[key]!r:.80} '
                'there, of another type'
            ) from None
    _require_whole_steps(config)
    return ({'impl': 'jax'} if 'impl' in config else {}) | settings.overrides or None


def _alike(value: Any, there: Any) -> bool:
    """Whether both are switches, or neither is; and something, unless there is nothing."""
    return there is None or (
        value is not None and isinstance(value, bool) is isinstance(there, bool)
    )


def _require_whole_steps(config: Any) -> None:
    """Refuses an env step that is no whole number of steps of the physics: it is rounded, to none
    at all where physics are slower, and the simulator stands still.

    Raises:
      UserError: they are not, or time does not go on.
    """
    if 'ctrl_dt' not in config or 'sim_dt' not in config:
        return
    control_s, physics_s = config.ctrl_dt, config.sim_dt
    steps = control_s / physics_s if physics_s > 0 else 0
    if not (0.5 < steps <= MAX_STEPS and math.isclose(steps, round(steps), rel_tol=1e-6)):
        raise UserError(
            f'env.overrides: ctrl_dt: {control_s:g} is not a whole number of times '
            f'sim_dt: {physics_s:g} (seconds of a step, of the environment and of its physics)'
        )


def _flat(config: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """By dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f'{prefix}{key}.') if inner else {prefix + key: value}
    return flat


def _of_robots(name: str) -> str:
    """What may be wrong with the robots that some environments of Playground fetch."""
    from mujoco_playground import dm_control_suite
    from mujoco_playground._src import mjx_env

    if name in dm_control_suite.ALL_ENVS:
        return ''
    path = mjx_env.MENAGERIE_PATH
    if path.exists():
        return f'; if {path} is not whole, delete it, and it is fetched again'
    return (
        '; git fetches its robots (mujoco_menagerie) from the internet when first used; '
        f'where there is none, copy {path} from a machine that has it'
    )


def _unknown(what: str, name: str, names: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    hint = f'did you mean {close[0]}?' if close else f'known: {", ".join(names)}'
    return f'unknown {what} {name!r}; {hint}'
