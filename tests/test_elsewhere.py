"""Settings that are called by what other libraries call them."""

import pytest

from sail_jax import configfile, elsewhere, refusals, workloads
from sail_jax.errors import UserError

KINDS = {kind.name: kind for kind in workloads.kinds()}


def test_what_they_are_called_here_is_a_setting_and_their_name_is_none():
    ours = {name for kind in KINDS.values() for name in refusals.fields(kind.settings)}
    assert {name for names in elsewhere.SETTINGS.values() for name in names} <= ours
    theirs = {'batch_size'}  # A setting here too, of a reward model.
    assert {name.rpartition('.')[2] for name in ours} & elsewhere.SETTINGS.keys() == theirs


@pytest.mark.parametrize(
    ('workload', 'theirs', 'ours'),
    [
        ('control', 'num_envs', 'rollout.contexts'),
        ('sac', 'num_envs', 'rollout.envs'),
        ('control', 'num_timesteps', 'total_env_steps'),
        ('control', 'rollout.unroll_length', 'rollout.segment_length'),
        ('sac', 'gamma', 'critic.discount'),
        ('language', 'num_generations', 'group_size'),
        ('language', 'kl_coef', 'divergence.coefficient'),
        ('bandit', 'kl_coef', 'coefficient'),
        ('language', 'optimizer.gradient_accumulation_steps', 'optimizer.accumulation'),
        ('language', 'batch_size', 'prompts_per_update'),
        ('language', 'reward.batch_sise', 'reward.batch_size'),
    ],
)
def test_the_line_names_the_setting_of_this_workload(workload, theirs, ours, tmp_path):
    data = {'workload': workload}
    if workload == 'language':
        data |= {'model': {'path': 'm'}, 'data': {'path': 'd'}}
    section = data
    *sections, leaf = theirs.split('.')
    for name in sections:
        section = section.setdefault(name, {})
    section[leaf] = 1
    with pytest.raises(UserError) as error:
        configfile.validate(KINDS[workload].settings, data, tmp_path / 'x.yaml', None)
    assert f'unknown key {theirs}; did you mean {ours}?' in str(error.value)
