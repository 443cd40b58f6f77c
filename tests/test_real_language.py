"""The study on a real model: its data, its settings, and what it reports."""

import argparse
import json
import subprocess

import numpy as np
import pytest

import sail_jax
from benchmarks import preference_files, real_data, real_language, real_report
from sail_jax import configfile
from sail_jax.errors import UserError
from sail_jax.language.data import rows as data_rows
from sail_jax.language.data import sources
from sail_jax.language.data.rows import DataRow, Message
from tests.support import small


def _rows(count):
    prompts = [(Message('user', f'question {i}'),) for i in range(count)]
    return [DataRow(prompt, chosen='yes', rejected='no') for prompt in prompts]


def test_no_prompt_is_in_two_parts():
    parts = real_data.split(_rows(9 + 21), 9)
    assert {name: len(part) for name, part in parts.items()} == {
        'held_out': 9,
        'proxy': 10,
        'gold': 10,
    }
    prompts = [row.prompt for part in parts.values() for row in part]
    assert len(set(prompts)) == len(prompts)


def test_parts_are_read_as_they_were(tmp_path):
    parts = real_data.split(_rows(9 + 4), 9)
    preference_files.write(parts, tmp_path)
    read = [data_rows.trl(row.load()) for row in sources.read(tmp_path / 'gold.jsonl')]
    assert read == parts['gold']


def test_rows_are_not_taken_for_those_of_other_data(tmp_path):
    (tmp_path / 'runs').mkdir()
    small.checkpoint(tmp_path / 'runs' / 'model')
    row = lambda turn, i: {
        key: f'\n\nHuman: {turn} {i}\n\nAssistant: {key}' for key in ('chosen', 'rejected')
    }
    for name in 'ab':
        lines = [json.dumps(row(name, i)) + '\n' for i in range(12)]
        (tmp_path / f'{name}.jsonl').write_text(''.join(lines))
    sizes = real_data.Sizes(held_out=2)

    def made(name, sizes=sizes):
        real_language.prepare(tmp_path / f'{name}.jsonl', tmp_path / 'runs', sizes)
        return (tmp_path / 'runs' / 'data' / 'gold.jsonl').read_text()

    rows = made('a')
    assert made('a') == rows
    for other in (('b',), ('a', sizes._replace(held_out=4))):
        with pytest.raises(UserError, match='data: rows of other data, or of another --scale'):
            made(*other)


@pytest.mark.parametrize('scale', real_language.SCALES)
@pytest.mark.parametrize('method', real_language.METHODS)
def test_every_method_is_a_configuration(method, scale, tmp_path):
    changes = real_language.settings(method, 1, tmp_path, real_language.SCALES[scale])
    run = sail_jax.load(real_language.ALIGN, **changes)
    assert run.seed == 1
    assert {name: source.weight for name, source in run.rewards.items()} == {'proxy': 1, 'gold': 0}
    assert run.samples_policy == (method != 'offline DPO')
    assert (run.divergence.coefficient > 0) == ('RevKL' in method)
    assert (run.objective.response_grad > 0) == ('SAIL' in method)
    assert (run.reference.refresh_prompts is not None) == ('refreshed' in method)


def test_what_is_done_at_another_scale_is_not_taken_for_this_one(tmp_path):
    cores, gpu = (real_language.SCALES[name] for name in ('cores', 'gpu'))
    for run_dir, file, done in (
        (tmp_path / 'reward-proxy', real_language.REWARD, 'model/config.json'),
        (tmp_path / 'sail' / 'seed-0', real_language.ALIGN, real_language.ASSESSED),
    ):
        changes = real_language.of_data('proxy', tmp_path, cores.data) | {'seed': 0}
        if done == real_language.ASSESSED:
            changes = real_language.settings('SAIL', 0, tmp_path, cores)
        (run_dir / done).parent.mkdir(parents=True)
        configfile.write(sail_jax.load(file, **changes), run_dir / 'config.yaml')
        (run_dir / done).touch()
    assert real_language.align('SAIL', 0, tmp_path, cores) == tmp_path / 'sail' / 'seed-0'
    real_language.train_reward('proxy', tmp_path, cores)
    for train in (
        lambda: real_language.align('SAIL', 0, tmp_path, gpu),
        lambda: real_language.train_reward('proxy', tmp_path, gpu),
    ):
        with pytest.raises(
            UserError, match=r'has a run with data\.max_prompt_tokens: 128, and not 256'
        ):
            train()


def test_shares():
    assert real_report.distinct(['a b a b', 'a b'], 2) == 2 / 4
    assert real_report.distinct(['', 'a'], 2) == 0
    assert real_report.declines(["I can't.", 'No.', "I'm SORRY", 'uncannot']) == 0.5
    assert real_report.wins([1, 2, 0], [0, 2, 1]) == pytest.approx(0.5)
    assert real_report.wins([1, 2], [0, 2]) == 0.75


