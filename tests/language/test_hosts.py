"""Language runs of one, two and four real processes that share eight fake devices."""

import json
import re
import signal
import time
import zlib
from functools import cache

import jax
import numpy as np
import pytest
import yaml
from flax import nnx
from safetensors.numpy import load_file

import sail_jax
from sail_jax import configfile
from sail_jax.language.data import tokens
from sail_jax.language.model import weights
from sail_jax.language.reward import reward_model
from tests.support import api, processes, small, tiny, tiny_tokenizer
from tests.support.checkpoints import last_step, without_times
from tests.support.processes import finish

pytestmark = pytest.mark.slow

RUNS = {
    # Rows of the policy's responses and of the data's; weights within a process, and their copies.
    'full': {
        'devices': {'data': 2, 'fsdp': 2, 'tensor': 2},
        'objective': {'mixture': {'dpr': 0.5, 'dpp': 0.25}},
    },
    # Weights over all devices.
    'lora': {'devices': {'fsdp': 'auto', 'data': 1}, 'model': {'train': 'lora'}, 'group_size': 3},
    'methods': {
        'devices': {'data': 1, 'fsdp': 4, 'tensor': 2},
        'model': {'train': 'lora', 'lora': {'targets': 'all-linear', 'dropout': 0.1}},
        'reference': {'refresh_prompts': 16, 'ema': 0.5},
        'objective': {'loss': 'rebel', 'exploration': 'xpo', 'alpha': 0.01},
        # Adam gives entries whose sums cancel a full step, and blows up their last digits.
        'optimizer': {'rule': 'sgd', 'learning_rate': 0.3, 'accumulation': 2},
        'reward': {'missing_eos_penalty': 0.5},
    },
}
SFT = {
    'workload': 'sft',
    'prompts_per_update': 8,
    'devices': {'fsdp': 4},
    'optimizer': {'learning_rate': 1e-2, 'accumulation': 2},
    'evaluation': {'every_updates': 2, 'prompts': 5},
    'checkpoints': {'every_updates': 2},
    'logging': {'tensorboard': False},
}
STAGES = ('sft', 'reward')
CONFIGS = (*RUNS, *STAGES)


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp('hosts')
    small.checkpoint(path / 'model', multiple=8)
    small.data(path / 'pairs.jsonl', rows=32, pairs=True)
    a = tiny.FAMILIES['qwen2'].model_copy(
        update={'vocab_size': tokens.load(path / 'model').vocab_size}
    )
    graphdef, state = nnx.split(reward_model.RewardModel(a, rngs=nnx.Rngs(1)))
    state = jax.tree.map(lambda x: 10 * x if x.ndim > 1 else x, state)
    weights.save(nnx.merge(graphdef, state), path / 'reward')
    tiny_tokenizer.write(path / 'reward')
    for name, settings in RUNS.items():
        run = small.run(
            path / 'model',
            path / 'pairs.jsonl',
            **{
                'prompts_per_update': 8,
                'divergence': {'coefficient': 0.1},
                'reward': {'source': 'model', 'path': str(path / 'reward'), 'batch_size': 5},
                'evaluation': {'every_updates': 2, 'prompts': 5, 'samples': 2},
                **settings,
            },
        )
        if name == 'methods':
            model = {'source': 'model', 'path': str(path / 'reward'), 'weight': 2.0}
            several = {'model': model, 'mood': {'source': 'positivity'}}
            run = configfile.update(run, {'rewards': several})
        (path / f'{name}.yaml').write_text(yaml.safe_dump(json.loads(run.model_dump_json())))
    model = {'path': str(path / 'model'), 'train': 'lora'}
    pairs = {'path': str(path / 'pairs.jsonl'), 'max_prompt_tokens': 32, 'max_response_tokens': 8}
    for name in STAGES:
        run = SFT | {'workload': name, 'model': model, 'data': pairs}
        if name == 'reward':  # Which leaves its best model then.
            run['evaluation'] = SFT['evaluation'] | {'patience': 9}
        (path / f'{name}.yaml').write_text(yaml.safe_dump(run))
    return path


