"""Seeds and swept settings of language runs, which are trained in turn."""

import jax
import numpy as np
import pytest

import sail_jax
from sail_jax import configfile, reports, runs
from sail_jax.cli import main
from sail_jax.errors import UserError
from sail_jax.training import metrics
from tests.support import small

SETTINGS = {
    'seeds': [3, 5],
    'total_prompts': 8,
    'evaluation': {'every_updates': 100, 'prompts': 4},
    'checkpoints': {'every_updates': 100},
}


def make(path, **settings):
    return small.run(path / 'm', path / 'prompts.jsonl', **SETTINGS | settings)


def train(path, name, run, **options):
    return sail_jax.train(run, path / name, reward=small.letters, quiet=True, **options)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp('seeds')
    small.checkpoint(path / 'm')
    small.data(path / 'prompts.jsonl')
    return path


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.policy, other.policy)
    assert one.after == other.after


@pytest.mark.slow
def test_members_are_the_runs_alone_and_go_on_where_they_stopped(path, capsys):
    class Stop(Exception):
        pass

    def second_seed_stops(row):
        rows.append(row['step'])
        if len(rows) == 3:
            raise Stop

    rows = []
    with pytest.raises(UserError, match='on_update: raised Stop'):
        train(path, 'run', make(path), on_update=second_seed_stops)
    assert rows == [1, 2, 1]
    results = train(path, 'run', make(path), resume=True)
    for seed, result in zip((3, 5), results, strict=True):
        same(result, train(path, f'alone-{seed}', make(path, seeds=None, seed=seed)))
        kept = metrics.read_rows(path / 'run' / f'seed-{seed}' / 'metrics.jsonl')
        assert [row['step'] for row in kept] == [0, 1, 2]
    reports.print_sweep(make(path), results)
    assert 'seed-5' in capsys.readouterr().out
    with pytest.raises(UserError, match='a sweep; name one of its runs'):
        runs.open_run(path / 'run')
    assert main(['plot', str(path / 'run'), '--out', str(path / 'seeds.png')]) == 0
    assert 'no run' not in capsys.readouterr().err
    longer = make(path, total_prompts=12)
    assert [result.length for result in train(path, 'run', longer, resume=True)] == [12, 12]
    with pytest.raises(UserError, match='exists already'):
        train(path, 'run', make(path))


@pytest.mark.slow
def test_a_member_that_a_callback_ended_stays_at_its_end(path):
    class Stop(Exception):
        pass

    def first_seed_ends_second_stops(row):
        rows.append(row['step'])
        if len(rows) == 2:
            raise Stop
        return True

    rows = []
    with pytest.raises(UserError, match='on_update: raised Stop'):
        train(path, 'ended', make(path), on_update=first_seed_ends_second_stops)
    assert rows == [1, 1]
    go_on = lambda **settings: train(path, 'ended', make(path, **settings), resume=True)
    assert [result.length for result in go_on()] == [4, 8]
    assert [result.length for result in go_on(total_prompts=12)] == [12, 12]


@pytest.mark.parametrize(
    'ask',
    [
        lambda path: sail_jax.generate(path, ['a']),
        sail_jax.load_policy,
        lambda path: sail_jax.export(path, path / 'out'),
    ],
)
def test_who_asks_a_sweep_for_a_model_is_told_to_name_a_run(path, tmp_path, ask):
    configfile.write(make(path), tmp_path / 'config.yaml')
    with pytest.raises(UserError, match=r'a sweep; name one of its runs, e\.g\. .*/seed-3$'):
        ask(tmp_path)


def test_what_cannot_be_begun_leaves_the_directory_free(path, tmp_path):
    with pytest.raises(UserError, match=r'nothing\.jsonl: No such file'):
        train(tmp_path, 'run', make(path, data={'path': str(path / 'nothing.jsonl')}))
    assert not (tmp_path / 'run' / 'config.yaml').exists()
    with pytest.raises(UserError, match='no run to resume'):
        train(tmp_path, 'run', make(path), resume=True)
