"""Settings that go together, and those that do not."""

import pytest

from sail_jax import runs
from sail_jax.control import config as control_config
from sail_jax.control.config import ControlRun
from tests.support.refused import message, override

SAMPLED = {'estimator': 'sampled'}
VISITATION = {'visitation_grad': True, 'reduction': 'sum'}
CONTRADICTIONS = [
    ({'objective': {'mixture': {'dpr': 0.8, 'dpp': 0.3}}}, 'objective.mixture'),
    (
        {'objective': {'mixture': {'dpr': 0, 'ddp': 1}}, 'divergence': {'states': 'policy'}},
        'divergence.states',
    ),
    ({'divergence': {'states': 'data'}}, 'divergence.states'),
    (
        {'objective': {'mixture': {'dpr': 0.3, 'dpp': 0.7}}, 'divergence': {'states': 'data'}},
        'divergence.states',
    ),
    ({'divergence': {**SAMPLED, 'direction': 'ref_to_policy'}}, 'divergence.estimator'),
    (
        {'divergence': {**SAMPLED, 'direction': 'policy_to_ref', 'states': 'reference'}},
        'divergence.estimator',
    ),
    ({'divergence': {**VISITATION, 'reduction': 'mean'}}, 'divergence.visitation_grad'),
    ({'divergence': {**VISITATION, 'states': 'reference'}}, 'divergence.visitation_grad'),
    (
        {'divergence': {**VISITATION, **SAMPLED, 'direction': 'policy_to_ref'}},
        'divergence.visitation_grad',
    ),
    (
        {'rollout': {'segment_length': 101}, 'env': {'episode_length': 100}},
        'rollout.segment_length',
    ),
    ({'rollout': {'contexts': 32}, 'optimizer': {'minibatches': 5}}, 'optimizer.minibatches'),
    ({'evaluation': {'success': {'at_least': 2}}}, 'evaluation.success.at_least'),
    ({'rollout': {'contexts': 32, 'contexts_at_once': 5}}, 'rollout.contexts_at_once'),
    ({'optimizer': {'decay': 'linear', 'warmup_updates': 10**6}}, 'optimizer.warmup_updates'),
    ({'reference': {'source': 'run'}}, 'reference.path'),
    ({'reference': {'source': 'brax'}}, 'reference.path'),
    ({'reference': {'best': True}}, 'reference.best'),
    ({'reference': {'ppo_env_steps': 1}}, 'reference.ppo_env_steps'),
    ({'value': {'terminal': 'learned'}, 'labeller': {'discount': 0.9}}, 'labeller.discount'),
]


@pytest.mark.parametrize(('data', 'key'), CONTRADICTIONS)
def test_settings_that_do_not_go_together(data, key):
    got = message(control_config.check, ControlRun.model_validate(data))
    assert got.startswith(f'{key}:')


@pytest.mark.parametrize(
    'data',
    [
        {},
        {'objective': {'mixture': {'dpr': 0.1, 'dpp': 0.2, 'ddp': 0.7}}},
        {'divergence': {**SAMPLED, 'direction': 'policy_to_ref'}},
        {'divergence': {**SAMPLED, 'states': 'reference'}},
        {'divergence': {'states': 'data'}, 'objective': {'mixture': {'dpr': 0.5, 'ddp': 0.5}}},
        {'divergence': {'states': 'data', 'coefficient': 0}},
        {'divergence': {**VISITATION, 'direction': 'policy_to_ref'}},
        {'rollout': {'segment_length': 100}, 'env': {'episode_length': 100}},
        {'reference': {'source': 'run', 'path': 'runs/a'}},
        {'value': {'terminal': 'learned'}},
        {'labeller': {'source': 'reward'}, 'reward': {'questions': {'every_env_steps': 2**40}}},
    ],
)
def test_settings_that_do(data):
    control_config.check(ControlRun.model_validate(data))


MEMBERS = {
    'SAIL-DPR': '',
    'SAIL-DPP': '--objective.mixture.dpr 0 --objective.mixture.dpp 0.3',
    'SAIL-DDP': '--objective.mixture.dpr 0 --objective.mixture.ddp 0.3 --divergence.states data',
    'offline DPO': '--objective.mixture.dpr 0 --divergence.states data',
    'online DPO': '--objective.response_grad 0',
    'SAIL without the penalty': '--divergence.coefficient 0',
}


@pytest.mark.parametrize('path', ['configs/quickstart.yaml', 'configs/control/hopper.yaml'])
@pytest.mark.parametrize('arguments', MEMBERS.values(), ids=MEMBERS)
def test_members_of_the_family_are_a_few_options(path, arguments):
    control_config.check(override(*arguments.split(), run=runs.load(path)))


def test_offline_dpo_without_its_states_says_what_to_give():
    run = override('--objective.mixture.dpr', '0')
    assert 'give divergence.states "data"' in message(control_config.check, run)


def test_env_steps_and_periods_are_rounded_up():
    run = ControlRun.model_validate(
        {
            'total_env_steps': 1001,
            'updates_per_dispatch': 2,
            'rollout': {'contexts': 5, 'group_size': 3, 'segment_length': 10},
            'divergence': {'states': 'reference'},
            'reference': {'refresh_env_steps': 201},
        }
    )
    assert run.env_steps_per_update == 5 * (3 + 1) * 10
    assert (run.refresh_updates, run.dispatches) == (2, 3)
