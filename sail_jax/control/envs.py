"""Environments by name."""

import difflib

import sail_jax.control.compat  # noqa: F401

from brax import envs
from brax.envs.base import Env

from sail_jax.control.config import Environment
from sail_jax.errors import UserError

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


def make(settings: Environment) -> Env:
    """The environment, bare: without episode limit, batching or automatic reset.

    Raises:
      UserError: unknown name or backend, or a pair that Brax does not have.
    """
    if settings.backend == 'playground':
        return _playground(settings.name)
    if settings.name not in NAMES:
        raise UserError(f'env.name: {_unknown("environment", settings.name, NAMES)}')
    if settings.backend not in BACKENDS:
        known = (*BACKENDS, 'playground')
        raise UserError(f'env.backend: {_unknown("backend", settings.backend, known)}')
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
    except ImportError as error:
        raise UserError(
            'env.backend: playground needs MuJoCo Playground '
            f"(pip install 'sail-jax[playground]'): {error}"
        ) from None
    if name not in registry.ALL_ENVS:
        raise UserError(f'env.name: {_unknown("Playground environment", name, registry.ALL_ENVS)}')
    return registry.load(name, config_overrides={'impl': 'jax'})


def _unknown(what: str, name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    hint = f'did you mean {close[0]}?' if close else f'known: {", ".join(known)}'
    return f'unknown {what} {name!r}; {hint}'
