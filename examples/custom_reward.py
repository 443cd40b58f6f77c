"""A reward of one's own for the labeller of a control run to go by.

    python examples/custom_reward.py runs/gentle

The labeller compares segments by `gentle` instead of the environment's reward, which evaluations
still report. The function's name is in the run's config.yaml; who goes on with the run is asked for
it again.
"""

import sys
from typing import Any

import jax

import sail_jax
from sail_jax.control.judgement import Segment

CONFIG = 'configs/quickstart.yaml'


def gentle(segment: Segment) -> jax.Array:
    """The environment's reward less the effort, for each of a segment's T steps, [T]."""
    return segment.reward - 0.1 * (segment.action**2).sum(-1)


def main(run_dir: str, **overrides: Any) -> sail_jax.Result:
    """Trains a run; `overrides` are settings that win over the file's."""
    run = sail_jax.load(CONFIG, **overrides)
    result = sail_jax.train(run, run_dir, segment_reward=gentle)
    print(result)
    return result


if __name__ == '__main__':
    main(sys.argv[1])
