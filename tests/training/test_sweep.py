"""Members of a sweep are the runs that they would be alone."""

import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import yaml

import sail_jax
from sail_jax import configfile, runs, sweep
from sail_jax.control.config import ControlRun, recorded
from sail_jax.errors import UserError
from sail_jax.sweep import Members
from sail_jax.training import metrics
from tests.support.checkpoints import same
from tests.support.toy import Point, make_run, train

SWEEP = {'seeds': (3, 5), 'sweep': {'beta': (0.1, 0.5), 'coefficient': (0.0, 0.3)}}


@pytest.fixture(scope='module')
def swept(tmp_path_factory):
    path = tmp_path_factory.mktemp('sweep') / 'run'
    return train(path, make_run(**SWEEP)), path


def test_members_are_all_combinations():
    found = Members.of(make_run(**SWEEP)).each
    assert [m.name for m in found][:3] == [
        'beta-0.1-coefficient-0-seed-3',
        'beta-0.1-coefficient-0-seed-5',
        'beta-0.1-coefficient-0.3-seed-3',
    ]
    assert len(found) == 8
    last = found[-1].run
    assert (last.seed, last.objective.beta, last.divergence.coefficient) == (5, 0.5, 0.3)
    assert not Members.of(last).sweep
    assert [m.run.seed for m in Members.of(make_run(seed=4, seeds=3)).each] == [4, 5, 6]


@pytest.mark.parametrize('index', [1, 7])
def test_a_member_equals_the_run_alone(swept, tmp_path, index):
    results, path = swept
    member = Members.of(make_run(**SWEEP)).each[index]
    alone = train(tmp_path / 'alone', member.run)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)
    jax.tree.map(close, results[index].policy.params, alone.policy.params)
    assert results[index].labels == alone.labels
    for key, value in alone.after.items():
        close(results[index].after[key], value)
    ours, theirs = (
        metrics.read_rows(where / 'metrics.jsonl')
        for where in (path / member.name, tmp_path / 'alone')
    )
    assert [row['step'] for row in ours] == [row['step'] for row in theirs]
    assert [row['labels'] for row in ours] == [row['labels'] for row in theirs]
    for ours_row, theirs_row in zip(ours, theirs, strict=True):
        for key in ('train/preference', 'train/kl', 'train/segment_return'):
            if key in theirs_row:
                close(ours_row[key], theirs_row[key])


def test_members_differ(swept):
    returns = {result.after['eval/kl_policy_to_start'] for result in swept[0]}
    assert len(returns) == 8


def test_a_swept_penalty_is_there_whatever_the_configuration_says_beside_it(tmp_path):
    run = make_run(divergence={'coefficient': 0.0}, sweep={'coefficient': (0.0, 0.3)})
    without, penalised = train(tmp_path / 'run', run)
    alone = train(tmp_path / 'alone', make_run(divergence={'coefficient': 0.3}))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)
    jax.tree.map(close, penalised.policy.params, alone.policy.params)
    key = 'eval/kl_policy_to_start'
    assert without.after[key] > penalised.after[key]


def test_a_member_is_a_run(swept):
    results, path = swept
    member = Members.of(make_run(**SWEEP)).each[2]
    run, policy, start = runs.open_run(path / member.name, env=Point())
    assert run == recorded(member.run, Point(), None)
    same(policy, results[2].policy)
    same(start, results[2].start)
    _, after = runs.evaluate(path / member.name, env=Point())
    ours = {f'eval/{name}': value for name, value in after.items()}
    assert ours == pytest.approx(results[2].after, rel=1e-4, abs=1e-4)
    with pytest.raises(UserError, match=r'a sweep; name one of its runs, e\.g\. .*seed-3'):
        runs.open_run(path, env=Point())


