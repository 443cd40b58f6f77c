"""How the step size rises and falls over a run, of alignment and of supervised learning."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sail_jax.language import config
from sail_jax.language.sft import config as sft_config


def step_size(
    settings: config.Optimizer | sft_config.Optimizer, updates: int
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
