"""Models and data of the hub, and what goes there, with a stand-in for it (`tests/support/hub.py`).

The library reads its environment once, so what is tried runs in processes of its own."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub import errors

from sail_jax import hub
from sail_jax.errors import UserError
from tests.support import hub as stand_in
from tests.support import small, tiny_tokenizer
from tests.support.paths import ROOT

READS = """
import json, sys
from sail_jax import hub
from sail_jax.errors import UserError
from pathlib import Path
from sail_jax.language.data import digests, sources, tokens
from sail_jax.language.model import architecture

def tried(call):
    try:
        return call()
    except UserError as error:
        return str(error)

def rows(path):
    return [row.load() for file in sources.find(path, 'train') for row in sources.read(file)]

def names(path):
    there = hub.local(path, hub.MODEL)
    return sorted(str(file.relative_to(there)) for file in there.rglob('*') if file.is_file())

READERS = {
    'heads': lambda path: architecture.read(path).heads,
    'ids': lambda path: tokens.load(path).prompt_ids('the cat'),
    'rows': rows,
    'names': names,
    'adapter': lambda path: sorted(digests.of_adapter('adapter', Path(path))),
}
print(json.dumps([tried(lambda: READERS[what](path)) for what, path in json.loads(sys.argv[1])]))
"""
WRITES = """
import sys
from pathlib import Path
from sail_jax import hub
from sail_jax.errors import UserError
try:
    with hub.new_version(sys.argv[1], Path('.'), private=True) as directory:
        directory.mkdir()
        (directory / 'config.json').write_text('{}')
    print(hub.url(sys.argv[1]))
except UserError as error:
    print(error)
