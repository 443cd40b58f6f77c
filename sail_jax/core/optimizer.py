"""How parameters follow the gradient: Adam, clipped, and kept in a ball."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sail_jax import config


def make(
    settings: config.Optimizer, learning_rate: jax.typing.ArrayLike
) -> optax.GradientTransformation:
    """Adam behind a clip of the global norm."""
    clip = optax.clip_by_global_norm(settings.max_grad_norm or jnp.inf)
    rate: Any = learning_rate  # Optax annotates less than `ArrayLike`.
    return optax.chain(clip, optax.adam(rate))


def project(params: Any, radius: float | None, bounded: str | None = None) -> Any:
    """Projects the parameters, taken as one vector, on the L2 ball around the origin.

    Args:
      radius: of the ball; None leaves the parameters free.
      bounded: the one entry that is projected; None is all of them. See `Workload.bounded`.
    """
    if radius is None:
        return params
    if bounded is not None:
        return {**params, bounded: project(params[bounded], radius)}
    return optax.projections.projection_l2_ball(params, radius)
