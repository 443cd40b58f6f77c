"""What runs say of how their step size goes."""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

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


def check_step_size(settings: StepSize, updates: int) -> None:
    """Refuses settings of the step size that are each fine but do not go together.

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