print(sorted(Path('.').iterdir()))
"""
ROWS = [{'prompt': 'the cat', 'chosen': ' sat', 'rejected': ' no'}]


@pytest.fixture
def server(tmp_path):
    """With a model, its tokeniser in it, and a data set."""
    tokenizer = tiny_tokenizer.write(tmp_path / 'tokenizer')
    files = {file.name: file.read_bytes() for file in tokenizer.iterdir()}
    sizes = {'hidden_size': 16, 'intermediate_size': 24, 'num_hidden_layers': 2, 'vocab_size': 320}
    config = {'model_type': 'llama', 'num_attention_heads': 4, **sizes}
    files |= {
        'config.json': json.dumps(config).encode(),
        'model.safetensors': b'weights',
        'original/model.safetensors': b'again',
        'pytorch_model.bin': b'once more',
    }
    lines = '\n'.join(map(json.dumps, ROWS)).encode()
    with stand_in.running() as server:
        server.repositories['models/me/base'] = files
        server.repositories['models/me/secret'] = files
        adapter = {'adapter_config.json': b'{}', 'adapter_model.safetensors': b'weights'}
        server.repositories['models/me/adapter'] = adapter
        server.private.add('models/me/secret')
        server.repositories['models/me/gguf'] = {'model.gguf': b'weights'}
        server.repositories['datasets/me/pairs'] = {'data/train.jsonl': lines, 'README.md': b'# x'}
        yield server


def run(server, script, *arguments, cwd, **environment):
    settings = {**server.environment, 'HF_HOME': str(cwd / 'home'), 'PYTHONPATH': str(ROOT)}
    settings = {k: v for k, v in os.environ.items() if not k.startswith('HF_')} | settings
    command = [sys.executable, '-c', script, *arguments]
    ended = subprocess.run(
        command, env=settings | environment, cwd=cwd, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_what_is_read_comes_from_the_hub_and_then_from_its_cache(server, tmp_path):
    def read(wanted, **environment):
        return json.loads(run(server, READS, json.dumps(wanted), cwd=tmp_path, **environment))

    wanted = [
        ('heads', 'hf://me/base'),
        ('ids', 'hf://me/base@main'),
        ('rows', 'hf://me/pairs'),
        ('rows', 'hf://datasets/me/pairs/data/train.jsonl'),
        ('names', 'hf://me/base'),
        ('adapter', 'hf://me/adapter'),
    ]
    found = read(wanted)
    ids = read([('ids', str(tmp_path / 'tokenizer'))])
    assert found[:4] == [4, *ids, ROWS, ROWS]
    assert found[5] == ['adapter: adapter_config.json', 'adapter: adapter_model.safetensors']
    weights = [name for name in found[4] if not name.endswith(('.json', '.jinja'))]
    assert weights == ['model.safetensors']
    before = len(server.requests)
    assert read(wanted[:1] + wanted[2:], HF_HUB_OFFLINE='1') == found[:1] + found[2:]
    assert len(server.requests) == before
    # As directories, with their links, too.
    caches = tmp_path / 'home/hub'
    newest = next((caches / 'datasets--me--pairs/snapshots').iterdir())
    assert (newest / 'data/train.jsonl').is_symlink()
    assert read([('rows', str(newest)), ('heads', str(caches / 'models--me--base'))]) == [ROWS, 4]


def test_what_cannot_be_had_is_one_line(server, tmp_path):
    wanted = {
        'hf://me/none': 'no such model at .*, or a private one: HF_TOKEN, or `hf auth login`',
        'hf://me/secret': 'no such model at .*, or a private one',
        'hf://me/base@v2': 'no such revision',
        'hf://me/base/inside': 'no such file there',
        'hf://me/gguf': r'none of \*.json, \*.jinja, \*.txt, \*.model there',
    }
    ask = json.dumps([('heads', address) for address in wanted])
    for address, (said, message) in zip(
        wanted,
        zip(json.loads(run(server, READS, ask, cwd=tmp_path)), wanted.values(), strict=True),
        strict=True,
    ):
        assert said.startswith(f'{address}: ')
        assert '\n' not in said
        assert re.search(message, said), said
    secret = json.dumps([('heads', 'hf://me/secret')])
    assert run(server, READS, secret, cwd=tmp_path, HF_TOKEN=stand_in.TOKEN) == '[4]\n'
    for environment, message in (
        ({'HF_TOKEN': 'hf_wrong'}, r'does not know you: HF_TOKEN'),
        ({'HF_HUB_OFFLINE': '1'}, r'not in the cache, and HF_HUB_OFFLINE is set'),
        (
            {'HF_ENDPOINT': 'http://127.0.0.1:9'},
            r'not in the cache, and no connection \(http://127',
        ),
    ):
        ask = json.dumps([('heads', 'hf://me/other')])
        [said] = json.loads(run(server, READS, ask, cwd=tmp_path, **environment))
        assert '\n' not in said
        assert re.search(f'^hf://me/other: .*{message}', said), said


@pytest.mark.parametrize('status', [429, 500])
def test_a_hub_that_answers_is_not_called_unreachable(status):
    """The library says the same of both, and tries again for half a minute before."""
    httpx = pytest.importorskip('httpx')  # What the library's newer versions speak HTTP with.
    response = httpx.Response(status, request=httpx.Request('HEAD', 'https://hub'))
    error = errors.LocalEntryNotFoundError('not there')
    error.__cause__ = errors.HfHubHTTPError('broken', response=response)
    reason = hub._reason(error, hub.parse('hf://me/it'))
    assert reason.startswith(f'not in the cache, and it answers with status {status} (')


def test_a_hub_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(hub, 'ANSWER_S', 0.1)
    with socket.create_server(('127.0.0.1', 0)) as silent:
        url = f'http://127.0.0.1:{silent.getsockname()[1]}'
        with (
            pytest.raises(UserError, match=r'hf://me/it: .*timed out'),
            hub._named(hub.parse('hf://me/it')),
        ):
            huggingface_hub.get_session().get(url, timeout=None)


def test_a_model_is_uploaded_whole_by_whoever_may(server, tmp_path):
    write = lambda address, **env: run(server, WRITES, address, cwd=tmp_path, **env).splitlines()
    [said, left] = write('hf://me/new', HF_TOKEN=stand_in.TOKEN)
    assert said == f'{server.environment["HF_ENDPOINT"]}/me/new'
    assert server.repositories['models/me/new'] == {'config.json': b'{}'}
    assert 'models/me/new' in server.private
    assert '.upload-' not in left
    before = {'config.json': b'', 'model.safetensors': b'', 'tokenizer.json': b'', 'LICENSE': b''}
    server.repositories['models/me/new'] = before
    write('hf://me/new', HF_TOKEN=stand_in.TOKEN)
    assert server.repositories['models/me/new'] == {'config.json': b'{}', 'LICENSE': b''}
    for token, message in (
        ('hf_wrong', 'does not know you: HF_TOKEN'),
        (stand_in.READ_ONLY, 'your token may not do that'),
    ):
        [said, _] = write('hf://me/more', HF_TOKEN=token)
        assert message in said
    [said, _] = write('hf://me/more')
    assert said.startswith('hf://me/more: ')
    assert 'HF_TOKEN' in said
    [said, _] = write('hf://me/more@v2')
    assert said == 'hf://me/more@v2: expected hf://OWNER/NAME alone, which is written as a whole'
    assert 'models/me/more' not in server.repositories


@pytest.mark.slow
def test_a_run_begins_on_the_hub_and_ends_there(server, tmp_path):
    model = small.checkpoint(tmp_path / 'model')
    pairs = small.data(tmp_path / 'pairs.jsonl', pairs=True).read_bytes()
    server.repositories['models/me/base'] = {f.name: f.read_bytes() for f in model.iterdir()}
    server.repositories['datasets/me/pairs'] = {'train.jsonl': pairs}
    (tmp_path / 'config.yaml').write_text(CONFIG)

    def command(*words, **environment):
        arguments = ('import sys; from sail_jax.cli import main; sys.exit(main())', *words)
        return run(server, *arguments, cwd=tmp_path, **environment)

    command('train', 'config.yaml', '--run-dir', 'run', '--quiet')
    [url] = command('export', 'run', 'hf://me/tuned', HF_TOKEN=stand_in.TOKEN).splitlines()
    assert url.endswith('/me/tuned')
    uploaded = server.repositories['models/me/tuned']
    assert {'README.md', 'config.json', 'model.safetensors', 'tokenizer.json'} <= uploaded.keys()
    card = uploaded['README.md'].decode()
    metadata = yaml.safe_load(card.split('---')[1])
    assert metadata['base_model'] == 'me/base'
    assert metadata['datasets'] == ['me/pairs']
    last = json.loads((tmp_path / 'run/metrics.jsonl').read_text().splitlines()[-1])
    assert f'| loss | {last["eval/loss"]:.4g} |' in card
    assert 'total_prompts: 8' in card
    assert 'path: hf://me/base' in card
    again = command('generate', 'hf://me/tuned', 'the cat', '--max-tokens', '4')
    assert again == command('generate', 'run', 'the cat', '--max-tokens', '4', HF_HUB_OFFLINE='1')


CONFIG = """
workload: sft
total_prompts: 8
prompts_per_update: 4
model: {path: 'hf://me/base'}
data: {path: 'hf://datasets/me/pairs', max_prompt_tokens: 32, max_response_tokens: 8}
evaluation: {every_updates: 1, prompts: 4}
logging: {tensorboard: false}
"""


@pytest.mark.parametrize(
    ('text', 'kind', 'expected'),
    [
        ('hf://me/it', 'model', ('model', 'me/it', None, '')),
        ('hf:/me/it', 'dataset', ('dataset', 'me/it', None, '')),
        ('hf://models/me/it.v2@main/', 'model', ('model', 'me/it.v2', 'main', '')),
        ('hf://datasets/me/it@1.0/a/b.jsonl', 'dataset', ('dataset', 'me/it', '1.0', 'a/b.jsonl')),
        ('hf://me/it@refs/pr/1/a', 'model', ('model', 'me/it', 'refs/pr/1', 'a')),
        (
            'hf://datasets/me/it@refs/convert/parquet',
            'dataset',
            ('dataset', 'me/it', 'refs/convert/parquet', ''),
        ),
        ('hf://datasets/me/it', 'model', 'a dataset of the hub; expected a model'),
        ('hf://it', 'model', 'expected hf://OWNER/NAME'),
        ('hf://me/it/../x', 'model', 'expected hf://OWNER/NAME'),
        ('hf://me/it@', 'model', 'expected hf://OWNER/NAME'),
        ('hf://', 'model', 'expected hf://OWNER/NAME'),
    ],
)
def test_addresses(text, kind, expected):
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            hub.parse(text, kind)
        return
    address = hub.parse(Path(text), kind)
    assert address == hub.parse(text, kind) == expected
    assert hub.parse(str(address), kind) == address
