"""What Orbax says on its own, beside what it raises: nothing of it reaches the terminal.

A failed write or read ends the event loop that others of the same save still want to tell of their
own end; each of those is a traceback. The failure itself is raised, and said in one line.
"""

import asyncio
import concurrent.futures
import functools
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar('T')

LOOPS = 'Event loop is closed', "'_UnixSelectorEventLoop' object has no attribute '_ssock'"


def saving(call: Callable[[], T]) -> T:
    """What a call that saves with Orbax returns or raises.

    Where a save fails before its directories are made, the threads of its later steps wait for them
    for minutes, and the end of the process for those threads, unless they were begun in one that
    no process waits for. Nothing is lost by that: whoever saves waits for the save itself.
    """
    silence_failed_saves()
    done: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result()


@functools.cache
def silence_failed_saves() -> None:
    """Leaves out exactly those tracebacks, for the rest of the process: they can come late."""
    said = sys.unraisablehook

    def hook(what: Any, /) -> None:
        # Of a read that failed, those of its arrays that were under way have the same to say.
        code = getattr(getattr(what, 'object', None), 'cr_code', None)
        orbax = code is not None and f'{os.sep}orbax{os.sep}' in code.co_filename
        # Or a loop that was not begun, of a process that may have no more files open.
        loop = any(words in str(what.exc_value) for words in LOOPS)
        if not orbax and not loop:
            said(what)

    sys.unraisablehook = hook
    logging.getLogger(asyncio.__name__).addFilter(
        lambda record: not _of_a_save(record.getMessage())
    )
    warnings.filterwarnings('ignore', "coroutine '.*' was never awaited", RuntimeWarning)
    # It logs, with a traceback each, the errors that it raises.
    logging.getLogger('absl').addFilter(lambda record: record.exc_info is None)


def _of_a_save(message: str) -> bool:
    """Whether asyncio speaks of a task that nobody waits for since another failed."""
    return 'never retrieved' in message and ('orbax' in message or 'tensorstore' in message)
