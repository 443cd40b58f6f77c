"""How the step size rises and falls over a run."""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sail_jax.core import registry
from sail_jax.core.trial import explain
from sail_jax.errors import UserError
from sail_jax.step_size import StepSize


def step_size(settings: StepSize, updates: int) -> Callable[[jax.Array], jax.Array]:
    """The share of the learning rate that update `step` (from 0) has.

    Raises:
      UserError: Optax has no such schedule, it does not take these arguments, or it is negative or
        no number at some time of the run.
    """
    if settings.schedule is not None:
        schedule = _of_optax(settings.schedule, settings.schedule_arguments)
        steps = np.unique(np.linspace(0, updates - 1, TRIED).astype(np.int32))
        rates = np.asarray(jax.vmap(schedule)(jnp.asarray(steps)))
        if len(wrong := steps[~(np.isfinite(rates) & (rates >= 0))]):
            raise UserError(
                f'optimizer.schedule: {settings.schedule}: update {wrong[0]} has '
                f'{rates[steps == wrong[0]][0]:g} times the learning rate; expected a finite '
                'number that is not negative'
            )
        return schedule

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


TRIED = 1000
"""Updates of a run at which a schedule is looked at, spread evenly."""

MAX_ARGUMENT = 2**13
"""Characters: Optax traces a step for each boundary, and twenty thousand take minutes."""

STRUCTURED: dict[str, Callable[[Any], Any]] = {
    'boundaries_and_scales': lambda value: {int(k): float(v) for k, v in value.items()},
    'cosine_kwargs': list,
    'schedules': lambda value: [_of_optax(one.pop('schedule', None), one) for one in value],
    'boundaries': list,
}
"""Arguments that are lists and mappings, which may be JSON: how each is made."""


def _of_optax(name: Any, arguments: Mapping[str, Any]) -> Callable[[jax.Array], jax.Array]:
    """A schedule by its name in `optax.schedules`."""
    schedules = {
        key: value
        for key, value in vars(optax.schedules).items()
        if inspect.isfunction(value) and key.endswith(('_schedule', '_decay', 'join_schedules'))
    }
    if name not in schedules:
        known = registry.there_are(sorted(schedules), str(name))
        raise UserError(f'optimizer.schedule: {name!r:.80}; {known} in Optax')
    what = f'optimizer.schedule_arguments: {name}'
    for key, value in arguments.items():
        if len(str(value)) > MAX_ARGUMENT:
            raise UserError(f'{what}: {key}: over {MAX_ARGUMENT} characters; at most that')
    registry.require_switches(what, schedules[name], arguments)
    try:
        schedule = schedules[name](**{key: _read(key, x) for key, x in arguments.items()})
        first = jnp.asarray(schedule(jnp.zeros((), jnp.int32)))
    except UserError:  # Of one of several that are joined.
        raise
    except Exception as error:  # Optax checks some arguments, others fail where they are used.
        raise UserError(f'{what}: {explain(error)}') from error
    if first.shape != () or not jnp.isfinite(first):
        raise UserError(f'{what}: its first value is no finite number, {first}')
    return lambda step: jnp.asarray(schedule(step))


def _read(name: str, value: Any) -> Any:
    """An argument as Optax takes it."""
    if name not in STRUCTURED:
        return value
    return STRUCTURED[name](json.loads(value) if isinstance(value, str) else value)
