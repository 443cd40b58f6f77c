"""Offline DPO, and its evaluation against the data's chosen responses."""

import numpy as np

import sail_jax
from sail_jax.language import workload
from sail_jax.training import metrics
from tests.support import small


def test_offline_dpo_learns_its_pairs_and_draws_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(workload, 'sampler', None)
    model = small.checkpoint(tmp_path / 'm')
    pairs = small.data(tmp_path / 'pairs.jsonl', rows=24, pairs=True)
    run = small.run(
        model,
        pairs,
        total_prompts=8 * 12,
        prompts_per_update=8,
        objective={'mixture': {'dpr': 0}},
        divergence={'states': 'data'},
        optimizer={'learning_rate': 3e-3, 'warmup_updates': 2, 'decay': 'cosine'},
        evaluation={'every_updates': 100, 'prompts': 8},
    )
    scored = []

    def reward(prompts, responses):  # Of evaluations alone.
        scored.append(responses)
        return small.letters(prompts, responses)

    result = sail_jax.train(run, tmp_path / 'run', reward=reward, quiet=True)
    assert result.before['eval/pair_accuracy'] == 0.5
    assert result.after['eval/pair_accuracy'] == 1
    assert result.after['eval/pair_margin'] > 3 * result.after['eval/pair_margin_se'] > 0
    # The data's chosen are scored once, the start's responses too.
    chosen = [' yes' * (1 + i % 2) for i in np.arange(8) * 24 // 8]
    assert scored.count(chosen) == 1
    assert len(scored) == 3
    theirs = np.asarray(small.letters([], chosen))
    got = np.asarray(small.letters([], scored[-1]))
    assert result.after['eval/chosen_win_rate'] == np.mean((got > theirs) + (got == theirs) / 2)
    assert result.after['eval/chosen_ties'] == np.mean(got == theirs)
    rows = metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')[1:]
    assert 'train/reward' not in rows[-1]
    rates = np.asarray([row['train/learning_rate'] for row in rows]) / 3e-3
    expected = [0.5, 1, *((1 + np.cos(np.pi * np.arange(10) / 10)) / 2)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
