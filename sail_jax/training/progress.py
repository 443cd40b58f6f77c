"""How far something is: on a terminal a line that keeps counting, in a notebook one that is written
over, elsewhere plain lines."""

import contextlib
import datetime
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from sail_jax.terminal import console, escaped, say

FIRST_S, AGAIN_S = 1, 30
"""Where there is no terminal, a stage is named after so many seconds, and then every so many."""
CELL_S = 0.2
"""Between two looks of a notebook's line."""


class CellLine:
    """A line of a notebook's output that is written over."""

    def __init__(self) -> None:
        self._display: Any = None
        self._shown = -CELL_S

    def show(self, text: str, at_once: bool = True) -> None:
        """Writes it over; leaves that out soon after the last time, unless it is `at_once`."""
        from IPython.display import display

        if not at_once and time.monotonic() < self._shown + CELL_S:
            return
        self._shown, data = time.monotonic(), {'text/plain': escaped(text)}
        if self._display is None:
            self._display = display(data, raw=True, display_id=True)
        else:
            self._display.update(data, raw=True)


class Numbers(ProgressColumn):
    """The numbers to watch, as far as the terminal has room for them beside the other columns."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=False, ratio=1))

    def render(self, task: Task) -> Text:
        return Text(task.fields['numbers'], no_wrap=True, overflow='ellipsis')


class Pace:
    """How long updates and evaluations take, and so how long what is left of them will."""

    def __init__(self, updates: int, evaluate_every: int):
        self._updates, self._every = updates, evaluate_every
        self._began, self._began_s = 0, 0.0
        """The update that is counted from, and when that was, evaluations left out."""
        self._done, self._update_s = 0, 0.0
        self._evaluation_s = self._evaluations_s = 0.0
        """Of the last evaluation, and of all."""

    def evaluated(self, seconds: float) -> None:
        self._evaluation_s = seconds
        self._evaluations_s += seconds

    def begin(self, update: int, now: float) -> None:
        """After so many updates the next ones are made, from now on."""
        self._began, self._began_s, self._done = update, now - self._evaluations_s, update

    def see(self, update: int, now: float) -> None:
        """So many updates are done."""
        self._done = update
        if update > self._began:
            self._update_s = (now - self._evaluations_s - self._began_s) / (update - self._began)

    def left_s(self) -> float | None:
        """Seconds to the end of the run; None while an update's are not known."""
        left = self._updates - self._done
        if self._update_s == 0:
            return None
        # The end is evaluated too, be it a multiple or not.
        evaluations = -(-self._updates // self._every) - self._done // self._every if left else 0
        return left * self._update_s + evaluations * self._evaluation_s


class Left(ProgressColumn):
    """Time to the end."""

    def __init__(self, pace: Pace):
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        left_s = self._pace.left_s()
        return Text('-:--:--' if left_s is None else str(datetime.timedelta(seconds=int(left_s))))


class Stages:
    """What a command is busy with, and for how long: a context, whose stages are named one after
    the other."""

    def __init__(self, quiet: bool = False, *columns: ProgressColumn, total: float | None = None):
        """`quiet` shows nothing; `columns` stand between the stage and the time."""
        self._live = not quiet and console.is_terminal
        self._cell = CellLine() if not quiet and console.is_jupyter else None
        self._plain = not quiet and not console.is_terminal and self._cell is None
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
        if self._cell is not None:
            self._cell.show(f'{self._elapsed()}  {what}')
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
        say(f'{self._elapsed():>7}  {text}')

    def _elapsed(self) -> str:
        return f'{time.monotonic() - self._began:.0f} s'


@contextlib.contextmanager
def busy(doing: str) -> Iterator[None]:
    """Says what a command is busy with, and for how long, while it lasts."""
    with Stages() as stages:
        stages.stage(doing)
        yield


class ProgressBar(Stages):
    """Updates done, ETA, and the numbers to watch; on a terminal or in a file, a line after each
    evaluation."""

    def __init__(
        self,
        updates: int,
        names: dict[str, str],
        unit: str,
        *,
        evaluate_every: int,
        quiet: bool = False,
    ):
        """Of a run of so many updates; `names` maps metric keys to their short titles."""
        self._pace = Pace(updates, evaluate_every)
        super().__init__(
            quiet,
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn('eta'),
            Left(self._pace),
            Numbers(),
            total=updates,
        )
        self._names, self._unit, self._quiet = names, unit, quiet
        self._last: dict[str, float] = {}

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """What comes now is an evaluation."""
        began = time.monotonic()
        yield
        self._pace.evaluated(time.monotonic() - began)

    def training(self, done: int) -> None:
        """What comes now are updates, after so many."""
        self._end()
        self._pace.begin(done, time.monotonic())
        self._progress.update(self._task, description='update', completed=done)
        if self._plain:
            self._done = threading.Event()
            threading.Thread(target=self._count, args=(self._done,), daemon=True).start()

    def _count(self, done: threading.Event) -> None:
        """Says how far training is, ever more rarely: its log may be one of days."""
        after_s = AGAIN_S
        while not done.wait(after_s):
            self._say(f'{self._updates()}{self._left()}')
            after_s *= 2

    def show(self, row: dict[str, float]) -> None:
        """Moves the bar to a row's update; prints a line after an evaluation."""
        self._last |= {key: row[key] for key in self._names if key in row}
        numbers = '  '.join(
            f'{title} {short(self._last[key])}'
            for key, title in self._names.items()
            if key in self._last
        )
        self._pace.see(int(row['step']), time.monotonic())
        self._progress.update(self._task, completed=row['step'], numbers=numbers)
        evaluated = any(key.startswith('eval/') for key in row)
        if self._cell is not None:
            self._cell.show(self._line(numbers), at_once=evaluated)
        elif not self._quiet and evaluated:
            unit = self._unit.replace('_', ' ')
            say(f'{int(row[self._unit]):>12,} {unit}  {numbers}')

    def _line(self, numbers: str) -> str:
        """The bar in words."""
        return f'{self._updates()}  {self._elapsed()}{self._left()}  {numbers}'

    def _updates(self) -> str:
        (task,) = self._progress.tasks
        return f'{task.completed:,.0f} of {task.total:,.0f} updates'

    def _left(self) -> str:
        left_s = self._pace.left_s()
        return '' if left_s is None else f', eta {left_s:.0f} s'


def short(value: float) -> str:
    """Three digits, and no powers of ten where a thousand or a million will do."""
    for size, letter in ((1e6, 'M'), (1e4, 'k')):
        if abs(value) >= size:
            return f'{value / (size if letter == "M" else 1e3):.1f}{letter}'
    return f'{value:.0f}' if abs(value) >= 999.5 else f'{value:.3g}'
