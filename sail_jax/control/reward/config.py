"""Settings of a learned reward, and of the questions that it is learned from."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sail_jax.config import Section

Width = Annotated[int, Field(ge=1, le=2**16)]


class Questions(Section):
    """Which pairs of segments the teacher is asked about."""

    choice: Literal['disagreement', 'entropy', 'uniform'] = 'disagreement'
    """Of a round's candidates: those where the members disagree most (the standard deviation of
    their probabilities), those where they are least sure (the mean entropy), or any. As long as no
    member knows anything, any."""
    candidates: int = Field(default=100, ge=1, le=2**20)
    """Pairs of a round that are looked at: two segments from one state each; of soft actor-critic,
    two of the replay."""
    per_round: int = Field(default=10, ge=1, le=2**16)
    """Questions of a round."""
    budget: int = Field(default=250, ge=0, le=2**20)
    """Questions of the whole run, those that the teacher skips included. Once it is spent, training
    goes on with the reward as it is; 0 leaves what `reward.path` and `reward.answers` give."""
    every_env_steps: int = Field(default=2000, ge=1, le=2**40)
    """Env steps between rounds, rounded up to whole updates; the first comes with the first
    update, of soft actor-critic after the random and the unsupervised steps."""


class RewardEnsemble(Section):
    """Networks from an observation and an action to a reward between -1 and 1, fitted on answers by
    Bradley-Terry; the reward is their mean."""

    members: int = Field(default=3, ge=1, le=64)
    """Networks; they differ by their start and by the order of their minibatches."""
    hidden: tuple[Width, ...] = Field(default=(256, 256, 256), min_length=1, max_length=64)
    """Sizes of the hidden layers."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Adam's."""
    minibatch: int = Field(default=128, ge=1, le=2**20)
    """Pairs of a gradient step."""
    passes: int = Field(default=50, ge=1, le=2**20)
    """Over all answers so far, at the most, in each round."""
    stop_accuracy: float = Field(default=0.97, gt=0, le=1)
    """A round's fit ends after a pass in which the members had more than this share of the answers
    right."""
    path: Path | None = None
    """A file of `sail-jax reward export`: what the ensemble starts as; none is a new one."""
    answers: Path | None = None
    """Answered pairs, a file of `sail-jax labels export`: before anything is learned from the
    ensemble it is fitted on them, and later on them and the answers of the run."""
    questions: Questions = Questions()
