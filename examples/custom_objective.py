"""An objective of your own: one function of a pair's margin, and one line that names it.

    python examples/custom_objective.py runs/exponential

Fifteen seconds of processor time. What else an objective needs - samples and labels, the gradient
of the distribution that is sampled from, the KL penalty - stays as it is.
"""

import sys

import jax
import jax.numpy as jnp
from custom_environment import SETTINGS, Point

import sail_jax


def exponential(margin: jax.Array, beta: jax.typing.ArrayLike) -> jax.Array:
    """AdaBoost's loss, with its sign turned: mistakes cost exponentially, a sure pair nothing.

    Args:
      margin: `D = beta * (log pi/pi_ref of the preferred response - the same of the other)`.
      beta: `objective.beta`, for losses that are of `D / beta`.
    """
    return -jnp.exp(-margin)


sail_jax.PAIR_LOSSES['exponential'] = exponential


def main(run_dir: str, updates: int = 20) -> sail_jax.Result:
    """Trains the environment of `custom_environment.py` on the objective, by its name."""
    settings = SETTINGS | {
        'total_env_steps': updates * 16 * 4 * 10,
        'evaluation': {'every_updates': updates, 'episodes': 16},
    }
    run = sail_jax.load('configs/quickstart.yaml', **settings)
    result = sail_jax.train(run, run_dir, env=Point(), overrides={'objective.loss': 'exponential'})
    print(result)
    return result


if __name__ == '__main__':
    main(sys.argv[1])
