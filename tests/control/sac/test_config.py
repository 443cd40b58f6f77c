"""Settings of soft actor-critic that go together, and those that do not."""

import re

import pytest

from sail_jax.control.sac import config
from sail_jax.sweep import Members
from sail_jax.training.notices import Notices
from tests.support import sac
from tests.support.refused import message

CONTRADICTIONS = [
    ({'actor.log_std_min': 1.0, 'actor.log_std_max': 1.0}, 'actor.log_std_min: 1 is not below'),
    ({'rollout.update_to_data': 0.3}, 'rollout.update_to_data: 0.3 gradient steps .* are 0.6;'),
    ({'rollout.update_to_data': 0.1}, 'rollout.update_to_data: .* whole number'),
    ({'replay.capacity': 19}, 'replay.capacity: 19 is less than an update collects .*: 20'),
    ({'unsupervised.env_steps': 61}, 'replay.capacity: 100 is less than the 120 random'),
    (
        {'unsupervised': {'env_steps': 20, 'neighbours': 40}},
        'unsupervised.neighbours: 40 of the 40 random env steps',
    ),
    ({'evaluation.success.at_least': 2}, 'evaluation.success.at_least: not used by .*metric: null'),
    ({'unsupervised.neighbours': 9}, 'unsupervised.neighbours: not used by .*env_steps: 0'),
    ({'seeds': (3, 3)}, 'seeds, sweep: the same run twice'),
    ({'sweep.learning_rate': (1e-3, 1.0000001e-3)}, r'.* twice, learning_rate-0.001-seed-0 \(six'),
]


@pytest.mark.parametrize(('settings', 'said'), CONTRADICTIONS)
def test_settings_that_do_not_go_together(settings, said):
    assert re.match(said, message(config.check, sac.run(**settings)))


def test_periods_are_rounded_up_to_whole_updates():
    run = sac.run(
        **{
            'total_env_steps': 161,
            'rollout.random_env_steps': 41,
            'unsupervised.env_steps': 19,
            'reference.refresh_env_steps': 61,
        }
    )
    assert run.env_steps_per_update == 20
    assert (run.random_updates, run.reward_updates, run.refresh_updates) == (3, 4, 4)
    assert (run.dispatches, run.gradient_steps, run.replay_rows) == (5, 1, 50)


def test_members_of_a_sweep():
    run = sac.run(seeds=2, sweep={'coefficient': (0.0, 1e-4)})
    config.check(run)
    names = [member.name for member in Members.of(run).each]
    assert names == [
        'coefficient-0-seed-0',
        'coefficient-0-seed-1',
        'coefficient-0.0001-seed-0',
        'coefficient-0.0001-seed-1',
    ]
    assert [m.run.divergence.coefficient for m in Members.of(run).each] == [0, 0, 1e-4, 1e-4]


def test_a_reference_of_every_update_is_nothing_to_be_told():
    said = []
    notices = Notices(sac.run(**{'reference.refresh_env_steps': 20}), [''], said.append)
    notices.updates([[{'step': i, 'labels': 0, 'train/grad_norm': 1.0} for i in range(20)]])
    notices.end()
    assert not said
