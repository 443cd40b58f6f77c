"""Configuration of a reward model's training."""

from typing import Literal

from pydantic import Field

from sail_jax.config import Section
from sail_jax.errors import UserError
from sail_jax.language.config import StartModel
from sail_jax.language.supervised import config as supervised
from sail_jax.language.supervised.config import SupervisedRun


class RewardStart(StartModel):
    """What is trained: a language model, with a new score of its last token's hidden state; or a
    sequence classifier with as many labels as `heads`, which goes on."""

    train: Literal['full', 'lora', 'head'] = 'full'  # pyright: ignore[reportIncompatibleVariableOverride]
    """All parameters; an adapter and the score; or the score alone."""
    heads: int = Field(default=1, ge=1, le=64)
    """Scores on one model, an ensemble: each learns from a half of the pairs of its own (the
    double-or-nothing bootstrap of Owen and Eckles, 2012), and is a label of what is exported."""


class BradleyTerry(Section):
    """The loss of a pair, by the difference D of the rewards of chosen and rejected:
    -log sigmoid(D - m), where m is the number that the row's column `margin` has, else 0."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """The share s of pairs whose labels are taken to be wrong:
    -(1 - s) log sigmoid(D - m) - s log sigmoid(m - D)."""
    centering: float = Field(default=0.0, ge=0)
    """Times the square of the rewards' sum, added (arXiv 2312.09244; TRL's
    `center_rewards_coefficient`, where 0.01 is usual): the loss leaves the rewards' mean free, and
    members of an ensemble should have the same."""


class RewardRun(SupervisedRun):
    """Trains a reward model on compared responses."""

    workload: Literal['reward']  # pyright: ignore[reportIncompatibleVariableOverride]
    """What this file configures."""
    model: RewardStart  # pyright: ignore[reportIncompatibleVariableOverride]
    loss: BradleyTerry = BradleyTerry()


def check(run: RewardRun) -> None:
    """Refuses settings that are each fine but do not go together.

    Raises:
      UserError: naming the keys.
    """
    supervised.check(run)


def check_lengths(run: RewardRun, max_positions: int) -> None:
    """Refuses lengths that the model has no positions for.

    Raises:
      UserError: naming the keys.
    """
    if run.longest > max_positions:
        raise UserError(
            f'data.max_prompt_tokens: {run.data.max_prompt_tokens}, and data.max_response_tokens: '
            f'{run.data.max_response_tokens}: {run.model.path} has {max_positions} positions'
        )
