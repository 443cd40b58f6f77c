"""The data of the paper's language runs: which pair of four completions, which part."""

import argparse
import json

import numpy as np
import pytest

from benchmarks import kept, paper_data, paper_language, preference_files
from sail_jax import configfile, runs
from sail_jax.errors import UserError
from sail_jax.language.data.rows import FORMATS, unread


def _completions(*scores):
    return [{'response': f'r{i}', 'overall_score': s, 'model': 'm'} for i, s in enumerate(scores)]


@pytest.mark.parametrize(
    ('scores', 'pair'),
    [((7, 8.5, 2, 2), ('r1', 'r2')), ((3, 3, 1), ('r0', 'r2')), ((5, 5), None), ((), None)],
)
def test_the_best_and_the_worst_completion_are_the_pair(scores, pair):
    row = paper_data.u10({'instruction': 'Why?', 'completions': _completions(*scores)})
    assert (row and (row.chosen, row.rejected)) == pair
    assert row is None or row.prompt == '[INST] Why? [/INST]'


def test_braces_of_an_instruction_stay():
    row = paper_data.u10({'instruction': '{x} {0}', 'completions': _completions(1, 2)})
    assert row is not None
    assert row.prompt == '[INST] {x} {0} [/INST]'


def test_another_data_set_is_refused():
    with pytest.raises(UserError, match='no row of openbmb/UltraFeedback'):
        paper_data.u10({'prompt': 'a', 'chosen': 'b'})


def test_a_safe_rlhf_pair_is_by_the_more_helpful_response():
    raw = {'prompt': 'Q', 'response_0': 'a', 'response_1': 'b', 'better_response_id': 1}
    row = paper_data.pp10({**raw, 'safer_response_id': 0})
    assert row is not None
    assert row[:3] == ('Human: Q Assistant:', 'b', 'a')
    assert paper_data.pp10({**raw, 'response_1': 'a'}) is None


@pytest.mark.parametrize('rows', [1, 9_993, 10_000])
def test_every_row_is_in_one_part(rows):
    train, test = paper_data.split(rows)
    assert sorted([*train, *test]) == list(range(rows))
    assert len(test) == int(np.ceil(rows * 0.2))


def test_the_parts_are_those_of_datasets():
    # datasets 5.2.0: Dataset.from_dict({'x': range(20)}).train_test_split(test_size=0.2, seed=42)
    train, test = paper_data.split(20)
    assert list(test) == [15, 9, 14, 7]
    assert list(train) == [12, 10, 6, 19, 3, 0, 16, 5, 11, 18, 2, 4, 17, 1, 13, 8]


def test_files_are_converted(tmp_path):
    raws = [{'instruction': str(i), 'completions': _completions(i % 3, 1)} for i in range(20)]
    (tmp_path / 'raw.jsonl').write_text('\n'.join(map(json.dumps, raws)))
    parts = paper_data.convert('u10', paper_data.read([tmp_path / 'raw.jsonl']))
    preference_files.write(parts, tmp_path / 'u10')
    lines = (tmp_path / 'u10' / 'test.jsonl').read_text().splitlines()
    assert [json.loads(line)['prompt'] for line in lines] == [row.prompt for row in parts['test']]
    columns = FORMATS['trl'].columns
    assert not any(unread(json.loads(line), columns) for line in lines)
    # A third of the rows has twice the same score.
    assert sum(map(len, parts.values())) == len([i for i in range(20) if i % 3 != 1])


@pytest.mark.parametrize('name', ['u10', 'pp10'])
@pytest.mark.parametrize('stage', list(paper_language.SMALL))
def test_what_the_protocol_tells_a_stage_are_its_settings(name, stage, tmp_path):
    options = argparse.Namespace(
        scale='small', data=tmp_path, runs=tmp_path / 'runs', model=tmp_path, reward=None
    )
    told = paper_language.settings(stage, options)
    run = runs.load(paper_language.CONFIGS / f'{name}-{stage}.yaml')
    assert told.keys() <= configfile.flatten(run).keys()
    assert (told['model.path'] == tmp_path) is (stage == paper_language.SFT)
    assert run.updates == (1250 if stage == paper_language.SFT else 100)
    words = [f'--{key}={value}' for key, value in told.items()]
    small = configfile.override(run, words, 'paper_language', '')
    configfile.write(small, tmp_path / 'config.yaml')
    kept.require_same(small, tmp_path)
    with pytest.raises(UserError, match=r'has a run with .*; name another directory'):
        kept.require_same(run, tmp_path)


def test_the_protocols_table_has_the_start_and_the_end_of_each_method():
    ends = [{'reward': 0.25, 'pair_margin': 1.0}, {'reward': 0.5}]
    methods = {
        name: {'start': {'reward': 0.125}, 'end': end}
        for name, end in zip(('dpo', 'dpr'), ends, strict=True)
    }
    lines = paper_language.table(methods).splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    assert [row[:2] for row in cells[2:]] == [
        ['start', '0.125'],
        ['offline DPO', '0.250'],
        ['SAIL-DPR', '0.500'],
    ]
    assert len({len(row) for row in cells}) == 1
