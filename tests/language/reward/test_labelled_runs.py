"""Whole runs labelled by a reward model's checkpoint, and by a judge."""

import re

import jax
import numpy as np
import pytest
from flax import nnx

import sail_jax
from sail_jax.errors import UserError
from sail_jax.language.data import tokens
from sail_jax.language.model import weights
from sail_jax.language.reward import reward_model
from sail_jax.training import metrics
from tests.support import api, small, tiny, tiny_tokenizer


@pytest.fixture(scope='module')
def train(tmp_path_factory):
    """`(name, settings, labellers) -> result, rows of metrics` of four updates."""
    path = tmp_path_factory.mktemp('labelled')
    model = small.checkpoint(path / 'model')
    prompts = small.data(path / 'prompts.jsonl', rows=24)

    def run(name, settings, **labellers):
        made = small.run(model, prompts, evaluation={'every_updates': 4, 'prompts': 4}, **settings)
        result = sail_jax.train(made, path / name, quiet=True, **labellers)
        return result, metrics.read_rows(path / name / 'metrics.jsonl')

    return run


def equal(a, b) -> bool:
    return all(map(np.array_equal, *map(jax.tree.leaves, (a.policy.params, b.policy.params))))


def test_checkpoint_of_a_reward_model_labels_as_its_function_does(train, tmp_path):
    tokenizer = tokens.load(tiny_tokenizer.write(tmp_path / 'tokenizer'))
    a = tiny.FAMILIES['qwen2'].model_copy(update={'vocab_size': tokenizer.vocab_size})
    graphdef, state = nnx.split(reward_model.RewardModel(a, rngs=nnx.Rngs(1)))
    state = jax.tree.map(lambda x: 10 * x if x.ndim > 1 else x, state)
    path = weights.save(nnx.merge(graphdef, state), tmp_path / 'reward')
    tiny_tokenizer.write(path)

    settings = {'reward': {'source': 'model', 'path': str(path), 'max_tokens': 128}}
    by_checkpoint, rows = train('checkpoint', settings)
    function = reward_model.from_model(reward_model.load(path), tokens.load(path), 128)
    by_function, _ = train('function', {}, reward=function)
    turned, _ = train('turned', {}, reward=lambda *args: -function(*args))
    assert equal(by_checkpoint, by_function)
    assert not equal(by_checkpoint, turned)
    assert all(np.isfinite(row['train/reward']) for row in rows[1:])
    assert by_checkpoint.after['eval/reward_se'] > 0


@pytest.mark.slow
def test_an_ensemble_labels_as_the_function_of_its_members_does(train, tmp_path):
    """Two models, one with two heads, by the smallest reward; cut off responses are punished."""
    tokenizer = tokens.load(tiny_tokenizer.write(tmp_path / 'tokenizer'))
    a = tiny.FAMILIES['qwen2'].model_copy(update={'vocab_size': tokenizer.vocab_size})
    paths = []
    for heads in (1, 2):
        model = reward_model.RewardModel(a, rngs=nnx.Rngs(heads), heads=heads)
        graphdef, state = nnx.split(model)
        state = jax.tree.map(lambda x: 10 * x if x.ndim > 1 else x, state)
        paths.append(weights.save(nnx.merge(graphdef, state), tmp_path / f'{heads}'))
        tiny_tokenizer.write(paths[-1])
    members = [
        reward_model.from_model(reward_model.load(path), tokens.load(path), 128) for path in paths
    ]
    common = {'max_tokens': 128, 'missing_eos_penalty': 0.5}
    of_models = {'source': 'model', 'path': [*map(str, paths)], 'aggregate': 'minimum'}
    by_models, rows = train('ensemble', {'reward': common | of_models})
    smallest = lambda *args: np.column_stack([member(*args) for member in members]).min(1)
    by_function, plain = train('smallest', {'reward': common}, reward=smallest)
    assert equal(by_models, by_function)
    assert rows[-1]['train/reward'] == pytest.approx(plain[-1]['train/reward'])
    assert rows[-1]['train/reward_spread'] > 0
    assert by_models.after['eval/reward_spread'] > 0
    assert 'train/reward_spread' not in plain[-1]


@pytest.mark.slow
def test_judge_labels_as_the_reward_that_it_goes_by(train):
    def judge(prompts, pairs):
        scores = [small.letters(prompts, side) for side in zip(*pairs, strict=True)]
        return [0.5 + 0.5 * np.sign(a - b) for a, b in zip(*scores, strict=True)]

    by_judge, rows = train('judge', {}, judge=judge)
    by_reward, _ = train('reward', {}, reward=small.letters)
    assert equal(by_judge, by_reward)
    assert by_judge.labels == by_reward.labels == 16
    assert 'train/reward' not in rows[-1]
    assert by_judge.before['eval/win_rate'] == 0.5


@pytest.mark.slow
def test_a_judge_behind_an_api_labels_as_a_reward_does(train, monkeypatch, tmp_path_factory):
    """And leaves its key nowhere in the run's directory."""

    def say(question):
        a, b = re.findall(r'\[Answer [AB]\]\n(.*?)\n\[End of answer', question, re.DOTALL)
        ours, theirs = small.letters([], [a, b])
        return f'[[{"C" if ours == theirs else "A" if ours > theirs else "B"}]]'

    monkeypatch.setenv('OPENAI_API_KEY', api.KEY)
    monkeypatch.setenv('NO_PROXY', '*')
    with api.running(say) as server:
        judge = {'model': 'tiny', 'base_url': server.url, 'labels': True}
        by_api, rows = train('api', {'judge': judge})
    by_reward, _ = train('same', {}, reward=small.letters)
    assert equal(by_api, by_reward)
    assert rows[-1]['train/no_verdict'] == by_api.after['eval/no_verdict'] == 0
    [run_dir] = tmp_path_factory.getbasetemp().glob('labelled[0-9]*/api')
    for file in run_dir.rglob('*'):
        assert file.is_dir() or api.KEY.encode() not in file.read_bytes()
    assert 'OPENAI_API_KEY' in (run_dir / 'config.yaml').read_text()


def test_a_judge_that_fails_within_a_run_saves_the_state(train):
    calls = []

    def failing(prompts, pairs):
        calls.append(len(pairs))
        if len(calls) == 4:
            raise ConnectionError('no answer')
        return [0.5] * len(pairs)

    with pytest.raises(UserError, match=r'failing: raised ConnectionError: no answer; saved at'):
        train('failing', {}, judge=failing)