def start(directory, config, name, count, updates, *more, last=()):
    """Starts the processes of a run; they share 8 devices."""
    command = ['-m', 'sail_jax.cli', 'train', directory / f'{config}.yaml', '--quiet']
    command += ['--run-dir', directory / name, '--total-prompts', 8 * updates, *more]
    return processes.start(command, count, 8 // count, last=last)


def train(*arguments):
    status, printed = finish(start(*arguments))
    assert set(status) == {0}, printed
    return printed


def close(a, b):
    """Rows of the same updates, to the last digits of float32."""
    assert len(a) == len(b)
    for ours, theirs in zip(a, b, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


@pytest.fixture(scope='module')
def one(directory):
    """Five updates in one process, of each configuration that is asked for."""

    @cache
    def of(config):
        train(directory, config, f'{config}-one', 1, 5)
        return without_times(directory / f'{config}-one')

    return of


@pytest.mark.parametrize('config', CONFIGS)
def test_two_processes_have_the_metrics_of_one(directory, one, config):
    printed = train(directory, config, f'{config}-two', 2, 5)
    assert 'run directory' in printed[0]
    assert 'run directory' not in printed[1]
    ours = without_times(directory / f'{config}-two')
    close(ours, one(config))
    assert len(ours) == 6
    if config in STAGES:
        assert len({row['train/loss'] for row in ours[1:]}) == 5
        return
    assert len({row['train/preference'] for row in ours[1:]}) == 5
    assert len({row['train/reward'] for row in ours[1:]}) == 5
    assert np.ptp([row['eval/reward'] for row in ours if 'eval/reward' in row]) > 0
    table = directory / f'{config}-two' / 'samples' / '000005.md'
    assert table.read_text().count('\n') == 2 + 5


@pytest.mark.parametrize('config', CONFIGS)
def test_what_two_processes_trained_is_exported_by_one(directory, one, config):
    one(config)
    if not (directory / f'{config}-two').exists():
        train(directory, config, f'{config}-two', 2, 5)
    found = []
    for name in ('one', 'two'):
        out = sail_jax.export(directory / f'{config}-{name}', directory / f'{config}-{name}-hf')
        found.append(load_file(out / 'model.safetensors'))
    ours, theirs = found
    assert ours.keys() == theirs.keys()
    for key, x in ours.items():
        np.testing.assert_allclose(x, theirs[key], atol=1e-4, err_msg=key)
    if config == 'reward':
        best = sail_jax.export(directory / 'reward-two', directory / 'reward-best', best=True)
        theirs = load_file(best / 'model.safetensors')
    if config in STAGES:  # What the run leaves itself.
        left = load_file(directory / f'{config}-two' / 'model' / 'model.safetensors')
        tiny.assert_same_bits(left, theirs)


def test_checkpoints_go_between_one_two_and_four_processes(directory, one):
    for updates, (count, more) in enumerate(((4, []), (1, ['--resume']), (2, ['--resume'])), 2):
        train(directory, 'lora', 'moved', count, updates, *more)
    of_updates = [
        [{k: v for k, v in row.items() if k.startswith('train/')} for row in rows[1:5]]
        for rows in (without_times(directory / 'moved'), one('lora'))
    ]
    close(*of_updates)


@pytest.mark.parametrize('told', [0, 1])
def test_a_signal_to_one_process_saves_all(directory, told):
    name = f'stopped-{told}'
    started = start(directory, 'lora', name, 2, 10**6)
    while last_step(directory / name) < 2:
        assert all(process.poll() is None for process in started), finish(started)
        time.sleep(0.1)
    started[told].send_signal(signal.SIGTERM)
    status, printed = finish(started)
    assert status == [75, 75], printed
    said = [re.search(r'stopped and saved at ([\d,]+) prompts', text)[1] for text in printed]
    assert said[0] == said[1]
    step = int(said[0].replace(',', '')) // 8
    assert (directory / name / 'checkpoints' / str(step)).exists()
    train(directory, 'lora', name, 2, step + 1, '--resume')
    rows = without_times(directory / name)
    assert [row['step'] for row in rows] == list(range(step + 2))


def test_a_judge_is_asked_about_each_pair_by_one_process(directory, monkeypatch):
    monkeypatch.setenv('JUDGE_KEY', api.KEY)
    monkeypatch.setenv('NO_PROXY', '*')
    with api.running(lambda question: f'[[{"AB"[zlib.crc32(question.encode()) % 2]}]]') as server:
        judge = {'model': 'tiny', 'base_url': server.url, 'api_key_env': 'JUDGE_KEY'}
        run = small.run(
            directory / 'model',
            directory / 'pairs.jsonl',
            prompts_per_update=8,
            judge=judge | {'labels': True},
            evaluation={'every_updates': 2, 'prompts': 5},
        )
        (directory / 'judged.yaml').write_text(yaml.safe_dump(json.loads(run.model_dump_json())))
        rows, questions = [], []
        for count in (1, 2):
            server.requests.clear()
            train(directory, 'judged', f'judged-{count}', count, 2)
            rows.append(without_times(directory / f'judged-{count}'))
            asked = [request['messages'][0]['content'] for request in server.requests]
            questions.append(sorted(asked))
    close(*rows)
    assert questions[0] == questions[1]
    assert len(questions[0]) > 2 * 8  # Of two updates and the evaluations; not of equal responses.


def test_a_reward_that_fails_in_one_process_ends_all_in_one_line_each(directory):
    command = ['-m', 'tests.support.failing_reward', directory / 'full.yaml', directory / 'failed']
    status, printed = finish(processes.start(command, 2, 4))
    assert status == [2, 2], printed
    ours, theirs = ([line for line in text.splitlines() if 'sail-jax:' in line] for text in printed)
    assert ours == ['sail-jax: process 1 failed; it says why; saved at 16 prompts']
    assert theirs == ['sail-jax: failing: raised ConnectionError: no answer; saved at 16 prompts']
    assert 'Traceback' not in ''.join(printed)
    assert (directory / 'failed' / 'checkpoints' / '2').exists()


@pytest.mark.parametrize(
    ('last', 'said'),
    [
        (
            ['--optimizer.learning_rate', '0.5'],
            2 * ['optimizer.learning_rate: not the same in process 1 as in process 0'],
        ),
        (
            ['--data.path', 'none.jsonl'],
            ['process 1 failed; it says why', 'none.jsonl: No such file or directory'],
        ),
    ],
    ids=['another setting', 'no file'],
)
def test_what_is_wrong_with_one_process_ends_all_before_anything_is_written(directory, last, said):
    status, printed = finish(start(directory, 'sft', 'refused', 2, 5, last=last))
    assert status == [2, 2], printed
    for text, line in zip(printed, said, strict=True):
        assert [x for x in text.splitlines() if 'sail-jax:' in x] == [f'sail-jax: {line}']
        assert 'Traceback' not in text
    assert not (directory / 'refused').exists()


def test_each_process_reads_and_holds_its_share_of_the_weights(tmp_path):
    """On four by two devices, of which each process has a half; each part once."""
    # Of which one tensor outweighs what else a process comes to hold meanwhile.
    sizes = {'hidden_size': 1024, 'intermediate_size': 3072, 'head_dim': 256, 'vocab_size': 2**14}
    weights.save(tiny.decoder('qwen1.5', update=sizes), tmp_path / 'model')
    command = ['-m', 'tests.support.reads', tmp_path / 'model']
    status, printed = finish(processes.start(command, 2, 4))
    assert status == [0, 0], printed
    for text in printed:
        numbers = json.loads(text.splitlines()[-1])
        most = numbers['distinct'] + numbers['largest_tensor']
        assert 0 < numbers['read'] <= most
        assert numbers['distinct'] < 0.6 * numbers['file']
        assert numbers['distinct'] < numbers['held'] <= most < 0.8 * numbers['file']
