"""Rotary position embedding as a configuration has it; `rotary` computes it."""

import math
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from sail_jax.config import Section

Factors = tuple[Annotated[float, Field(gt=0, le=1e30)], ...]


class Rope(Section):
    """Rotary position embedding (arXiv 2104.09864) and how its frequencies are stretched."""

    theta: float = Field(default=10_000.0, gt=0, le=1e30)
    """Base of the wavelengths."""
    kind: Literal['default', 'linear', 'dynamic', 'llama3', 'yarn', 'longrope'] = 'default'
    """`linear` divides every frequency by `factor`; `llama3` (Llama 3.1) and `yarn` (arXiv
    2309.00071) only the low ones. `dynamic` and `longrope` (arXiv 2402.13753) have others for runs
    whose sequences may be longer than the original length."""
    factor: float = Field(default=1.0, gt=0, le=1e30)
    low_freq_factor: float = Field(default=1.0, gt=0, le=1e30)
    high_freq_factor: float = Field(default=4.0, gt=0, le=1e30)
    original_max_position_embeddings: int = Field(default=8192, ge=2, le=2**30)
    beta_fast: float = Field(default=32.0, gt=0, le=1e30)
    """Of `yarn`: what turns more often than this in the original length keeps its frequency."""
    beta_slow: float = Field(default=1.0, gt=0, le=1e30)
    """What turns less often has it divided by `factor`."""
    truncate: bool = True
    """Of `yarn`: the bounds between the two are whole numbers of frequencies."""
    attention_factor: float | None = Field(default=None, ge=0, le=1e30)
    """Of `yarn` and `longrope`: queries and keys are scaled by it; none follows from `factor`."""
    mscale: float | None = Field(default=None, ge=0, le=1e30)
    mscale_all_dim: float | None = Field(default=None, ge=0, le=1e30)
    short_factor: Factors = ()
    """Of `longrope`: what each frequency is divided by within the original length."""
    long_factor: Factors = ()
    """And beyond it."""
    partial_rotary_factor: float = Field(default=1.0, gt=0, le=1)
    """The share of a head's entries that are rotated, its first ones; `phi3` has less than 1."""

    @pydantic.model_validator(mode='after')
    def _ordered(self) -> 'Rope':
        if self.kind == 'llama3' and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f'high_freq_factor {self.high_freq_factor:g} is not above '
                f'low_freq_factor {self.low_freq_factor:g}'
            )
        if self.kind == 'yarn' and self.theta <= 1:
            raise ValueError(f'theta {self.theta:g}: yarn needs more than 1')
        return self

    def depends_on(self, length: int | None) -> bool:
        """Whether sequences of at most so many tokens have other frequencies than short ones."""
        long = length is not None and length > self.original_max_position_embeddings
        return long and self.kind in ('dynamic', 'longrope')

    def width(self, head_dim: int) -> int:
        """Entries of a head that are rotated."""
        return int(head_dim * self.partial_rotary_factor)

    @property
    def scale(self) -> float:
        """What sines and cosines are multiplied by."""
        if self.kind not in ('yarn', 'longrope'):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.kind == 'yarn':
            if self.mscale and self.mscale_all_dim:
                return self._magnitude(self.mscale) / self._magnitude(self.mscale_all_dim)
            return self._magnitude(1.0)
        if self.factor <= 1:
            return 1.0
        original = self.original_max_position_embeddings
        return math.sqrt(1 + math.log(self.factor) / math.log(original))

    def _magnitude(self, scale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * scale * math.log(self.factor) + 1.0
