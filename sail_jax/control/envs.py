"""Environments by name."""

import contextlib
import difflib
import io
import logging
import threading
from typing import Any

import sail_jax.control.compat  # noqa: F401

from brax import envs
from brax.envs.base import Env

from sail_jax.control.config import PYTHON, Environment
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


def make(settings: Environment) -> Env:
    """The environment, bare: without episode limit, batching or automatic reset.

    Raises:
      UserError: unknown name or backend, or a pair that Brax does not have.
    """
    if settings.backend == PYTHON:
        raise UserError(
            f'env.backend: python: {settings.name} is an environment from Python, which its name '
            'does not find; give it from Python, as env='
        )
    if settings.backend == 'playground':
        return _playground(settings.name)
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


def _playground(name: str) -> Env:
    try:
        from mujoco_playground import registry
    except Exception as error:  # An ImportError, or what a MuJoCo that does not suit it lacks.
        raise UserError(
            'env.backend: playground needs MuJoCo Playground '
            f"(pip install 'sail-jax[playground]'): {one_line(error)}"
        ) from None
    if name not in registry.ALL_ENVS:
        raise UserError(f'env.name: {_unknown("Playground environment", name, registry.ALL_ENVS)}')
    printed = io.StringIO()
    waiting = threading.Timer(5, _LOG.warning, ('Playground loads %s and fetches its robots', name))
    waiting.start()
    try:
        # It prints, and draws a bar of its own.
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            overrides: Any = (
                {'impl': 'jax'} if 'impl' in registry.get_default_config(name) else None
            )
            env: Any = registry.load(name, config_overrides=overrides)
            return env  # Of Brax's interface.
    except Exception as error:  # Of git, of a file that is not there, of MuJoCo.
        raise UserError(
            f'env.name: {name}: Playground raised {type(error).__name__}: {one_line(error)}'
            f'{_of_robots(name)}'
        ) from error
    finally:
        waiting.cancel()


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
