"""Whole runs that people label: stopped, killed, at the page; and what they leave."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

import sail_jax
from benchmarks import people_study
from sail_jax import configfile
from sail_jax.control.sac import session
from sail_jax.control.sac.replay import PosedTransition
from sail_jax.errors import Interrupted
from sail_jax.labels import payloads
from sail_jax.labels.store import NAME, Store
from sail_jax.training import metrics
from tests.support import sac
from tests.support.answering import (
    Person,
    StoppedWhenWaiting,
    answer,
    killed_and_set_back,
    require_exported,
)
from tests.support.checkpoints import same, without_times
from tests.support.paths import ROOT
from tests.support.visible import Visible, oracle

pytestmark = pytest.mark.slow

LONG = {'total_env_steps': 160, 'evaluation.every_updates': 1000, 'checkpoints.every_updates': 1000}
TRAINS = (
    'import sys, sail_jax; from tests.support.visible import Visible;'
    'sail_jax.train(sys.argv[1], sys.argv[2], env=Visible(), quiet=True)'
)


def train(path, settings=None, **options):
    return sail_jax.train(
        settings or sac.by_people(**LONG), path, env=Visible(), quiet=True, **options
    )


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run that is answered as it goes."""
    run_dir = tmp_path_factory.mktemp('people') / 'whole'
    with Person(run_dir, says=oracle):
        return train(run_dir), run_dir


@pytest.fixture(scope='module')
def teachers(tmp_path_factory):
    """The same run with the scripted teacher."""
    run_dir = tmp_path_factory.mktemp('teachers') / 'whole'
    return train(run_dir, sac.run(reward=sac.REWARD, **LONG)), run_dir


def test_a_run_is_the_teachers_where_people_say_what_the_teacher_says(whole, teachers):
    result, run_dir = whole
    same(result.policy, teachers[0].policy)
    assert result.labels == teachers[0].labels == 10
    ours, theirs = (metrics.read_rows(at / 'metrics.jsonl') for at in (run_dir, teachers[1]))
    for row, other in zip(ours, theirs, strict=True):
        assert row.keys() - {'time/compile_s'} == other.keys() - {'time/compile_s'}
        for key in row.keys() & {f'train/{name}' for name in session.SESSION_METRICS}:
            assert row[key] == pytest.approx(other[key], rel=1e-5)
    kept = sac.saved_state(run_dir, sac.by_people(**LONG), Visible()).sampler
    assert isinstance(kept.replay.steps, PosedTransition)
    assert kept.reward.told_N.all()


def test_the_same_answers_give_the_same_run_however_it_is_stopped(whole, tmp_path):
    run_dir = tmp_path / 'stopped'
    # Ctrl-C while it waits, labelled overnight or only begun with, gone on with; thrice.
    for stop, asked in enumerate((4, 8, 10)):
        resumed = {'resume': True} if stop else {}
        with StoppedWhenWaiting(run_dir), pytest.raises(Interrupted):
            train(run_dir, **resumed)
        store = Store(run_dir / NAME)
        assert store.progress().asked == asked
        answer(store, 1000 if stop < 2 else 1, says=oracle)
        # No checkpoint knows of the newest answers yet.
        asked_at = [40] * 4 + [80] * 4 + [120] * 2
        require_exported(run_dir, tmp_path / 'answers.jsonl', asked_at[: (4, 8, 9)[stop]])
    with Person(run_dir, says=oracle):
        result = train(run_dir, resume=True)
    same(result.policy, whole[0].policy)
    assert without_times(run_dir) == without_times(whole[1])
    of = lambda path: sac.saved_state(path, sac.by_people(**LONG), Visible())
    same(of(run_dir), of(whole[1]))


def test_a_run_that_is_killed_and_goes_on_from_before_learns_the_same(whole, tmp_path):
    run_dir = tmp_path / 'killed'
    killed_and_set_back(TRAINS, whole[1] / 'config.yaml', run_dir, questions=10, says=oracle)
    with Person(run_dir, says=oracle):
        result = train(run_dir, resume=True)
    same(result.policy, whole[0].policy)
    assert without_times(run_dir) == without_times(whole[1])
    assert Store(run_dir / NAME).progress().asked == 10


def test_answers_are_exported(whole, teachers, tmp_path):
    exported = []
    for name, run_dir in (('people', whole[1]), ('teacher', teachers[1])):
        path = sail_jax.export_labels(run_dir, tmp_path / f'{name}.jsonl', env=Visible())
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert {row.pop('source') for row in rows} == {'Ann' if name == 'people' else name}
        times = {row.pop('time', None) for row in rows}
        assert (times == {None}) == (name == 'teacher')
        exported.append(rows)
    assert exported[0] == exported[1]
    assert [row['env_steps'] for row in exported[0]] == [40] * 4 + [80] * 4 + [120] * 2
    assert {row['choice'] for row in exported[0]} == {0.0, 1.0}


def test_a_person_answers_at_the_page(tmp_path):
    """All by commands, on an environment of Brax; one question in four comes again."""
    settings = sac.by_people(**LONG | {'env': {'name': 'inverted_pendulum', 'episode_length': 15}})
    settings = configfile.update(settings, {'labeller.repeat_every': 3})
    config, run_dir = tmp_path / 'run.yaml', tmp_path / 'run'
    config.write_text(yaml.safe_dump(settings.model_dump(mode='json', exclude_unset=True)))
    command = [
        sys.executable,
        '-m',
        'sail_jax.cli',
        'train',
        str(config),
        '--run-dir',
        str(run_dir),
    ]
    with subprocess.Popen(command, cwd=ROOT) as process:
        while not (run_dir / NAME).exists():
            assert process.poll() is None
            time.sleep(0.1)
        with people_study.served(run_dir) as address:
            person = people_study.ScriptedPerson(address, seed=0, mistakes=0.0)
            while process.poll() is None:
                person.answer_all()
                time.sleep(0.1)
    assert process.returncode == 0
    progress = Store(run_dir / NAME).progress()
    assert (progress.asked, progress.answered) == (10, 10)
    assert progress.repeated == progress.agreed > 0
    assert person.answers == 10 + progress.repeated
    rows = metrics.read_rows(run_dir / 'metrics.jsonl')
    assert [row['labels'] for row in rows] == [0, 0, 0, 4, 4, 8, 8, 10, 10]
    assert [row['step'] for row in rows if 'train/fit_passes' in row] == [3, 5, 7]
    pair = payloads.unpack_segments(Store(run_dir / NAME).payload(0))
    # The pendulum's observation is the cart's position first, which the pose has too.
    np.testing.assert_allclose(pair.pose[:, :-1, 0, 0], pair.obs[..., 0], atol=1e-4)
