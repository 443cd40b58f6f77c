"""Functions of the user's that look at a run's numbers, and may end it."""

import inspect
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from sail_jax.errors import UserError, one_line
from sail_jax.training import hosts
from sail_jax.training.rows import MetricsRow, MetricsRows


class Callback(Protocol):
    """Looks at numbers of `metrics.jsonl`."""

    def __call__(self, row: MetricsRow, /) -> object:
        """Called on the main process with a row, or with a list of rows, one a member, of a sweep.

        Returns:
          True ends the run as at its end: evaluated and saved. Anything else lets it go on.
        """
        ...


class Callbacks(NamedTuple):
    """Those of a run; what they raise ends it in one line, with the state saved."""

    on_update: Callback | None = None
    """Sees each update, without its evaluation if it has one. Rows are read while the device works
    on the next dispatch, so that a run goes on for up to that dispatch after True."""
    on_evaluation: Callback | None = None
    """Sees each evaluation, that of the start policy (`step` 0) included, in its update's row."""

    def check(self) -> None:
        """Raises UserError where one is no function of one argument, or one that nobody would run
        to its end."""
        for name, callback in self._asdict().items():
            if callback is None:
                continue
            if not callable(callback):
                raise UserError(f'{name}: a function of a row, got {type(callback).__name__}')
            if isinstance(callback, type):
                raise UserError(f'{name}: the class {callback.__name__}; give an instance of it')
            called = callback, type(callback).__call__
            if any(map(inspect.iscoroutinefunction, called)):
                raise UserError(f'{name}: a plain function, got an async one')
            if any(map(inspect.isgeneratorfunction, called)):
                raise UserError(f'{name}: a plain function, got a generator (it has yield)')
            try:
                signature = inspect.signature(callback)
            except (TypeError, ValueError):
                continue  # Functions that are not written in Python have no signature.
            try:
                signature.bind({})
            except TypeError as error:
                raise UserError(f'{name}: called with a row alone: {one_line(error)}') from None


NO_CALLBACKS = Callbacks()


class Listeners:
    """Calls the callbacks in process 0; what they answered holds in all processes of the run.

    Its functions are called by all of them together, and raise UserError in all of them where a
    callback raised.
    """

    ended_by: str | None = None
    """The callback that has answered True, in the process that called it."""
    ended = False
    """Whether one has, in any process."""

    def __init__(self, callbacks: Callbacks, sweep: bool):
        self._callbacks, self._sweep = callbacks, sweep
        self._any = hosts.any_process(any(callback is not None for callback in callbacks))
        self._failure: UserError | None = None

    def see_updates(self, rows: MetricsRows) -> None:
        """Calls `on_update` for each update."""
        for update in zip(*rows, strict=True):
            self._call('on_update', update)
        self._agree()

    def see_evaluation(self, rows: MetricsRows) -> None:
        """Calls `on_evaluation` for the last update."""
        self._call('on_evaluation', [member[-1] for member in rows])
        self._agree()

    def _agree(self) -> None:
        """Has all processes know what was answered in process 0."""
        if not self._any:
            return
        self.ended = hosts.any_process(self.ended_by is not None)
        if hosts.any_process(self._failure is not None):
            raise self._failure or UserError('a callback failed in process 0; it says how')

    def _call(self, name: str, rows: Sequence[MetricsRow]) -> None:
        callback = getattr(self._callbacks, name)
        if callback is None or self._failure is not None or not hosts.is_main():
            return
        copies = [dict(row) for row in rows]
        try:
            answer = callback(copies if self._sweep else copies[0])
        except (Exception, SystemExit) as error:
            reason = f'{type(error).__name__}: {one_line(error)}'
            self._failure = UserError(f'{name}: raised {reason}')
            self._failure.__cause__ = error
            return
        if _is_true(answer) and self.ended_by is None:
            self.ended_by = name


def _is_true(answer: object) -> bool:
    """Whether it is True, NumPy's or JAX's included; anything else that is true, as the lines that
    a plot returns, is no wish to end."""
    if isinstance(answer, np.ndarray | jax.Array) and answer.shape == ():
        answer = answer[()].item()
    return isinstance(answer, bool | np.bool_) and bool(answer)
