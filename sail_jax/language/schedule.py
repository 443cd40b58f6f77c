"""How the step size rises and falls over a run, of alignment and of supervised learning."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sail_jax.core import registry
from sail_jax.core.trial import explain
from sail_jax.errors import UserError
from sail_jax.language.optimizer import LanguageOptimizer
from sail_jax.language.supervised.config import SupervisedOptimizer


def step_size(
    settings: LanguageOptimizer | SupervisedOptimizer, updates: int
) -> Callable[[jax.Array], jax.Array]:
    """The share of the learning rate that update `step` (from 0) has.

    Raises:
      UserError: Optax has no such schedule, or it does not take these arguments.
    """
    if isinstance(settings, LanguageOptimizer) and settings.schedule is not None:
        return _of_optax(settings.schedule, settings.schedule_arguments)

    def share(step: jax.Array) -> jax.Array:
        warmup = jnp.minimum((step + 1) / max(settings.warmup_updates, 1), 1)
        done = (step - settings.warmup_updates) / max(updates - settings.warmup_updates, 1)
        done = jnp.clip(done, 0, 1)
        match settings.decay:
            case 'none':
                return warmup
            case 'linear':
                return warmup * (1 - done)
            case 'cosine':
                return warmup * (1 + jnp.cos(jnp.pi * done)) / 2

    return share


STRUCTURED = ('boundaries_and_scales', 'cosine_kwargs', 'schedules')
"""Arguments that are no scalars, which a setting cannot give."""


def _of_optax(name: str, arguments: Mapping[str, Any]) -> Callable[[jax.Array], jax.Array]:
    """A schedule by its name in `optax.schedules`."""
    schedules = {
        key: value
        for key, value in vars(optax.schedules).items()
        if inspect.isfunction(value)
        and key.endswith(('_schedule', '_decay'))
        and not set(STRUCTURED) & inspect.signature(value).parameters.keys()
    }
    if name not in schedules:
        known = registry.there_are(sorted(schedules), name)
        raise UserError(f'optimizer.schedule: {name!r:.80}; {known} in Optax')
    what = f'optimizer.schedule_arguments: {name}'
    try:
        schedule = schedules[name](**arguments)
        first = jnp.asarray(schedule(jnp.zeros((), jnp.int32)))
    except Exception as error:  # Optax checks some arguments, others fail where they are used.
        raise UserError(f'{what}: {explain(error)}') from error
    if first.shape != () or not jnp.isfinite(first):
        raise UserError(f'{what}: its first value is no finite number, {first}')
    return lambda step: jnp.asarray(schedule(step))
