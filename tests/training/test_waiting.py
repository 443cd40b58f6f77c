"""Between dispatches a run waits for a store that another program has locked."""

import os
import signal
from types import SimpleNamespace

import pytest

from sail_jax.control import task as control_task
from sail_jax.errors import Busy, Interrupted
from sail_jax.training import loop, trainer
from tests.support.checkpoints import same, without_times
from tests.support.toy import Point, make_run, train


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp('whole') / 'run'
    return train(path), path


def busy_at_first(call, times):
    """The function, which another program keeps waiting for so many calls."""
    left = [times]

    def function(*arguments):
        left[0] -= 1
        if left[0] >= 0:
            raise Busy('store: database is locked')
        return call(*arguments)

    return function


def exchanging(times, **functions):
    """The task of a run that asks people who have nothing to say, with a store that is locked."""
    calls = {'publish': lambda s: None, 'ready': lambda s: True, 'take': lambda s: s} | functions
    exchange = SimpleNamespace(**{k: busy_at_first(f, times) for k, f in calls.items()}, waiting='')
    open_exchange = busy_at_first(lambda run_dir: exchange, times)
    return control_task.make(make_run(), Point())._replace(exchange=open_exchange)


def test_a_store_that_others_have_locked_is_waited_for(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, 'POLL_S', 0.01)
    result = trainer.train(make_run(), exchanging(2), tmp_path / 'run', quiet=True)
    same(result.policy, whole[0].policy)
    said = capsys.readouterr().err.splitlines()
    assert said == ['store: database is locked: training waits for whoever has it'] * 4


@pytest.mark.parametrize('where', ['publish', pytest.param('take', marks=pytest.mark.slow)])
def test_a_signal_ends_a_run_that_waits_for_a_lock(whole, tmp_path, monkeypatch, where):
    monkeypatch.setattr(loop, 'POLL_S', 0.01)
    calls = []

    def locked(state):
        calls.append(int(state.step))
        if state.step < 2:
            return state
        os.kill(os.getpid(), signal.SIGTERM)
        raise Busy('store: database is locked')

    task = exchanging(0, **{where: locked})
    with pytest.raises(Interrupted, match='stopped and saved at 120 env steps'):
        trainer.train(make_run(), task, tmp_path / 'run', quiet=True)
    assert calls[-1] == 2
    result = trainer.train(make_run(), exchanging(0), tmp_path / 'run', resume=True, quiet=True)
    same(result.policy, whole[0].policy)
    assert without_times(tmp_path / 'run') == without_times(whole[1])