def test_a_gain_is_of_the_same_prompts():
    gain, error = real_report.over([1, 5, 9], [0, 3, 9])
    assert gain == 1
    assert error == pytest.approx((1 / 3) ** 0.5, abs=1e-3)


@pytest.mark.parametrize('scale', real_language.SCALES.values(), ids=real_language.SCALES)
def test_a_response_is_scored_whole(scale):
    longest = max(scale.data.response_tokens, scale.new_tokens)
    assert scale.scored_tokens >= scale.data.prompt_tokens + longest


def test_the_table_has_ends_and_ranges():
    end = {'proxy': 0.5, 'gold': -0.25, 'win_rate_chosen': 0.5, 'win_rate_start': 0.5}
    plain = end | {'words': 9.0, 'distinct_2': 0.5}
    seeds = {seed: plain | {'curves': {'kl': [0, seed + 1.0], 'gold': [9]}} for seed in range(2)}
    results = dict.fromkeys(('chosen', 'rejected', 'start'), plain)
    table = real_report.table(results | {'methods': {'online DPO': seeds}}).splitlines()
    assert len(table) == 6
    assert '| start | 0.50 | -0.25 |' in table[4]
    assert '-0.25 (-0.25 to -0.25)' in table[5]
    assert '1.50 (1.00 to 2.00)' in table[5]
    assert np.all([line.count('|') == table[0].count('|') for line in table])


def test_methods_at_once_are_processes_after_the_one_of_the_rewards(tmp_path, monkeypatch):
    started = []

    def run(command, env, **_):
        methods = command[command.index('--methods') + 1 :]
        started.append((tuple(methods), env['XLA_PYTHON_CLIENT_MEM_FRACTION']))
        assert command[command.index('--learning-rate') + 1] == '0.0003'
        return subprocess.CompletedProcess(command, 'SAIL' in methods)

    monkeypatch.setattr(subprocess, 'run', run)
    monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
    options = argparse.Namespace(
        data=tmp_path / 'rows.jsonl',
        runs=tmp_path,
        scale='gpu',
        seeds=[0],
        learning_rate=3e-4,
        at_once=2,
        methods=['online DPO', 'offline DPO'],
    )
    real_language.at_once(options)
    assert started[0] == ((), '0.45')
    assert {methods for methods, _ in started[1:]} == {('online DPO',), ('offline DPO',)}
    options.methods.append('SAIL')
    with pytest.raises(UserError, match=r'sail failed: see .*sail\.log'):
        real_language.at_once(options)


@pytest.mark.slow
def test_the_study_of_a_tiny_model_from_its_rewards_to_its_table(tmp_path, monkeypatch):
    short = {
        'total_prompts': 8,
        'prompts_per_update': 4,
        'optimizer.accumulation': 1,
        'optimizer.warmup_updates': 1,
        'evaluation.every_updates': 1,
    }
    sizes = real_data.Sizes(prompt_tokens=32, response_tokens=8, held_out=4)
    scale = real_language.Scale(sizes, 4, 8, short, short)
    small.checkpoint(tmp_path / 'model')
    (tmp_path / 'data').mkdir()
    for name, rows in (('proxy', 8), ('gold', 8), ('held_out', 4)):
        small.data(tmp_path / 'data' / f'{name}.jsonl', rows, pairs=True)

    methods = ['online DPO', 'SAIL-RevKL, refreshed']
    arguments = (tmp_path, [0], methods, scale, tmp_path / 'out.json')
    results = real_language.study(*arguments)
    assert results['chosen']['words'] == 1.5
    ours = {name: json.loads((tmp_path / f'{name}.json').read_text()) for name in ('start',)}
    for method in methods:
        run_dir = tmp_path / real_language.slug(method) / 'seed-0'
        ours[method] = json.loads((run_dir / real_language.ASSESSED).read_text())
        got = results['methods'][method][0]
        assert len(got['curves']['gold']) == 3
        gain = np.mean(ours[method]['gold']) - np.mean(ours['start']['gold'])
        assert got['gain'] == pytest.approx(gain, abs=1e-3)
    prompts = [row.prompt for row in real_report.held_out(tmp_path)]
    rate = real_report.rater(tmp_path / 'reward-gold' / 'model', scale.scored_tokens)
    texts, gold = ours[methods[1]]['texts'], ours[methods[1]]['gold']
    np.testing.assert_allclose(rate(prompts, texts), gold, rtol=1e-5)
    assert results['gold_over_online_dpo']['online DPO'][0] == (0, 0)

    monkeypatch.setattr(sail_jax, 'train', None)
    assert real_language.study(*arguments) == results
    assert json.loads((tmp_path / 'out.json').read_text())['methods'].keys() == set(methods)
