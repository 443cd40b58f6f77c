"""Runs that several files look at."""

import pytest

from tests.support.saving import KEPT, KL, REFRESHED, make_run, train


@pytest.fixture(scope='session')
def falling(tmp_path_factory):
    """A run that is at its best before its first update, by its metric."""
    path = tmp_path_factory.mktemp('falling') / 'run'
    return train(path, make_run({'metric': f'-{KL}'})), path


@pytest.fixture(scope='session')
def refreshed(tmp_path_factory):
    path = tmp_path_factory.mktemp('refreshed') / 'run'
    return train(path, make_run(KEPT, **REFRESHED)), path
