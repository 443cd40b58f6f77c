"""Settings of the tests of the algorithm."""

import pytest

from tests.support.paths import ROOT
from tests.support.shapes import checked


@pytest.fixture(autouse=True)
def shapes():
    """Whatever a test calls, arrays have the axes that their names end in."""
    with checked(ROOT / 'sail_jax' / 'core'):
        yield
