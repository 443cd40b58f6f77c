"""`on_update` and `on_evaluation`: what they see, and what they do to a run."""

import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sail_jax
from sail_jax.control import task as control_task
from sail_jax.control.config import recorded
from sail_jax.errors import Interrupted, UserError
from sail_jax.training import loop, metrics, trainer
from tests.support.checkpoints import same, without_times
from tests.support.toy import Point, make_run, train


def rows_of(path):
    return metrics.read_rows(path / 'metrics.jsonl')


EVERY_4 = {
    'evaluation': {'episodes': 4, 'every_updates': 4},
    'checkpoints': {'every_updates': 4},
    'total_env_steps': 8 * make_run().env_steps_per_update,
}
"""Eight updates in four dispatches, an evaluation and a checkpoint every other dispatch."""


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp('whole') / 'run'
    return train(path, make_run(**EVERY_4)), path


def test_they_see_every_row_and_change_nothing(whole, tmp_path, monkeypatch):
    """Not even where the run's directory is, whatever the current one is."""
    updates, evaluations = [], []
    monkeypatch.chdir(tmp_path)

    def note(row):
        updates.append(dict(row))
        row.clear()
        os.chdir('/')

    result = train(
        Path('run'), make_run(**EVERY_4), on_update=note, on_evaluation=evaluations.append
    )
    same(result.policy, whole[0].policy)
    assert without_times(tmp_path / 'run') == without_times(whole[1])
    rows = rows_of(tmp_path / 'run')
    assert [row['step'] for row in updates] == list(range(1, 9))
    # An update is seen before its evaluation is made.
    assert updates == [
        {key: value for key, value in row.items() if not key.startswith('eval/')}
        for row in rows[1:]
    ]
    assert evaluations == [row for row in rows if row['step'] % 4 == 0]
    assert result.update == rows[-1]


def test_devices_keep_a_start_policy_that_is_the_reference_once(whole, tmp_path):
    kernel = whole[0].policy.params['policy']['params']['hidden_0']['kernel'].shape
    count = lambda: sum(x.shape == kernel for x in jax.live_arrays())
    before, seen = count(), []
    train(tmp_path / 'run', make_run(**EVERY_4), on_evaluation=lambda row: seen.append(count()))
    # Of policy, reference, and Adam's two moments; later a save may hold copies.
    assert seen[0] - before == 4


def test_rows_are_read_while_the_next_dispatch_is_under_way(tmp_path, monkeypatch):
    order, compiled = [], loop.compiled

    def telling(*args):
        program = compiled(*args)

        def call(state):
            order.append('dispatch')
            return program(state)

        return call

    monkeypatch.setattr(loop, 'compiled', telling)
    train(tmp_path / 'run', make_run(**EVERY_4), on_update=lambda row: order.append(row['step']))
    assert order == ['dispatch', 'dispatch', 1, 2, 3, 4, 'dispatch', 'dispatch', 5, 6, 7, 8]


@pytest.mark.parametrize(
    ('name', 'at', 'end', 'answer'),
    [
        ('on_update', 1, 4, bool),  # Seen while updates 3 and 4 are made.
        ('on_update', 4, 4, np.bool_),
        ('on_update', 6, 8, np.array),
        ('on_evaluation', 0, 0, jnp.array),
        ('on_evaluation', 4, 4, np.bool_),
    ],
)
def test_true_ends_the_run_evaluated_and_saved(whole, tmp_path, name, at, end, answer):
    path = tmp_path / 'run'
    result = train(path, make_run(**EVERY_4), **{name: lambda row: answer(row['step'] >= at)})
    assert result.length == end * make_run().env_steps_per_update
    assert (path / 'checkpoints' / str(end)).exists()
    rows = rows_of(path)
    assert [row['step'] for row in rows] == list(range(end + 1))
    assert result.after == {key: rows[-1][key] for key in result.after}
    # And a run that ended so can go on.
    again = train(path, make_run(**EVERY_4), resume=True)
    same(again.policy, whole[0].policy)
    assert without_times(path) == without_times(whole[1])


def test_one_of_several_in_turn_stays_at_the_end_that_a_callback_gave_it(tmp_path):
    path, run = tmp_path / 'run', recorded(make_run(**EVERY_4), Point(), None)
    before = train(path, run, on_evaluation=lambda row: True)
    task = control_task.make(run, Point())
    after = trainer.train(run, task, path, resume=True, quiet=True, in_turn=True)
    assert (before.length, after.length) == (0, 0)
    assert before.after == after.after


