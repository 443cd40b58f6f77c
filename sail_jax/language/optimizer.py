"""What language runs and supervised stages say of their optimizers."""

from pydantic import Field

from sail_jax import config
from sail_jax.errors import UserError
from sail_jax.step_size import StepSize, check_step_size


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
