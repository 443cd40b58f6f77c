"""SIGINT and SIGTERM end a run at the next safe point, with a checkpoint."""

import contextlib
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sail_jax import metrics
from sail_jax.errors import Interrupted


@contextlib.contextmanager
def collected() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying; a second one has its usual effect."""
    caught: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _frame: Any) -> None:
        caught.append(number)
        signal.signal(number, before[number])
        metrics.console.print('stopping at the next safe point; once more to stop at once')

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # Not the main thread: signals are the caller's.
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupted(number: int, where_at: str, run_dir: Path) -> Interrupted:
    """What the run ends with after its save: status 75, or 130 for Ctrl-C."""
    where = shlex.quote(str(run_dir))
    return Interrupted(
        f'stopped and saved at {where_at}; go on with: '
        f'sail-jax train {where}/config.yaml --run-dir {where} --resume',
        status=130 if number == signal.SIGINT else 75,
    )
