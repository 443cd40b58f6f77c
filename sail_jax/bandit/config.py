"""Configuration of the two studies of the exact problem."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat

from sail_jax.config import Section, Settings
from sail_jax.errors import UserError


class Problems(Section):
    """Log-linear problems: random ones, or one of the user's."""

    path: Path | None = None
    """An .npz with `features` [X, Y, D], `reward` [X, Y] and, if not uniform, `reference` [X, Y]
    (probabilities) for X contexts, Y responses and D features; none draws random problems."""
    count: int = Field(default=8, ge=1, le=2**10)
    """Random problems; every number is reported over all of them, the first one is drawn."""
    contexts: int = Field(default=4, ge=1, le=2**8)
    """Contexts, X, equally likely."""
    responses: int = Field(default=8, ge=2, le=2**8)
    """Responses to each context, Y."""
    features: int = Field(default=4, ge=2, le=2**8)
    """Features, D, standard normals divided by `sqrt(D)`: feature vectors of length about 1."""
    reward_scale: float = Field(default=1.0, ge=0)
    """Standard deviation of the labeller's reward, a normal."""
    reference_scale: float = Field(default=1.0, ge=0)
    """Standard deviation of the reference's logits, normals; 0 is uniform."""


class StudySettings(Settings):
    """What both studies have: the problems and the objectives on them."""

    workload: Literal['bandit'] = 'bandit'
    """What this file configures."""
    problems: Problems = Problems()
    beta: PositiveFloat = 0.1
    """Scale of the implicit reward `beta * log(pi / pi_ref)`."""
    coefficient: PositiveFloat = 0.2
    """Lambda of the penalised objectives; the study compares them with SAIL, where it is 0."""
    radius: PositiveFloat = 5.0
    """Of the L2 ball that the parameters are held in."""


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError('should ascend')
    return values


Ascending = Annotated[tuple[PositiveFloat, ...], Field(min_length=2), AfterValidator(_ascending)]


class Grid(Section):
    """Grid of objectives on the first problem, to see where the guarantee ends."""

    betas: Ascending = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    """Ascending."""
    coefficients: Ascending = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
    """Lambdas, ascending."""
    starts: int = Field(default=12, ge=2, le=2**12)
    """Starts of the search for maxima at each point of the grid."""


class Landscape(StudySettings):
    """The exact landscape of SAIL and SAIL-RevKL: curvature, PL ratio, maxima, ascent."""

    study: Literal['landscape'] = 'landscape'
    """Which study."""
    starts: int = Field(default=32, ge=2, le=2**12)
    """Starts of the ascent, uniform in the ball."""
    iterations: int = Field(default=400, ge=10, le=2**20)
    """Steps of projected gradient ascent."""
    points: int = Field(default=1024, ge=64, le=2**20, multiple_of=64)
    """Points of the ball at which curvature and PL ratio are taken, half of them on its surface."""
    sweep: Grid = Grid()


class SampleComplexity(StudySettings):
    """Suboptimality against labels for stochastic ascent with the estimator of training."""

    study: Literal['sample_complexity'] = 'sample_complexity'
    """Which study."""
    seeds: int = Field(default=16, ge=3, le=2**12)
    """Runs for each problem and objective, each with its own start and samples."""
    updates: int = Field(default=4096, ge=64, le=2**20)
    """Stochastic gradient steps."""
    contexts: int = Field(default=32, ge=2, le=2**12)
    """Contexts drawn for each update, B."""
    group_size: int = Field(default=2, ge=2, le=256)
    """Responses to each, K; the labeller compares all K(K-1)/2 pairs."""


def model(data: dict[str, Any], path: Path) -> type[StudySettings]:
    """The configuration class of a file's mapping.

    Raises:
      UserError: `study` is missing or unknown.
    """
    studies = {'landscape': Landscape, 'sample_complexity': SampleComplexity}
    name = data.get('study')
    if not isinstance(name, str) or name not in studies:
        raise UserError(f'{path}: study: {name!r:.80}; known: {", ".join(studies)}')
    return studies[name]
