"""What configurations of supervised stages have in common."""

from typing import Literal

from pydantic import Field

from sail_jax.config import Devices, OptaxRule, Section, Trained
from sail_jax.errors import UserError
from sail_jax.language.config import Data, StartModel, check_adapter
from sail_jax.step_size import StepSize, check_step_size

MODEL = 'model'
"""Of the run directory: the trained model as a Hugging Face directory."""


class SupervisedOptimizer(StepSize, OptaxRule):
    """An optimizer of Optax on the mean loss of a batch, its step size over the run included."""

    rule: str = 'adamw'
    """What it is called in `optax` or `optax.contrib`: `adamw`, `rmsprop`, `lion`, `muon`, ..."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Its step size, for all parameters; adapters take about ten times as much."""
    decay: Literal['none', 'linear', 'cosine'] = 'cosine'
    """How the step size falls to 0 from there to the end of the run."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of matrices; norms and biases do not decay."""
    accumulation: int = Field(default=1, ge=1)
    """Parts that a batch is computed in, one after the other: less memory, the same gradient but
    for rounding in `model.param_dtype`."""
    max_skipped: int = Field(default=10, ge=1)
    """The run stops after this many updates in a row were skipped as not finite."""


class LossEvaluation(Section):
    """The loss on held-out rows."""

    every_updates: int = Field(default=100, ge=1)
    """Updates between evaluations; there is one before the first and after the last."""
    prompts: int = Field(default=256, ge=1, le=2**20)
    """How many rows are held out."""
    path: str | None = None
    """Where they come from, as `data.path`; none is `data.path`."""
    split: str | None = None
    """Of a directory. With neither path nor split, rows spread evenly over the data are held out
    of training."""
    patience: int | None = Field(default=None, ge=1)
    """The run ends after so many evaluations in a row that were no better than the best before
    them, by `checkpoints.metric`, and leaves the best one's model; none goes on to the end."""


class SupervisedRun(Trained):
    """What every supervised stage has."""

    workload: str
    """What this file configures."""
    total_prompts: int = Field(default=60_000, ge=1)
    """Length of the run, rounded up to whole updates; the data are gone through in a new order as
    often as it takes, within an update too."""
    prompts_per_update: int = Field(default=32, ge=1, le=2**20)
    """Prompts, with their responses, of an update."""
    model: StartModel
    devices: Devices = Devices()
    data: Data
    optimizer: SupervisedOptimizer = SupervisedOptimizer()
    evaluation: LossEvaluation = LossEvaluation()

    @property
    def updates(self) -> int:
        """Updates of the whole run."""
        return -(-self.total_prompts // self.prompts_per_update)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with the longest response."""
        return self.data.max_prompt_tokens + self.data.max_response_tokens

    @property
    def default_matmul_precision(self) -> Literal['default', 'highest']:
        """Where activations are bfloat16 there are hardly any float32 factors."""
        return 'highest' if self.model.dtype == 'float32' else 'default'


def check(run: SupervisedRun) -> None:
    """Refuses settings that are each fine but do not go together.

    Raises:
      UserError: naming the keys.
    """
    optimizer = run.optimizer
    check_adapter(run.model)
    if run.prompts_per_update % optimizer.accumulation:
        raise UserError(
            f'optimizer.accumulation: {optimizer.accumulation} does not divide '
            f'prompts_per_update: {run.prompts_per_update}'
        )
    check_step_size(optimizer, run.updates)
    if run.evaluation.patience is not None and run.checkpoints.keep_best == 0:
        raise UserError(
            'evaluation.patience: leaves the best model, and checkpoints.keep_best: 0 keeps none'
        )
