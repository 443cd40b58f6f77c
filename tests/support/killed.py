"""A run in a process of its own, which dies where it is told to, for tests/training/test_killed.py.

    python -m tests.support.killed RUN_DIR [resume] [before:STEP | after:STEP]

dies by SIGKILL just before, or just after, the checkpoint of an update gets its name.
"""

import os
import signal
import sys
from pathlib import Path

import sail_jax
from sail_jax.control.config import ControlRun
from tests.support.toy import SETTINGS, Point

UPDATES = 100
RUN = ControlRun.model_validate(
    SETTINGS
    | {
        'total_env_steps': 60 * UPDATES,
        'updates_per_dispatch': 1,
        'evaluation': {'episodes': 2, 'every_updates': 1000},
        'checkpoints': {'every_updates': 4},
    }
)


def main(path: str, *more: str) -> None:
    rename = os.rename

    def die_at(source, target, **kwargs):
        name = Path(target).name
        if f'before:{name}' not in more:
            rename(source, target, **kwargs)
        if f'before:{name}' in more or f'after:{name}' in more:
            os.kill(os.getpid(), signal.SIGKILL)

    os.rename = die_at
    sail_jax.train(RUN, path, env=Point(), quiet=True, resume='resume' in more)


if __name__ == '__main__':
    main(*sys.argv[1:])
