"""Writers of metrics."""

import math
import resource

import pytest

from sail_jax import metrics
from sail_jax.control.config import ControlRun


def test_numbers_that_json_has_not_become_null(tmp_path):
    writer = metrics.JsonLines(tmp_path / 'metrics.jsonl', None)
    writer.write({'step': 1, 'a': math.nan, 'b': math.inf, 'c': 0.5})
    writer.close()
    assert metrics.read_rows(tmp_path / 'metrics.jsonl') == [
        {'step': 1, 'a': None, 'b': None, 'c': 0.5}
    ]


def test_a_full_disk_delays_rows_and_loses_none(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    writer = metrics.JsonLines(path, None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    rows = [{'step': step, 'a': 0.5} for step in range(5)]
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
        with metrics.console.capture() as said:
            for row in rows[:4]:
                writer.write(row)
        assert said.get().count('until there is room') == 1
        # What fits, and a part of the next, which nobody reads.
        assert path.stat().st_size == 50
        assert metrics.read_rows(path) == rows[:2]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    writer.write(rows[4])
    writer.close()
    assert metrics.read_rows(path) == rows


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    run = ControlRun.model_validate({'logging': {'wandb': 'sail', 'tensorboard': False}})
    writers = metrics.open_writers(run, tmp_path, None, 'env_steps', None)
    for writer in writers:
        writer.write({'step': 1, 'env_steps': 10, 'train/kl': 0.5})
        writer.close()
    assert list(tmp_path.glob('wandb/offline-run-*/*.wandb'))
