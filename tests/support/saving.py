"""A small run that saves often, with and without refreshed references."""

from pathlib import Path

import sail_jax
from sail_jax.control.config import ControlRun
from tests.support.toy import SETTINGS, Point

KL = 'eval/kl_policy_to_start'
"""0 at the start and larger from then on."""


def make_run(checkpoints=None, **settings):
    checkpoints = {'every_updates': 2, 'keep': 1, **(checkpoints or {})}
    env = {'name': 'inverted_pendulum', 'episode_length': 20}
    return ControlRun.model_validate(
        {**SETTINGS, 'env': env, 'checkpoints': checkpoints, **settings}
    )


def train(path, run, **kwargs):
    return sail_jax.train(run, path, env=Point(), quiet=True, **kwargs)


def steps(path: Path) -> list[int]:
    return sorted(int(one.name) for one in (path / 'checkpoints').iterdir() if one.name.isdigit())


REFRESHED = {
    'updates_per_dispatch': 1,
    'total_env_steps': 6 * 60,
    'reference': {'refresh_env_steps': 2 * 60},
    'evaluation': {'episodes': 4, 'every_updates': 6},
}
"""Takes the policy after 2, 4 and 6 updates as its reference."""
KEPT = {'every_updates': 1, 'keep': 2, 'keep_best': 0}


def updates(run: ControlRun, count: int) -> ControlRun:
    return run.model_copy(update={'total_env_steps': count * run.env_steps_per_update})


def reference_steps(path: Path) -> list[int]:
    return sorted(int(one.name) for one in (path / 'checkpoints' / 'references').iterdir())
