"""How far something is: on a terminal a line that keeps counting, elsewhere plain lines."""

import threading
import time
from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sail_jax.terminal import console, say

FIRST_S, AGAIN_S = 1, 30
"""Where there is no terminal, a stage is named after so many seconds, and then every so many."""


class Stages:
    """What a command is busy with, and for how long: a context, whose stages are named one after
    the other."""

    def __init__(self, quiet: bool = False, *columns: ProgressColumn, total: float | None = None):
        """`quiet` shows nothing; `columns` stand between the stage and the time."""
        self._live = not quiet and console.is_terminal
        self._plain = not quiet and not console.is_terminal
        self._progress = Progress(
            TextColumn('{task.description}', style='bold', markup=False),
            *(columns or (SpinnerColumn(),)),
            console=console,
            disable=not self._live,
        )
        self._task = self._progress.add_task('', total=total, numbers='')
        self._began = time.monotonic()
        self._done: threading.Event | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._end()
        self._progress.stop()

    def stage(self, what: str) -> None:
        """Says what comes now."""
        self._end()
        self._progress.update(self._task, description=what)
        if self._plain:
            self._done = threading.Event()
            threading.Thread(target=self._repeat, args=(what, self._done), daemon=True).start()

    def _end(self) -> None:
        if self._done is not None:
            self._done.set()

    def _repeat(self, what: str, done: threading.Event) -> None:
        if not done.wait(FIRST_S):
            self._say(what)
            while not done.wait(AGAIN_S):
                self._say(f'still {what}')

    def _say(self, text: str) -> None:
        say(f'{time.monotonic() - self._began:5.0f} s  {text}')


class ProgressBar(Stages):
    """Updates done, ETA, and the numbers to watch; a line after each evaluation."""

    def __init__(self, total_updates: int, names: dict[str, str], unit: str, quiet: bool):
        """`names` maps metric keys to their short titles."""
        super().__init__(
            quiet,
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn('eta'),
            TimeRemainingColumn(),
            TextColumn('{task.fields[numbers]}', markup=False),
            total=total_updates,
        )
        self._names, self._unit, self._quiet = names, unit, quiet
        self._last: dict[str, float] = {}

    def training(self) -> None:
        """What comes now are updates."""
        self._end()
        self._progress.update(self._task, description='update')

    def show(self, row: dict[str, float]) -> None:
        """Moves the bar to a row's update; prints a line after an evaluation."""
        self._last |= {key: row[key] for key in self._names if key in row}
        numbers = '  '.join(
            f'{title} {short(self._last[key])}'
            for key, title in self._names.items()
            if key in self._last
        )
        self._progress.update(self._task, completed=row['step'], numbers=numbers)
        if not self._quiet and any(key.startswith('eval/') for key in row):
            unit = self._unit.replace('_', ' ')
            say(f'{int(row[self._unit]):>12,} {unit}  {numbers}')


def short(value: float) -> str:
    """Three digits, and no powers of ten where a thousand or a million will do."""
    for size, letter in ((1e6, 'M'), (1e4, 'k')):
        if abs(value) >= size:
            return f'{value / (size if letter == "M" else 1e3):.1f}{letter}'
    return f'{value:.0f}' if abs(value) >= 999.5 else f'{value:.3g}'
