"""Configuration of a supervised stage on chosen responses."""

from pathlib import Path
from typing import Literal

from sail_jax import hub
from sail_jax.configfile import differences
from sail_jax.errors import UserError
from sail_jax.language import config
from sail_jax.language.model.architecture import Architecture, from_hf, to_hf
from sail_jax.language.supervised import config as supervised
from sail_jax.language.supervised.config import SupervisedRun


class SupervisedModel(config.StartModel):
    """What is trained: a checkpoint, or a new network."""

    # A new network has no checkpoint.
    path: hub.ModelPath | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """A Hugging Face checkpoint directory; none makes a new network."""
    architecture: Architecture | None = None
    """Of a new network."""
    tokenizer: Path | None = None
    """A directory with the `tokenizer.json` of a new network."""


class SftRun(SupervisedRun):
    """Trains a language model on the chosen responses of a data set."""

    workload: Literal['sft']  # pyright: ignore[reportIncompatibleVariableOverride]
    """What this file configures."""
    loss_on: Literal['response', 'sequence'] = 'response'
    """Learn the responses, end of sequence included, or the prompts too."""
    model: SupervisedModel  # pyright: ignore[reportIncompatibleVariableOverride]


def check(run: SftRun) -> None:
    """Refuses settings that are each fine but do not go together.

    Raises:
      UserError: naming the keys.
    """
    model = run.model
    new = (model.architecture, model.tokenizer)
    if model.path is None and None in new:
        raise UserError(
            'model: give the path of a checkpoint, or architecture and tokenizer of a new network'
        )
    if model.path is not None and new != (None, None):
        raise UserError(
            'model.path: a checkpoint brings its architecture and tokenizer; leave them out'
        )
    if model.architecture is not None:
        in_files = from_hf(to_hf(model.architecture), 'model.architecture')
        if apart := differences(in_files, model.architecture):
            raise UserError(
                f'model.architecture: {model.architecture.family} as others read it has another '
                f'{apart[0]}'
            )
    if model.path is None and model.train == 'lora':
        raise UserError('model.train: an adapter beside a new network, which knows nothing')
    supervised.check(run)
