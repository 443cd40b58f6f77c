"""The study over seeds: how settings are chosen, how pieces are put together, what is reported."""

import json
import math

import numpy as np
import pytest

from benchmarks import convergence, convergence_report, convergence_tuning
from benchmarks.convergence_arms import (
    ARMS,
    FIRST_TRIALS,
    LEARNING_RATE,
    OF_PPO,
    PPO,
    Axis,
)
from sail_jax.control.config import check

EVERY_ARM = {**ARMS, PPO: OF_PPO}
RIVAL = 'online DPO, refreshed'


@pytest.mark.parametrize('name', EVERY_ARM)
def test_every_arm_has_the_same_rates_and_as_many_trials(name):
    axes = EVERY_ARM[name].axes
    assert axes['learning_rate'].first == LEARNING_RATE.first == (1e-4, 3e-4, 1e-3, 3e-3)
    assert math.prod(len(axis.first) for axis in axes.values()) == FIRST_TRIALS
    for axis in axes.values():
        place = axis.ladder.index(axis.first[0])
        assert axis.ladder[place : place + len(axis.first)] == axis.first
        assert list(axis.ladder) == sorted(axis.ladder)
        assert axis.untuned in axis.first


def test_preference_arms_run_the_same_env_steps():
    runs = {
        name: convergence.configuration('reacher', arm, 250_000, convergence.FULL)
        for name, arm in ARMS.items()
    }
    for run in runs.values():
        check(run)
    assert {run.total_env_steps for run in runs.values()} == {262_144}
    refreshed = {name for name, run in runs.items() if run.reference.refresh_env_steps}
    assert refreshed == {name for name in ARMS if 'refreshed' in name}
    blind = {name for name, run in runs.items() if run.value.terminal == 'none'}
    assert blind == {name for name, arm in ARMS.items() if 'value' not in arm.told}


def test_a_falling_penalty_is_gone_by_half_of_a_run_of_any_length():
    arm = ARMS['SAIL-RevKL, ref to policy, refreshed, falling']
    for env_steps, updates in ((131_072, 16), (262_144, 32)):
        size = convergence.FULL._replace(env_steps=env_steps)
        run = convergence.configuration('reacher', arm, env_steps, size)
        assert run.divergence.coefficient == 0.1
        assert run.divergence.coefficient_updates == updates // 2
        assert run.total_env_steps == updates * run.env_steps_per_update
        assert run.objective.response_grad_updates is None


AXES = {
    'x': Axis((1.0, 2.0, 3.0, 4.0, 5.0, 6.0), (2.0, 3.0), 2.0),
    'y': Axis((1.0, 2.0, 3.0, 4.0), (2.0, 3.0), 2.0),
}


def hill(top, asked):
    """Scores that fall with the distance to a point; two seeds."""

    def score(box):
        points = convergence_tuning.points(box)
        asked.extend(points)
        heights = [-math.dist(point, top) for point in points]
        return [[height - 1, height + 1] for height in heights]

    return score


def test_a_choice_is_better_than_its_neighbours_on_every_axis():
    asked = []
    choice = convergence_tuning.choose(AXES, hill((5, 2.1), asked))
    assert choice.settings == {'x': 5, 'y': 2}
    assert choice.open == []
    assert len(asked) == len(set(asked)) == len(choice.trials)
    assert {(4, 2), (6, 2), (5, 1), (5, 3)} <= set(asked)
    best = max(choice.trials, key=lambda trial: np.mean(trial['returns']))
    assert best['settings'] == choice.settings


def test_trials_end_with_the_budget_and_what_was_not_tried_is_said():
    asked = []
    choice = convergence_tuning.choose(AXES, hill((6, 2.1), asked), limit=6)
    assert len(asked) == 6
    assert choice.settings == {'x': 4, 'y': 2}
    assert choice.open == ['x', 'y']


def test_the_end_of_a_ladder_is_no_edge_and_a_broken_run_is_never_chosen():
    def score(box):
        points = convergence_tuning.points(box)
        return [[math.nan, 9.0] if x == 6 else [x, x + y / 10] for x, y in points]

    choice = convergence_tuning.choose(AXES, score)
    assert choice.settings == {'x': 5, 'y': 4}
    assert choice.open == []


def piece(seeds, ends, **more):
    """Two evaluations; all seeds start at 10, modes at 20."""
    of = lambda start: [[start, end] for end in ends]
    curves = dict.fromkeys(convergence.COLUMNS, of(1.0))
    curves |= {'return': of(10.0), 'deterministic_return': [[20.0, 2 * end] for end in ends]}
    machine = {
        'command': 'python',
        'cpu_cores': 2,
        'platform': 'cpu',
        'versions': {'jax': '0'},
        'date': '2026-01-01',
    }
    columns = {'seeds': seeds, 'env_steps': [0, 100], 'machine': machine, 'minutes': 1.5}
    return columns | {'tuning_minutes': None} | curves | more


def entry(*pieces, **settings):
    trials = [{'settings': settings, 'returns': [1.0, 2.0]}]
    told = {'told': 'rewards', 'tuning_seeds': [1000, 1001]}
    return told | {'settings': settings, 'open': ['beta'], 'trials': trials, 'pieces': [*pieces]}