def test_a_sweep_resumes_bit_for_bit(swept, tmp_path):
    steps = make_run().env_steps_per_update
    train(tmp_path / 'run', make_run(**SWEEP, total_env_steps=2 * steps))
    results = train(tmp_path / 'run', make_run(**SWEEP), resume=True)
    for ours, theirs in zip(results, swept[0], strict=True):
        same(ours.policy, theirs.policy)
        assert ours.after == theirs.after
        assert ours.before == theirs.before
    name = Members.of(make_run(**SWEEP)).each[0].name
    rows = metrics.read_rows(tmp_path / 'run' / name / 'metrics.jsonl')
    assert [row['step'] for row in rows] == [0, 1, 2, 3, 4]


def test_a_member_that_went_on_alone_is_not_overwritten(tmp_path):
    path, steps = tmp_path / 'run', make_run().env_steps_per_update
    train(path, make_run(seeds=2, total_env_steps=2 * steps))
    member = path / 'seed-1'
    alone = {'total_env_steps': 4 * steps}
    train(member, sail_jax.load(member / 'config.yaml', **alone), resume=True)
    left = {file: file.read_bytes() for file in sorted(path.rglob('*')) if file.is_file()}
    whole = sail_jax.load(path / 'config.yaml')
    with pytest.raises(UserError, match=r'seed-1: went on alone to update 4, .* at update 2'):
        train(path, whole, resume=True)
    assert left == {file: file.read_bytes() for file in sorted(path.rglob('*')) if file.is_file()}

    # As the line says: where its checkpoints are gone, the sweep makes it what it was.
    shutil.rmtree(member / 'checkpoints')
    results = train(path, whole, resume=True)
    _, policy, _ = runs.open_run(member, env=Point())
    same(policy, results[1].policy)
    assert [row['step'] for row in metrics.read_rows(member / 'metrics.jsonl')] == [0, 1, 2]


@pytest.mark.parametrize('seeds', [0, []])
def test_no_seed_is_refused(seeds):
    with pytest.raises(UserError, match='seeds'):
        configfile.update(make_run(), {'seeds': seeds})


def test_what_cannot_be_swept_together():
    for settings, message in (
        ({'seeds': (1, 1)}, 'the same run twice'),
        (
            {'sweep': {'coefficient': (0.0, 1.0)}, 'divergence': {'states': 'reference'}},
            'sweep them apart',
        ),
    ):
        with pytest.raises(UserError, match=message):
            sweep.check(make_run(**settings))


SCRIPT = """
import sys
import jax, numpy as np
from tests.training.test_sweep import SWEEP, make_run, train

results = train(sys.argv[1], make_run(**SWEEP))
np.savez(sys.argv[2], devices=jax.device_count(),
         **{str(i): np.concatenate([np.ravel(x) for x in jax.tree.leaves(r.policy.params)])
            for i, r in enumerate(results)})
"""


def test_seeds_spread_over_devices(swept, tmp_path):
    flags = '--xla_force_host_platform_device_count=4'
    subprocess.run(
        [sys.executable, '-c', SCRIPT, tmp_path / 'run', tmp_path / 'out.npz'],
        env={**os.environ, 'XLA_FLAGS': flags},
        check=True,
        timeout=400,
    )
    found = dict(np.load(tmp_path / 'out.npz'))
    assert found['devices'] == 4
    for index, result in enumerate(swept[0]):
        leaves = [np.ravel(x) for x in jax.tree.leaves(result.policy.params)]
        np.testing.assert_allclose(found[str(index)], np.concatenate(leaves), atol=1e-5)


@pytest.mark.parametrize(
    ('arguments', 'names'),
    [
        (['--seeds', '2'], ['seed-0', 'seed-1']),
        (['--seeds', '3', '8'], ['seed-3', 'seed-8']),
        (['--sweep.beta', '0.1', '1'], ['beta-0.1-seed-0', 'beta-1-seed-0']),
        (
            ['--seed', '4', '--sweep.learning-rate', '1e-4'],
            ['learning_rate-0.0001-seed-4'],
        ),
    ],
)
def test_command_line(arguments, names):
    run = configfile.override(make_run(), arguments, 'sail-jax', '')
    assert [member.name for member in Members.of(run).each] == names
    path = None
    again = configfile.validate(ControlRun, yaml.safe_load(configfile.to_yaml(run)), path, None)
    assert again == run
