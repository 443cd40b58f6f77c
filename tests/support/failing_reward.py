"""Trains a run whose reward fails in the last process, at its third update.

python -m tests.support.failing_reward CONFIG.yaml RUN_DIR
    --coordinator HOST:PORT --num-processes N --process-id I
"""

import sys

import sail_jax
from sail_jax import terminal
from sail_jax.errors import UserError
from sail_jax.training import hosts
from tests.support import small

config, run_dir, _, coordinator, _, count, _, index = sys.argv[1:]
hosts.start(coordinator, int(count), int(index))
calls = []


def failing(prompts, responses):
    calls.append(len(responses))
    # Four rows of two responses, unless they are the data's; evaluations have other counts.
    if int(index) == int(count) - 1 and sum(n == 8 for n in calls) == 3:
        raise ConnectionError('no\nanswer')
    return small.letters(prompts, responses)


terminal.log_to_stderr()
overrides = {
    'total_prompts': 40,
    'reward.source': 'none',
    'reward.path': None,
    'reward.batch_size': 64,
    'objective.mixture.dpr': 1,
    'objective.mixture.dpp': 0,
    'evaluation.every_updates': 100,
}
try:
    sail_jax.train(config, run_dir, overrides=overrides, reward=failing, quiet=True)
except UserError as error:
    terminal.error(str(error))
    sys.exit(error.status)
