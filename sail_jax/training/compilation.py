"""How long JAX compiled, by its own account: for speeds that leave it out."""

import time
from typing import Any

from jax import monitoring

EVENTS = '/jax/core/compile/'
"""Tracing, lowering and XLA's work; of a program that the cache on disk has, reading it."""


class Stopwatch:
    """Seconds of wall time in which something was compiled, in any thread, between `start` and
    `stop`."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def start(self) -> None:
        """JAX tells it of compilations from now on."""
        monitoring.register_event_duration_secs_listener(self._note)

    def take(self) -> float:
        """Seconds since the last call."""
        seconds = sum(end - start for start, end in self._spans)
        self._spans.clear()
        return seconds

    def stop(self) -> None:
        """And no longer."""
        monitoring.unregister_event_duration_listener(self._note)

    def _note(self, event: str, duration_secs: float, **_: Any) -> None:
        """A span ends now; those within it, of functions that it calls, count once."""
        if not event.startswith(EVENTS):
            return
        end = time.perf_counter()
        start = end - duration_secs
        while self._spans and self._spans[-1][0] >= start:
            self._spans.pop()
        if self._spans:
            start = max(start, self._spans[-1][1])
        self._spans.append((start, end))
