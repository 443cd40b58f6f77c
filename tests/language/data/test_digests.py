"""A run is resumed on the files that it has read, or not at all."""

import json
import os
import shutil

import pytest
from safetensors.numpy import load_file, save_file

import sail_jax
from sail_jax import files
from sail_jax.errors import UserError
from sail_jax.language.data import digests, template, tokens
from tests.support import small


@pytest.fixture
def model(tmp_path):
    return small.checkpoint(tmp_path / 'm')


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(path):
    tensors = load_file(path)
    tensors['model.norm.weight'] = tensors['model.norm.weight'] + 1e-3
    save_file(tensors, path)


CHANGES = {
    'config.json': lambda path: change_json(path, rope_theta=500.0),
    'tokenizer_config.json': lambda path: change_json(path, eos_token='<|im_end|>'),
    'generation_config.json': lambda path: path.write_text('{"eos_token_id": 1}'),
    'chat_template.jinja': lambda path: path.write_text('{{ messages[0].content }}'),
    'added_tokens.json': lambda path: path.write_text('{"<think>": 60}'),
    'model.safetensors': change_weights,
}


@pytest.mark.parametrize('name', CHANGES)
def test_changed_files_of_a_model_are_named(model, name):
    before = digests.of_model('model.path', model)
    assert digests.of_model('model.path', model) == before
    CHANGES[name](model / name)
    after = digests.of_model('model.path', model)
    assert {key for key in before if before[key] != after[key]} == {f'model.path: {name}'}


def test_every_file_that_a_tokeniser_is_made_of_counts(model):
    found = [digests.of_model('model.path', model)]
    assert {f'model.path: {name}' for name in tokens.COMPANIONS} <= found[0].keys()
    named = model / template.MORE_TEMPLATES
    named.mkdir()
    for name, text in (('tool', 'a'), ('default', 'a'), ('default', 'b')):
        (named / f'{name}.jinja').write_text(text)
        found.append(digests.of_model('model.path', model))
        before, after = found[-2:]
        assert before.keys() == after.keys()
        changed = {key for key in before if before[key] != after[key]}
        assert changed == {'model.path: additional_chat_templates'}


def test_every_run_names_what_it_reads(model, tmp_path):
    data = small.data(tmp_path / 'a.jsonl', pairs=True)
    other = small.data(tmp_path / 'b.jsonl', pairs=True)
    reward = small.checkpoint(tmp_path / 'r')
    run = small.run(
        model,
        data,
        evaluation={'path': str(other)},
        reward={'source': 'model', 'path': str(reward)},
    )
    keys = {name.split(':')[0] for name in digests.of_run(run)}
    assert keys == {'model.path', 'reward.path', 'data.path', 'evaluation.path'}
    before = digests.of_run(run)
    other.write_text(other.read_text() + '{"prompt": "x", "chosen": "y", "rejected": "z"}\n')
    after = digests.of_run(run)
    assert {key for key in before if before[key] != after[key]} == {'evaluation.path'}


def test_any_byte_of_data_and_other_weights_of_any_size(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'MAX_DIGESTED', 4096)
    monkeypatch.setattr(files, 'BLOCK', 1024)
    path = tmp_path / 'large'
    content = bytearray(os.urandom(100_000))
    path.write_bytes(content)
    whole, sampled = files.digest(path, whole=True), files.digest(path)
    for place in (0, len(content) - 1):
        content[place] ^= 1
        path.write_bytes(content)
        assert files.digest(path) != sampled
        content[place] ^= 1
    content[5000] ^= 1  # Between two blocks: seen where all of it is read.
    path.write_bytes(content)
    assert files.digest(path) == sampled
    assert files.digest(path, whole=True) != whole
    path.write_bytes(content + b'x')
    assert files.digest(path) != sampled


def test_resume_on_changed_files_is_one_line_and_goes_on_once_they_are_back(model, tmp_path):
    data, path = small.data(tmp_path / 'prompts.jsonl', rows=16), tmp_path / 'run'
    again = {'reward': small.letters, 'quiet': True}
    sail_jax.train(small.run(model, data, total_prompts=4), path, **again)
    for file, message in [
        (data, 'data.path is not what the run has read so far; put that back, or begin a new run'),
        (model / 'config.json', 'model.path: config.json is not what'),
        (model / 'chat_template.jinja', 'model.path: chat_template.jinja is not what'),
        (model / 'model.safetensors', 'model.path: model.safetensors is not what'),
    ]:
        kept = file.with_name('kept')
        shutil.copy(file, kept)
        if file == data:
            file.write_text(file.read_text().replace('the cat 0', 'the dog 0'))
        else:
            CHANGES[file.name](file)
        with pytest.raises(UserError, match=f'^{path}: {message}'):
            sail_jax.train(small.run(model, data, total_prompts=8), path, resume=True, **again)
        shutil.move(kept, file)
    result = sail_jax.train(small.run(model, data, total_prompts=8), path, resume=True, **again)
    assert result.length == 8
