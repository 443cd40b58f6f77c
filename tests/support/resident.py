"""The memory of this process."""

import threading
from contextlib import contextmanager
from pathlib import Path


def anonymous():
    """Bytes in memory that are no file's; a mapped file's pages are everybody's."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024 * int(next(x.split()[1] for x in lines if x.startswith('RssAnon:')))


@contextmanager
def peak():
    """A list whose one entry grows to the most that was held at once, beyond what was before."""
    before, most, done = anonymous(), [0], threading.Event()

    def watch():
        while not done.wait(0.001):
            most[0] = max(most[0], anonymous() - before)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield most
    finally:
        done.set()
        watching.join()