def test_true_between_evaluations_makes_one_more(tmp_path):
    run = make_run(**EVERY_4 | {'evaluation': {'episodes': 4, 'every_updates': 8}})
    result = train(tmp_path / 'run', run, on_update=lambda row: row['step'] == 2)
    assert result.length == 4 * run.env_steps_per_update
    assert 'eval/return' in rows_of(tmp_path / 'run')[-1]


def test_only_true_ends_a_run(tmp_path):
    answers = iter(
        [
            None,
            'yes',
            1,
            [0],
            {'a': 1},
            np.ones(2),
            np.bool_(False),
            jnp.ones(2, bool),
            jnp.int32(1),
            False,
        ]
    )
    result = train(tmp_path / 'run', make_run(**EVERY_4), on_update=lambda row: next(answers))
    assert result.length == EVERY_4['total_env_steps']


@pytest.mark.parametrize(
    ('name', 'at', 'saved', 'error'),
    [
        ('on_update', 1, 4, ValueError),
        ('on_update', 4, 4, SystemExit),  # Of `sys.exit`.
        ('on_evaluation', 0, 0, ValueError),
        ('on_evaluation', 4, 4, ValueError),
    ],
)
def test_what_one_raises_ends_the_run_in_one_line_with_the_state_saved(
    whole, tmp_path, name, at, saved, error
):
    path = tmp_path / 'run'

    def fail(row):
        if row['step'] == at:
            raise error('no such\nfigure')

    with pytest.raises(UserError) as caught:
        train(path, make_run(**EVERY_4), **{name: fail})
    steps = f'{saved * make_run().env_steps_per_update} env steps'
    assert str(caught.value) == f'{name}: raised {error.__name__}: no such figure; saved at {steps}'
    assert isinstance(caught.value.__cause__.__cause__, error)
    assert (path / 'checkpoints' / str(saved)).exists()
    result = train(path, make_run(**EVERY_4), resume=True)
    same(result.policy, whole[0].policy)
    assert without_times(path) == without_times(whole[1])


def test_an_evaluation_that_waited_is_seen_by_the_run_that_makes_it(tmp_path):
    def stop(row):
        if row['step'] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    run = make_run(**EVERY_4)
    with pytest.raises(Interrupted):
        train(tmp_path / 'run', run, on_update=stop)
    seen = []
    train(tmp_path / 'run', run, resume=True, on_evaluation=seen.append)
    assert [row['step'] for row in seen] == [4, 8]
    assert seen[0] == rows_of(tmp_path / 'run')[4]


def test_of_a_sweep_they_see_the_members_rows_together(tmp_path):
    updates, run = [], make_run(seeds=2)

    def note(rows):
        updates.append(rows)
        return min(row['step'] for row in rows) == 1

    results = train(tmp_path / 'run', run, on_update=note)
    assert [result.length for result in results] == [2 * run.env_steps_per_update] * 2
    for m, name in enumerate(('seed-0', 'seed-1')):
        rows = rows_of(tmp_path / 'run' / name)
        assert [row['step'] for row in rows] == [0, 1, 2]
        assert updates[0][m] == rows[1]


async def later(row):
    """Of no use: nobody would wait for it."""


class Later:
    async def __call__(self, row):
        """Likewise."""


class Counts:
    def __init__(self, limit=3):
        """As a class it would take a row for its limit."""

    def __call__(self, row):
        yield row


@pytest.mark.parametrize(
    ('callback', 'said'),
    [
        (Counts, 'on_update: the class Counts; give an instance of it'),
        (Counts(), 'on_update: a plain function, got a generator'),
        (3, 'on_update: a function of a row, got int'),
        (later, 'on_update: a plain function, got'),
        (Later(), 'on_update: a plain function, got'),
        (lambda: None, 'on_update: called with a row alone: too many positional arguments'),
        (lambda step, row: None, "on_update: called with a row alone: .*argument: 'row'"),
        (lambda *, row: None, 'on_update: called with a row alone: too many positional'),
    ],
)
def test_what_is_no_function_is_refused_before_anything_is_made(tmp_path, callback, said):
    with pytest.raises(UserError, match=said):
        train(tmp_path / 'run', on_update=callback)
    assert not (tmp_path / 'run').exists()


def test_a_study_has_no_updates_to_show(tmp_path):
    study = 'configs/bandit/landscape.yaml'
    with pytest.raises(UserError, match='on_evaluation: not for a bandit run'):
        sail_jax.train(study, tmp_path / 'run', on_evaluation=print)
    assert not (tmp_path / 'run').exists()
