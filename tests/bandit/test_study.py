"""Both studies from end to end, tiny, through the command line."""

import json

import jax
import numpy as np
import pytest
import yaml

from sail_jax import cli, configfile, runs

PROBLEMS = {'count': 2, 'contexts': 2, 'responses': 3, 'features': 2}
LANDSCAPE = {
    'workload': 'bandit',
    'study': 'landscape',
    'problems': PROBLEMS,
    'starts': 6,
    'iterations': 150,
    'points': 64,
    'sweep': {'betas': [0.1, 1.0], 'coefficients': [0.05, 0.5], 'starts': 4},
}
SAMPLES = {
    'workload': 'bandit',
    'study': 'sample_complexity',
    'problems': PROBLEMS,
    'seeds': 3,
    'updates': 64,
    'contexts': 4,
}


def write(tmp_path, settings):
    path = tmp_path / 'study.yaml'
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def read(run_dir):
    rows = [json.loads(line) for line in (run_dir / 'metrics.jsonl').read_text().splitlines()]
    return json.loads((run_dir / 'table.json').read_text()), rows


def assert_figures(run_dir, *names):
    for name in names:
        assert (run_dir / f'{name}.png').read_bytes()[:4] == b'\x89PNG'
        assert (run_dir / f'{name}.pdf').read_bytes()[:4] == b'%PDF'


def test_landscape(tmp_path, capsys):
    run_dir = tmp_path / 'run'
    config = write(tmp_path, LANDSCAPE)
    assert cli.main(['train', config, '--run-dir', str(run_dir), '--coefficient', '0.5']) == 0
    assert 'PL ratio' in capsys.readouterr().out
    assert not jax.config.jax_enable_x64
    assert_figures(run_dir, 'convergence', 'pl_ratio', 'curvature', 'slice', 'sweep')
    table, rows = read(run_dir)
    assert [(row['problem'], row['objective']) for row in table['rows']] == [
        (problem, name)
        for problem in range(2)
        for name in ('sail', 'ref_to_policy', 'policy_to_ref')
    ]
    for row in table['rows']:
        if row['strong_concavity_margin'] > 0:
            assert row['spread'] < 1e-12
            assert row['maxima'] == 1
            assert row['pl_ball'] >= row['strong_concavity_margin']
            assert row['pl_paths'] >= row['strong_concavity_margin']
    assert any(row['strong_concavity_margin'] > 0 for row in table['rows'])
    assert len(table['sweep']['grid']) == 8
    for threshold in table['sweep']['thresholds']:
        assert np.all(
            np.array(threshold['sharp_coefficient']) <= threshold['certified_coefficient']
        )
    assert len(rows) == 151
    assert yaml.safe_load((run_dir / 'config.yaml').read_text())['coefficient'] == 0.5
    assert '| --- |' in (run_dir / 'table.md').read_text()

    # A study leaves no policy, and once it is finished has nothing to resume.
    again = ['train', config, '--run-dir', str(run_dir)]
    for arguments in (['evaluate', str(run_dir)], [*again, '--resume'], again):
        assert cli.main(arguments) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_sample_complexity_of_a_users_problem(tmp_path):
    run_dir, rng = tmp_path / 'run', np.random.default_rng(0)
    problem = {'features': rng.normal(size=(2, 3, 2)), 'reward': rng.normal(size=(2, 3))}
    np.savez(tmp_path / 'mine.npz', **problem)
    config = write(tmp_path, SAMPLES | {'problems': {'path': str(tmp_path / 'mine.npz')}})
    # One that was stopped has its configuration and nothing else, and is run again.
    run_dir.mkdir()
    configfile.write(runs.load(config), run_dir / 'config.yaml')
    assert cli.main(['train', config, '--run-dir', str(run_dir), '--resume']) == 0
    assert_figures(run_dir, 'sample_complexity')
    table, rows = read(run_dir)
    assert {row['problem'] for row in table['rows']} == {0, 'all'}
    for row in table['rows']:
        assert row['slope_low'] <= row['slope'] <= row['slope_high']
    assert rows[-1]['labels'] == 64 * 4
    gaps = [row['ref_to_policy/gap_mean'] for row in rows]
    assert 0 < gaps[-1] < gaps[0]


def test_a_bad_problem_leaves_nothing_behind(tmp_path, capsys):
    (tmp_path / 'mine.npz').write_bytes(b'nothing')
    config = write(tmp_path, SAMPLES | {'problems': {'path': str(tmp_path / 'mine.npz')}})
    assert cli.main(['train', config, '--run-dir', str(tmp_path / 'other')]) == 2
    assert 'mine.npz: not an .npz' in capsys.readouterr().err
    assert not (tmp_path / 'other').exists()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'study': 'landscap'}, "study: 'landscap'; known: landscape, sample_complexity"),
        ({'study': None}, 'known: landscape, sample_complexity'),
        ({'radius': -1}, 'radius'),
        ({'starts': 1}, 'starts'),
        ({'points': 100}, 'points'),
        ({'sweep': {'betas': [1.0, 0.1]}}, 'sweep.betas'),
        ({'objective': {'beta': 0.1}}, 'unknown key objective'),
    ],
)
def test_bad_settings_get_one_line(tmp_path, capsys, change, message):
    assert cli.main(['train', write(tmp_path, LANDSCAPE | change)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert '\n' not in error
