"""A real browser: Chromium of the host (`apt install chromium`), driven by the extra `browser`."""

import contextlib
import shutil

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason='there is no Chromium here: apt install chromium'
)


@contextlib.contextmanager
def chromium(sync_api):
    """A Chromium without a window. While it is open, an event loop runs in this thread.

    Args:
        sync_api: `pytest.importorskip('playwright.sync_api')`.
    """
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()
