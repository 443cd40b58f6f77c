"""An environment of your own: a point in the plane learns to stay near the origin.

    python examples/custom_environment.py runs/point

Half a minute of processor time. Any class with Brax's interface will do.
"""

import sys

import jax
import jax.numpy as jnp
from brax.envs.base import Env, State

import sail_jax


class Point(Env):
    """The action pushes a point; the episode ends where it leaves the unit disc.

    Everything that `step` needs is in its state: the environment itself keeps nothing.
    """

    def reset(self, rng: jax.Array) -> State:
        position = jax.random.uniform(rng, (2,), minval=-0.5, maxval=0.5)
        zero = jnp.zeros(())
        return State(pipeline_state=position, obs=position, reward=zero, done=zero)

    def step(self, state: State, action: jax.Array) -> State:
        position = state.pipeline_state + 0.1 * action + 0.02  # A wind blows.
        distance = jnp.linalg.norm(position)
        return state.replace(
            pipeline_state=position,
            obs=position,
            reward=1 - distance,
            done=(distance > 1).astype(jnp.float32),
        )

    @property
    def observation_size(self) -> int:
        return 2

    @property
    def action_size(self) -> int:
        return 2

    @property
    def backend(self) -> str:
        return 'none'


SETTINGS = {
    'total_env_steps': 60_000,
    'env': {'episode_length': 100},
    'policy': {'hidden': [32, 32]},
    'value': {'terminal': 'none'},
    'rollout': {'contexts': 16, 'group_size': 4, 'segment_length': 10},
    'divergence': {'coefficient': 0.1},
    'reference': {'refresh_env_steps': 2_000},
    'optimizer': {'learning_rate': 1e-3, 'epochs': 4, 'minibatches': 4},
    'evaluation': {'every_updates': 50},
}


def main(run_dir: str) -> sail_jax.Result:
    """Trains a policy on comparisons of 10-step segments, and evaluates it again from its run."""
    run = sail_jax.load('configs/quickstart.yaml', **SETTINGS)
    result = sail_jax.train(run, run_dir, env=Point())
    print(result)
    start, trained = sail_jax.evaluate(run_dir, env=Point())
    print(f'return: {start["return"]:.1f} -> {trained["return"]:.1f}')
    return result


if __name__ == '__main__':
    main(sys.argv[1])
