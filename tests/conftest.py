"""Settings of all tests."""

import gc
import importlib
import os
from pathlib import Path

# Before the first import of JAX: compiled programs are kept from one test run to the next.
CACHE = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'sail_jax'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(CACHE))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

gc.set_threshold(
    100_000, 20, 50
)  # Of millions of objects most are kept: looking at them costs 6 %.
jax.devices()  # Begun: a test of the command line cannot change how many there are.
# New examples are for who looks: a change must not fail for what it has not touched.
derandomize = 'CI' in os.environ
hypothesis.settings.register_profile(
    'sail_jax', deadline=None, max_examples=50, derandomize=derandomize
)
hypothesis.settings.load_profile('sail_jax')


def pytest_addoption(parser):
    parser.addoption(
        '--extras',
        action='store_true',
        help='a test that needs a library that is not installed fails, and is not skipped',
    )


def pytest_configure(config):
    if config.getoption('--extras'):
        pytest.importorskip = importlib.import_module


@pytest.fixture
def x64():
    """Float64 within the test."""
    with jax.enable_x64(True):
        yield
