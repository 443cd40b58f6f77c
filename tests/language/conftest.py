"""Settings of the language tests."""

import pytest


@pytest.fixture(scope='session', autouse=True)
def data_cache(tmp_path_factory):
    """What tests prepare does not stay; compiled programs are kept elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        yield