@pytest.fixture
def raw():
    """PPO goes past the end of the others, where it has 30; the rival ends at 40, SAIL at 20."""
    ppo = piece([0, 1], [50.0, 50.0], env_steps=[0, 200])
    return {
        'size': {'env_steps': 100, 'tuning_env_steps': 50, 'episodes': 8, 'evaluations': 1},
        'envs': {
            'hopper': {
                RIVAL: entry(piece([0, 1], [40.0, 40.0], labels=[0, 7]), beta=0.1),
                'SAIL': entry(piece([0], [14.0]), piece([1, 2], [20.0, 26.0]), beta=0.3),
                PPO: entry(ppo, learning_rate=1e-3),
            }
        },
    }


def test_numbers_of_an_environment(raw):
    rows = convergence_report.of_environment(raw['envs']['hopper'])
    sail, rival, ppo = rows['SAIL'], rows[RIVAL], rows[PPO]
    assert [row['seeds'] for row in (sail, rival, ppo)] == [3, 2, 2]
    assert sail['return']['value'] == 20
    assert sail['mode']['value'] == 40
    assert ppo['return']['value'] == 30
    # From 10 on: SAIL 10, PPO 20, the best arm 30.
    assert sail['normalised']['value'] == pytest.approx(0.5)
    assert sail['of_best']['value'] == pytest.approx(1 / 3)
    assert rival['normalised']['value'] == pytest.approx(1.5)
    assert rival['labels'] == 7
    assert sail['improves'][PPO]['value'] == 0
    assert rival['improves'].keys() == {PPO}
    # (20 - 40) over the pooled deviation: of 14, 20, 26 it is 6, of the rival 0.
    assert sail['cohens_d'][RIVAL] == pytest.approx(-20 / (2 * 36 / 3) ** 0.5)
    assert sail['collapsed'] == 0
    assert sail['open'] == ['beta']
    assert sail['trials'] == 1


def test_without_ppo_nothing_is_normalised_by_it(raw):
    results = raw['envs']['hopper']
    del results[PPO]
    rows = convergence_report.of_environment(results)
    assert rows['SAIL']['normalised'] is None
    assert rows['SAIL']['improves'].keys() == {RIVAL}


def test_the_report_has_environments_first_and_pools_what_all_have(raw, tmp_path):
    raw['envs']['ant'] = {key: raw['envs']['hopper'][key] for key in ('SAIL', PPO)}
    convergence_report.write(raw, tmp_path)
    text = (tmp_path / 'table.md').read_text()
    assert text.index('## hopper') < text.index('## ant') < text.index('## hopper, ant together')
    assert 'beta 0.3*' in text
    assert '| SAIL | rewards | 3 | 20 [' in text
    table = json.loads((tmp_path / 'table.json').read_text())
    by_name = {row['method']: row for row in table['methods']}
    assert by_name[RIVAL]['together'] is None
    assert by_name['SAIL']['together']['seeds'] == 6
    # The best arm of ant is PPO: 10 of 20 there, 10 of 30 on hopper.
    assert 1 / 3 <= by_name['SAIL']['together']['of_best']['value'] <= 1 / 2
    for name in ('returns', 'spread'):
        assert (tmp_path / f'{name}.png').read_bytes()[:4] == b'\x89PNG'


def entry_of(seeds, end, settings=None):
    choice = convergence_tuning.Choice(settings or {'beta': 0.1}, [], [])
    return convergence.new_entry(ARMS['SAIL'], choice, piece(seeds, [end] * len(seeds)))


def seeds_of(entry):
    return [part['seeds'] for part in entry['pieces']]


def test_pieces_are_kept_beside_each_other_and_a_seed_once():
    two = convergence.with_pieces(entry_of([0, 1], 2.0), entry_of([2, 3], 1.0))
    assert seeds_of(two) == [[0, 1], [2, 3]]
    again = convergence.with_pieces(entry_of([3, 4], 5.0), two)
    assert seeds_of(again) == [[0, 1], [3, 4]]
    assert seeds_of(convergence.with_pieces(entry_of([5], 1.0, {'beta': 1.0}), again)) == [[5]]


def test_reports_of_several_machines_become_one(tmp_path):
    size = convergence.FULL._asdict()
    reports = [
        {'size': size, 'envs': {'ant': {'SAIL': entry_of([0, 1], 1.0)}}},
        {'size': size, 'envs': {'ant': {'SAIL': entry_of([2], 2.0)}, 'reacher': {}}},
        {'size': size | {'env_steps': 5}, 'envs': {}},
    ]
    directories = [tmp_path / str(i) for i in range(3)]
    for directory, report in zip(directories, reports, strict=True):
        directory.mkdir()
        (directory / 'raw.json').write_text(json.dumps(report))
    raw = {'size': size, 'envs': {'ant': {'SAIL, refreshed': entry_of([0], 3.0)}}}
    convergence.merge(raw, directories[:2])
    assert {env: list(arms) for env, arms in raw['envs'].items()} == {
        'ant': ['SAIL, refreshed', 'SAIL'],
        'reacher': [],
    }
    assert seeds_of(raw['envs']['ant']['SAIL']) == [[0, 1], [2]]
    with pytest.raises(SystemExit, match='a report of'):
        convergence.merge(raw, directories[2:])
