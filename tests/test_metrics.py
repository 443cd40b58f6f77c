"""Writers of metrics."""

import math

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
