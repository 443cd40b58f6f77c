"""Which key a line names where another was written."""

from pathlib import Path
from typing import Any

import pytest

from sail_jax import configfile, refusals, workloads
from sail_jax.bandit.config import Landscape
from sail_jax.errors import UserError
from sail_jax.other_names import OTHERS

MODELS = {kind.name: kind.settings for kind in workloads.KINDS if kind.choose is None}
MODELS['bandit'] = Landscape


@pytest.mark.parametrize(
    ('workload', 'key', 'right'),
    [
        # The name is right, the section is not.
        ('language', 'beta', 'objective.beta'),
        ('language', 'divergence.beta', 'objective.beta'),
        ('control', 'coefficient', 'divergence.coefficient'),
        ('control', 'contexts', 'rollout.contexts'),
        ('control', 'epochs', 'optimizer.epochs'),
        ('control', 'policy.hiden', 'policy.hidden'),
        ('control', 'learing_rate', 'optimizer.learning_rate or reward.learning_rate'),
        ('bandit', 'responses', 'problems.responses'),
        ('bandit', 'sweep.beta', 'sweep.betas'),
        # The name is another library's.
        ('control', 'num_envs', 'rollout.contexts'),
        ('control', 'env.num_envs', 'rollout.contexts'),
        ('control', 'optimizer.lr', 'optimizer.learning_rate'),
        ('control', 'kl_coef', 'divergence.coefficient'),
        ('sac', 'buffer_size', 'replay.capacity'),
        ('sac', 'batch_size', 'replay.batch or rollout.envs'),
        ('language', 'gradient_accumulation_steps', 'optimizer.accumulation'),
        ('language', 'per_device_train_batch_size', 'prompts_per_update'),
        ('language', 'max_new_tokens', 'sampling.max_tokens'),
        ('language', 'model.lora.r', 'model.lora.rank'),
        ('sft', 'num_train_epochs', 'total_prompts'),
        ('reward', 'weight_decay', 'optimizer.weight_decay or optimizer.arguments'),
    ],
)
def test_the_key_that_was_meant_is_named(workload, key, right):
    files = {name: {'path': 'x'} for name in ('model', 'data') if name in fields(workload)}
    data: dict[str, Any] = {'workload': workload, **files}
    *sections, last = key.split('.')
    inner = data
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[last] = 1
    with pytest.raises(UserError) as refused:
        configfile.validate(MODELS[workload], data, Path('f.yaml'), None)
    assert str(refused.value).endswith(f'unknown key {key}; did you mean {right}?')


def fields(workload: str) -> set[str]:
    return set(refusals.fields(MODELS[workload]))


def test_what_stands_for_other_libraries_names_is_there():
    known = set().union(*map(fields, MODELS)) | {'seeds', 'updates', 'contexts', 'group_size'}
    assert {name for names in OTHERS.values() for name in names} <= known
