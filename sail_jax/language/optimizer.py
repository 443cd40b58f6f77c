"""What language runs and supervised stages say of their optimizers."""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from sail_jax import config
from sail_jax.config import Argument, Section
from sail_jax.errors import UserError


def _as_json(value: Any) -> Any:
    """Lists and mappings among arguments as JSON: the command line has no other form."""
    if not isinstance(value, dict):
        return value
    inner = dict, list, tuple
    return {k: json.dumps(v) if isinstance(v, inner) else v for k, v in value.items()}


ScheduleArguments = Annotated[dict[str, Argument], BeforeValidator(_as_json)]


class StepSize(Section):
    """How the step size goes over a run."""

    warmup_updates: int = Field(default=0, ge=0)
    """Updates over which the step size rises to its full value."""
    decay: Literal['none', 'linear', 'cosine'] = 'none'
    """How the step size falls to 0 from there to the end of the run."""
    schedule: str | None = None
    """A schedule of Optax instead of warm-up and decay, `warmup_cosine_decay_schedule` for example:
    what it gives for an update, counted from 0, is a multiple of the learning rate."""
    schedule_arguments: ScheduleArguments = Field(default_factory=dict)
    """Its arguments, `{init_value: 0, peak_value: 1, warmup_steps: 10, decay_steps: 100}` for
    example. Lists and mappings, as of `piecewise_constant_schedule: {init_value: 1,
    boundaries_and_scales: {100: 0.1}}`, may be JSON; `join_schedules` has `schedules: [{schedule:
    linear_schedule, init_value: 0, ...}, ...]`."""


class LanguageOptimizer(StepSize, config.Optimizer):
    """An optimizer of Optax on the surrogate, its step size over the run included."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Its step size, for all parameters; adapters take about ten times as much."""
    accumulation: int = Field(default=1, ge=1, le=2**20)
    """Parts that the rows of a gradient step are computed in, one after the other: less memory, the
    same gradient but for rounding in `model.param_dtype`, and a forward pass more."""


def check(settings: LanguageOptimizer, rows: int, updates: int) -> None:
    """Refuses settings that are each fine but do not go together.

    Args:
      rows: prompts of an update.
      updates: of the run.

    Raises:
      UserError: naming the keys.
    """
    minibatches, parts = settings.minibatches, settings.accumulation
    if rows % minibatches:
        raise UserError(
            f'optimizer.minibatches: {minibatches} does not divide prompts_per_update: {rows}'
        )
    if rows // minibatches % parts:
        raise UserError(
            f'optimizer.accumulation: {parts} does not divide the {rows // minibatches} prompts of '
            'a gradient step (prompts_per_update / optimizer.minibatches)'
        )
    check_step_size(settings, updates)


def check_step_size(settings: StepSize, updates: int) -> None:
    """The same of the step size alone.

    Raises:
      UserError: naming the keys.
    """
    if settings.schedule is None and settings.schedule_arguments:
        raise UserError('optimizer.schedule_arguments: not used without optimizer.schedule')
    if settings.schedule is None:
        if settings.decay != 'none' and settings.warmup_updates >= updates:
            raise UserError(
                f'optimizer.warmup_updates: {settings.warmup_updates}; the run has {updates}'
            )
        return
    # A decay that nobody chose steps back.
    chosen = settings.decay not in ('none', type(settings).model_fields['decay'].default)
    if chosen or settings.warmup_updates:
        raise UserError(
            'optimizer.schedule: stands in for optimizer.warmup_updates and optimizer.decay; leave '
            'them out'
        )
