"""The registry of workloads: what is no workload is one line when it is registered or trained."""

import dataclasses
from typing import Literal

import pytest

import sail_jax
from sail_jax import config, workloads
from sail_jax.errors import UserError


class Mine(config.Trained):
    workload: Literal['mine'] = 'mine'
    low: int = 0
    high: int = 1


class Nameless(config.Trained):
    pass


KIND = sail_jax.Kind(name='mine', trains='nothing', settings=Mine, task=lambda run, **rest: None)


@pytest.fixture(autouse=True)
def empty(monkeypatch):
    monkeypatch.setattr(workloads, '_registered', {})


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'name': 3}, 'register: name: expected a word, got 3'),
        ({'name': ''}, 'register: name: expected a word'),
        ({'name': 'a\x1b[31m'}, 'register: name: expected a word'),
        ({'settings': None}, 'workload mine: settings: expected a class .*, got None'),
        ({'settings': Mine()}, 'workload mine: settings: expected a class'),
        ({'settings': dict}, 'workload mine: settings: expected a class'),
        ({'settings': Nameless}, r"mine: Nameless needs the field workload: Literal\['mine'\]"),
        ({'name': 'yours'}, r"workload yours: Mine needs the field workload: Literal\['yours'\]"),
    ],
)
def test_what_is_no_workload_is_not_registered(change, said):
    with pytest.raises(UserError, match=said):
        sail_jax.register(dataclasses.replace(KIND, **change))
    assert workloads.kinds() == workloads.KINDS


@pytest.mark.parametrize('other', [None, 'mine', sail_jax.Kind, {'name': 'mine'}])
def test_what_is_registered_is_a_kind(other):
    with pytest.raises(UserError, match=r'register: expected a sail_jax.Kind, got'):
        sail_jax.register(other)


def test_a_task_that_is_none_is_one_line(tmp_path):
    sail_jax.register(KIND)
    with pytest.raises(UserError, match=r'mine: task: expected .*Task, got NoneType'):
        sail_jax.train(Mine(), tmp_path / 'run')
    assert not list(tmp_path.iterdir())


def test_settings_are_checked_together_from_python_too(tmp_path):
    def check(run):
        if run.low > run.high:
            raise UserError('low: above high')

    sail_jax.register(dataclasses.replace(KIND, check=check))
    with pytest.raises(UserError, match='low: above high'):
        sail_jax.train(Mine(low=2), tmp_path / 'run')
