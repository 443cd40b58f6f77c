"""A labeller of your own, for control and language: one function, and one line that names it.

    python examples/custom_labeller.py runs/hesitant

Fifteen seconds of processor time. In a configuration it is `labeller.kind: hesitant`.
"""

import sys

import jax
import jax.numpy as jnp
from custom_environment import SETTINGS, Point

import sail_jax
from sail_jax.config import Teacher
from sail_jax.core.labellers import Returns
from sail_jax.core.types import Preferences


def hesitant(key_B: jax.Array, returns: Returns, settings: Teacher) -> Preferences:
    """Prefers the larger return where it is larger by a tenth of the typical one, and else leaves
    the pair without a label.

    Args:
      key_B: one key a row, for what is random; nothing is here.
      returns: of segments in control, rewards of responses in language, [B, K].
      settings: the section `labeller`.
    """
    difference_BxKxK = returns.perceived_BxK[:, :, None] - returns.perceived_BxK[:, None, :]
    size_BxK = jnp.abs(returns.true_BxK)
    typical = size_BxK.mean(where=returns.counted_BxK)
    return Preferences(
        prob_BxKxK=(1 + jnp.sign(difference_BxKxK)) / 2,
        weight_BxKxK=1.0 * (jnp.abs(difference_BxKxK) > 0.1 * typical),
    )


sail_jax.LABELLERS['hesitant'] = hesitant


def main(run_dir: str, updates: int = 20) -> sail_jax.Result:
    """Trains the environment of `custom_environment.py` on what the labeller says."""
    settings = SETTINGS | {
        'total_env_steps': updates * 16 * 4 * 10,
        'evaluation': {'every_updates': updates, 'episodes': 16},
    }
    run = sail_jax.load('configs/quickstart.yaml', **settings)
    result = sail_jax.train(run, run_dir, env=Point(), overrides={'labeller.kind': 'hesitant'})
    print(result)
    return result


if __name__ == '__main__':
    main(sys.argv[1])
