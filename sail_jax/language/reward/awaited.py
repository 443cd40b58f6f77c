"""Rewards and judges that are coroutines: all batches of an update are awaited together."""

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine, Mapping, Set
from typing import Any

from sail_jax.errors import UserError


def is_async(function: Any) -> bool:
    """Whether what a function or callable object returns has to be awaited."""
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))


def together(
    function: Callable[[list, list], Coroutine[Any, Any, Any]], batch_size: int
) -> Callable[[list, list], list]:
    """A plain function of all places at once, which asks for a few of them at a time and awaits all
    of these calls together. The first that raises ends the others.

    Args:
      batch_size: places of a call, at most.

    Raises (the function returned):
      UserError: a call gave another number of answers than it was asked for, or nothing that has
        an order; it would end the process.
    """

    async def ask(prompts: list, items: list) -> list:
        try:
            answer = await function(prompts, items)
        except (SystemExit, KeyboardInterrupt) as error:  # They would end the loop, not the call.
            raise UserError(f'raised {type(error).__name__}: {error}') from error
        # Sets and mappings have no order, or are gone through by their keys.
        if not hasattr(answer, '__len__') or isinstance(answer, Set | Mapping):
            raise UserError(f'expected {len(items)} numbers, got {type(answer).__name__}')
        if len(answer) != len(items):
            raise UserError(f'expected {len(items)} numbers, got {len(answer)}')
        return list(answer)

    async def ask_all(prompts: list, items: list) -> list:
        cut = range(0, len(items), batch_size)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(ask(prompts[i : i + batch_size], items[i : i + batch_size]))
                for i in cut
            ]
        return [number for task in tasks for number in task.result()]

    @functools.wraps(function, assigned=('__name__', '__qualname__'), updated=())
    def call(prompts: list, items: list) -> list:
        running = asyncio.run_coroutine_threadsafe(ask_all(prompts, items), _loop())
        try:
            return running.result()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    if not hasattr(function, '__qualname__'):  # An object that can be called.
        call.__qualname__ = type(function).__qualname__
    return call


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """One for the whole process: what a function keeps open, as a client, belongs to a loop."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name='awaited rewards').start()
    return loop
