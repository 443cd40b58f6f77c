"""Disks that are full."""

import contextlib
import resource


@contextlib.contextmanager
def disk_of(size):
    """Files take no more than so many bytes, and a write beyond is an error, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def on_a_full_disk(function, size):
    """The function, with a disk of that size while it runs."""

    def call(*args):
        with disk_of(size):
            return function(*args)

    return call
