"""Seconds of compilation, as JAX reports them."""

import time

import jax
import jax.numpy as jnp
import pytest
from jax import monitoring

from sail_jax.training.compilation import EVENTS, Stopwatch


@pytest.fixture
def stopwatch():
    watch = Stopwatch()
    watch.start()
    yield watch
    watch.stop()


def test_what_is_compiled_within_something_counts_once(stopwatch, monkeypatch):
    for start, end in ((1.5, 2.0), (2.5, 3.0), (1.0, 6.0), (8.0, 9.0)):
        monkeypatch.setattr(time, 'perf_counter', lambda end=end: end)
        monitoring.record_event_duration_secs(f'{EVENTS}part', end - start)
    monitoring.record_event_duration_secs('/elsewhere', 100.0)
    assert stopwatch.take() == pytest.approx(6.0)
    assert stopwatch.take() == 0


def test_compiling_counts_and_running_does_not(stopwatch):
    began = time.perf_counter()
    function = jax.jit(lambda x: jnp.sin(x) + jax.jit(jnp.cos)(x))
    function(jnp.ones(3)).block_until_ready()
    assert 0 < stopwatch.take() <= time.perf_counter() - began
    function(jnp.ones(3)).block_until_ready()
    assert stopwatch.take() == 0


def test_a_stopped_stopwatch_notes_nothing():
    watch = Stopwatch()
    watch.start()
    watch.stop()
    monitoring.record_event_duration_secs(f'{EVENTS}part', 1.0)
    assert watch.take() == 0
