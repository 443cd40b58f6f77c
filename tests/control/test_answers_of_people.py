"""What people have said of segments, as a file: all of it, whatever training knows of it yet."""

import json

import numpy as np
import pytest

import sail_jax
from sail_jax import configfile
from sail_jax.control.reward import answers
from sail_jax.control.reward.answers import Widths
from sail_jax.labels.store import NAME
from tests.support import labelling, sac
from tests.support.answering import ANN, require_exported
from tests.support.refused import message
from tests.support.toy import make_run

BEN = 'b' * 32
CONTROL = make_run(labeller={'source': 'people'})
RUNS = pytest.mark.parametrize('run', [CONTROL, sac.by_people()], ids=['control', 'sac'])


def make(run_dir, run, count):
    """A run that waits for answers to so many questions, before its first checkpoint."""
    configfile.write(run, run_dir / 'config.yaml')
    store = labelling.make(run_dir / NAME, 0, task=run.env.subject, repeat_every=4)
    store.ask([labelling.question(n, round_=1 + n // 3) for n in range(count)])
    return store


def say(store, client, who, choice):
    shown = store.next(client)
    store.answer(shown.ticket, client, who, choice)
    return shown


@RUNS
def test_a_run_that_waits_gives_all_that_was_said_once(tmp_path, run):
    store = make(tmp_path, run, 7)
    for choice in ('left', 'right', 'equal', 'skip'):
        say(store, ANN, 'Ann', choice)
    store.take(1, 3)  # Training has learned of three.
    assert say(store, ANN, 'Ann', 'left').turned  # The first again, and the other way round.
    say(store, BEN, 'Ben "B" ü', 'right')
    say(store, BEN, 'Ben "B" ü', 'left')
    store.undo(BEN, yours=2)
    path = tmp_path / 'answers.jsonl'
    asked_at = [run.env_steps_per_update * n for n in (1, 1, 1, 2, 2)]
    require_exported(tmp_path, path, asked_at)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row['source'] for row in rows] == ['Ann'] * 4 + ['Ben "B" ü']
    pairs = answers.read(path, Widths(obs=3, action=2))
    assert pairs.prob.tolist() == [1, 0, 0.5, 0.5, 0]
    assert pairs.weight.tolist() == [1, 1, 1, 0, 1]
    for n in range(5):
        pair = labelling.pair(n)
        np.testing.assert_array_equal(pairs.mask[n], pair.mask)
        np.testing.assert_array_equal(pairs.obs[n], pair.obs * pair.mask[..., None])
        np.testing.assert_array_equal(pairs.action[n], pair.action * pair.mask[..., None])


@RUNS
def test_a_run_without_answers_is_one_line(tmp_path, run):
    export = lambda: sail_jax.export_labels(tmp_path, tmp_path / 'answers.jsonl')
    for count in (0, 2):
        store = make(tmp_path, run, count)
        assert message(export) == f'{store.path}: nobody has answered a question yet'
    say(store, ANN, 'Ann', 'left')
    about = {'task': 'another', 'repeat_every': 0}
    labelling.Store.of_run(store.path, about).ask([labelling.question(0)])
    assert message(export) == f'{store.path}: of a run of another, not of {run.env.subject}'
    store.path.unlink()
    assert message(export).startswith(f'{store.path}: no questions; train with')
    assert not (tmp_path / 'answers.jsonl').exists()
