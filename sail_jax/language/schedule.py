"""How the step size rises and falls over a run, of alignment and of supervised learning."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sail_jax.language.config import LanguageOptimizer
from sail_jax.language.sft.config import SftOptimizer


def step_size(
    settings: LanguageOptimizer | SftOptimizer, updates: int
) -> Callable[[jax.Array], jax.Array]:
    """The share of the learning rate that update `step` (from 0) has."""

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
