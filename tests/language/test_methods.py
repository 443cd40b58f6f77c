"""Other objectives than SAIL's, from a language run's configuration on."""

import pytest

import sail_jax
from sail_jax.control.config import ControlRun
from sail_jax.control.config import check as check_control
from sail_jax.errors import UserError
from sail_jax.language.config import check
from sail_jax.training import metrics
from tests.support import small


@pytest.mark.parametrize(
    ('objective', 'message'),
    [
        ({'exploration': 'xpo'}, 'objective.alpha: needed for objective.exploration: xpo'),
        ({'alpha': 1e-4}, 'objective.alpha: not used by objective.exploration: none'),
        ({'loss': 'rebel', 'mixture': {'dpr': 0.5}}, 'rebel: every response needs a reward'),
        ({'loss': 'rebel', 'target_margin': 0.5}, 'objective.target_margin: not used by .* rebel'),
        ({'loss': 'rebel', 'label_smoothing': 0.1}, 'objective.label_smoothing: .* rebel goes by'),
    ],
)
def test_settings_that_do_not_go_together_are_refused(objective, message):
    with pytest.raises(UserError, match=message):
        check(small.run('model', 'data.jsonl', objective=objective))


def test_the_reference_opposes_where_all_responses_are_sampled():
    run = {'sampling': {'opponent': 'reference'}, 'objective': {'mixture': {'dpr': 0.5}}}
    with pytest.raises(UserError, match=r'^sampling.opponent: reference: of responses that are'):
        check(small.run('m', 'd', **run))
    check(small.run('m', 'd', **run | {'objective': {'mixture': {'dpr': 0.5, 'dpp': 0.5}}}))


@pytest.mark.parametrize(('name', 'value'), [('rationality', 1.0), ('soft', True), ('equal', 0.1)])
def test_regression_takes_no_labels(name, value):
    run = small.run('m', 'd', objective={'loss': 'rebel'}, labeller={name: value})
    with pytest.raises(UserError, match=f'^labeller.{name}: of labels, and .* rebel'):
        check(run)


def test_regression_takes_no_labels_in_control_either():
    rebel = {'objective': {'loss': 'rebel'}}
    check_control(ControlRun.model_validate(rebel))
    for labeller in ({'rationality': 1.0}, {'soft': True}):
        run = ControlRun.model_validate(rebel | {'labeller': labeller})
        with pytest.raises(UserError, match=r'^labeller\..*: of labels, and .* rebel'):
            check_control(run)
    # The answers that a reward is learned from are labels.
    learned = {'labeller': {'source': 'reward', 'rationality': 1.0}}
    check_control(ControlRun.model_validate(rebel | learned))


def test_exploration_draws_a_response_of_the_reference():
    explores = {'exploration': 'selm', 'alpha': 1e-3}
    assert small.run('m', 'd', objective=explores).draws_reference
    assert not small.run('m', 'd').draws_reference
    opposed = small.run('m', 'd', objective=explores, sampling={'opponent': 'reference'})
    assert not opposed.draws_reference  # It has one in each group.
    runs = [ControlRun.model_validate({'objective': x}) for x in ({}, explores)]
    assert [run.extra_lanes for run in runs] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    'settings',
    [
        {'objective': {'loss': 'rebel', 'beta': 1.0}, 'reference': {'refresh_prompts': 8}},
        {'objective': {'exploration': 'xpo', 'alpha': 1e-4}, 'divergence': {'coefficient': 0}},
        {'objective': {'loss': 'hinge', 'exploration': 'selm', 'alpha': 1e-3}},
        {
            'objective': {'response_grad': 0.0, 'exploration': 'xpo', 'alpha': 1e-4},
            'divergence': {'coefficient': 0},
            'sampling': {'opponent': 'reference'},
        },
    ],
    ids=['rebel', 'xpo', 'selm', 'xpo with its own pairs'],
)
def test_a_reward_is_learned(tmp_path, settings):
    run = small.run(
        small.checkpoint(tmp_path / 'm'),
        small.data(tmp_path / 'prompts.jsonl', rows=32),
        total_prompts=8 * 50,
        prompts_per_update=8,
        group_size=4,
        optimizer={'learning_rate': 1e-2},
        evaluation={'every_updates': 100, 'prompts': 8, 'samples': 8},
        checkpoints={'every_updates': 100},
        **settings,
    )
    result = sail_jax.train(run, tmp_path / 'run', reward=small.letters, quiet=True)
    assert result.after['eval/reward_gain'] > 3 * result.after['eval/reward_gain_se'] > 0
    rows = metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')[1:]
    explored = [row.get('train/exploration') for row in rows]
    if run.objective.exploration == 'none':
        assert set(explored) == {None}
        assert rows[0]['train/preference'] < 0
        return
    row = rows[-1]
    j = row['train/preference'] - run.divergence.coefficient * row['train/kl']
    assert row['train/objective'] == pytest.approx(j + row['train/exploration'], rel=1e-5)


@pytest.mark.slow
def test_a_missing_end_costs_its_penalty_in_training_alone(tmp_path):
    small.checkpoint(tmp_path / 'm')
    small.data(tmp_path / 'prompts.jsonl')
    rows, befores = [], []
    for penalty in (None, 2.5):
        run = small.run(
            tmp_path / 'm',
            tmp_path / 'prompts.jsonl',
            total_prompts=4,
            group_size=4,
            sampling={'max_tokens': 40},
            reward={'missing_eos_penalty': penalty},
        )
        path = tmp_path / f'run-{penalty}'
        result = sail_jax.train(run, path, reward=small.letters, quiet=True)
        rows.append(metrics.read_rows(path / 'metrics.jsonl')[1])
        befores.append(result.before)
    assert befores[0] == befores[1]
    ended = rows[0]['train/ended']
    assert 0 < ended < 1
    expected = rows[0]['train/reward'] - 2.5 * (1 - ended)
    assert rows[1]['train/reward'] == pytest.approx(expected, abs=1e-5)
