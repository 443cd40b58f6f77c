"""Tokenisers that panic, hang, allocate or lie: one line each, never a traceback, a hang or an id
that transformers does not have, and the next one is served as if nothing had been."""

import base64
import json
import random
from functools import partial

import pytest
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors

from sail_jax.errors import UserError
from sail_jax.language.data import sandbox, tokens
from sail_jax.language.data.rows import Message
from tests.support import sandboxes
from tests.support.tiny_tokenizer import backend, write

TURN = (Message('user', 'what a cat'),)
TEXTS = (
    'the cat sat',
    'é 中文 🙂\u200d\n\t  x',
    'a' * 3000 + '!',
    '\ud800',
    '0.5 <unk> [UNK]',
    'zz€zz',
)


@pytest.fixture(autouse=True)
def less(monkeypatch):
    yield from sandboxes.bounded(monkeypatch, seconds=0.3)


def attempt(path, content, config=None):
    """Everything that asks a tokeniser; the lines that refuse something."""
    write(path, config, template='{% for m in messages %}{{ m.content }}{% endfor %}')
    (path / 'tokenizer.json').write_bytes(
        content if isinstance(content, bytes) else json.dumps(content).encode()
    )
    ask, ids = partial(sandboxes.ask, lines := [], longest=600), []
    tokenizer = ask(tokens.load, path)
    for text in TEXTS if tokenizer else ():
        ids += ask(tokenizer.prompt_ids, text) or []
        ask(tokenizer.response_ids, TURN, text)
        ask(tokenizer.scored_ids, text, text)
    if tokenizer:
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert isinstance(ask(tokenizer.text, [*ids, 3, 2**31]) or '', str)
    return lines


def state(**parts):
    """The tiny tokeniser's JSON with other parts."""
    tokenizer = backend()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return json.loads(tokenizer.to_str())


def model(kind, **fields):
    added = [
        {
            'id': i,
            'content': content,
            'special': True,
            'single_word': False,
            'lstrip': False,
            'rstrip': False,
            'normalized': False,
        }
        for i, content in enumerate(['<|begin|>', '<|end|>'])
    ]
    whole = dict.fromkeys(('normalizer', 'pre_tokenizer', 'post_processor', 'decoder'))
    return whole | {'version': '1.0', 'added_tokens': added, 'model': {'type': kind} | fields}


VOCAB = {'<|begin|>': 0, '<|end|>': 1, 'a': 2, 'the': 3}
PAIRS = [[token, -1.0] for token in VOCAB]
DOUBLE = normalizers.Sequence([normalizers.Replace('€', '€€')] * 45)
PRECOMPILED = base64.b64encode(b'\xff' * 40).decode()
# Each refuses some text, or everything.
BROKEN = {
    'WordLevel without unk': model('WordLevel', vocab=VOCAB, unk_token='[UNK]'),
    'WordPiece without unk': model(
        'WordPiece',
        vocab=VOCAB,
        unk_token='[UNK]',
        continuing_subword_prefix='##',
        max_input_chars_per_word=100,
    ),
    'Unigram without unk': model('Unigram', vocab=PAIRS, unk_id=None),
    'Unigram unk beyond': model('Unigram', vocab=PAIRS, unk_id=99),
    'Unigram empty': model('Unigram', vocab=[], unk_id=0),
    'precompiled': state() | {
        'normalizer': {'type': 'Precompiled', 'precompiled_charsmap': PRECOMPILED}
    },
    'precompiled empty': state() | {
        'normalizer': {'type': 'Precompiled', 'precompiled_charsmap': ''}
    },
    'precompiled short': state() | {
        'normalizer': {'type': 'Precompiled', 'precompiled_charsmap': 'AQAAAA=='}
    },
    'replace nothing': state(normalizer=normalizers.Replace('', 'x')),
    'regex of exponents': state(
        pre_tokenizer=pre_tokenizers.Split(Regex('(a+)+$'), 'isolated')
    ),
    'regex of words': state(
        pre_tokenizer=pre_tokenizers.Split(Regex(r'(\w+\s?)+:'), 'isolated')
    ),
    'regex in a normalizer': state(
        normalizer=normalizers.Replace(Regex('(a*)*$'), 'x')
    ),
    'regex unclosed': state() | {
        'pre_tokenizer': {
            'type': 'Split', 'pattern': {'Regex': '('}, 'behavior': 'Isolated', 'invert': False
        }
    },
    'doubling on a rare letter': state(normalizer=DOUBLE),
    'doubling in the decoder': state(
        decoder=decoders.Sequence([decoders.ByteLevel()] + [decoders.Replace('t', 'tt')] * 45)
    ),
    'prepend much': state(
        normalizer=normalizers.Sequence([normalizers.Prepend('x' * 3000)] * 500)
    ),
    'no model': {k: v for k, v in state().items() if k != 'model'},
    'model of another kind': state() | {'model': {'type': 'Nothing'}},
    'model null': state() | {'model': None},
    'vocab list': state() | {'model': {'type': 'BPE', 'vocab': [], 'merges': []}},
    'merge of nothing': state() | {'model': {'type': 'BPE', 'vocab': {'a': 0}, 'merges': ['a b']}},
    'id negative': state() | {'model': {'type': 'BPE', 'vocab': {'a': -1}, 'merges': []}},
    'id too large': state() | {'model': {'type': 'BPE', 'vocab': {'a': 2**32}, 'merges': []}},
    'dropout': state() | {'model': state()['model'] | {'dropout': 0.3}},
    'dropout of one': state() | {'model': state()['model'] | {'dropout': 1.0}},
    'dropout beyond': state() | {'model': state()['model'] | {'dropout': 7}},
    'processor of unknown tokens': state() | {
        'post_processor': {
            'type': 'TemplateProcessing',
            'single': [{'SpecialToken': {'id': 'x', 'type_id': 0}}],
            'pair': [],
            'special_tokens': {},
        }
    },
    'empty': b'',
    'no JSON': b'{',
    'not UTF-8': b'\xff\xfe',
    'zeros': bytes(5000),
    'deep': b'[' * 100000,
    'number': b'3',
    'list': b'[]',
    'surrogate': b'{"version": "\\ud800"}',
    'LFS pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n',
    'HTML': b'<!DOCTYPE html><html></html>',
}  # fmt: skip
# Odd, and sound.
ODD = {
    'token of another id': state() | {
        'added_tokens': [dict(state()['added_tokens'][0], id=7, content='<new>')]
    },
    'no steps': state(pre_tokenizer=None, decoder=None, post_processor=None),
    'added token of nothing': state() | {
        'added_tokens': [*state()['added_tokens'], dict(state()['added_tokens'][0], content='')]
    },
    'many affixes': state(
        post_processor=processors.TemplateProcessing(
            single=' '.join(['<|begin|>'] * 500) + ' $A <|end|>',
            special_tokens=[('<|begin|>', 0), ('<|end|>', 1)],
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', BROKEN)
def test_broken_is_one_line(tmp_path, name):
    refused = attempt(tmp_path, BROKEN[name])
    assert any('tokenizer.json' in line for line in refused)
    assert not all('not valid UTF-8' in line for line in refused)


@pytest.mark.parametrize('name', ODD)
def test_odd_is_sound(tmp_path, name):
    refused = attempt(tmp_path, ODD[name])
    assert all('not valid UTF-8' in line or 'before its end' in line for line in refused)


def test_damaged_files(tmp_path):
    """Cut, flipped, doubled: what is taken still encodes, and what is not is one line."""
    whole, rng = json.dumps(state()).encode(), random.Random(0)
    for _ in range(60):
        content = bytearray(whole)
        place = rng.randrange(len(content))
        match rng.randrange(3):
            case 0:
                del content[place : place + rng.randrange(1, 400)]
            case 1:
                content[place] = rng.randrange(256)
            case 2:
                content[place:place] = content[place : place + rng.randrange(1, 400)]
        attempt(tmp_path, bytes(content))
    assert not [line for line in attempt(tmp_path, state()) if 'not valid UTF-8' not in line]


VALUES = (None, True, -1, 2**40, 0.5, '', 'x', '\ud800', [], {}, ['x'], {'content': 'x'}, 'é' * 999)


def test_damaged_settings(tmp_path):
    """Any value in the place of any other."""
    keys = (
        'bos_token',
        'eos_token',
        'image_token',
        'added_tokens_decoder',
        'additional_special_tokens',
        'extra_special_tokens',
        'split_special_tokens',
        'clean_up_tokenization_spaces',
        'chat_template',
    )
    for key in keys:
        for value in VALUES:
            attempt(tmp_path, state(), {key: value})


def test_damaged_parts(tmp_path):
    """Any value in the place of any part of tokenizer.json."""
    for key in state():
        for value in (*VALUES[:-1], {'type': 'Sequence'}, {'type': 'BPE'}, {'type': 'ByteLevel'}):
            attempt(tmp_path, state() | {key: value})


def test_a_process_that_is_gone_is_begun_again(tmp_path):
    tokenizer = tokens.load(write(tmp_path))
    ids = tokenizer.prompt_ids('the cat')
    sandbox.stop()
    assert tokenizer.prompt_ids('the cat') == ids
    sandbox._process._child.kill()
    with pytest.raises(UserError, match=r'tokenizer.json: its process was ended by SIGKILL'):
        tokenizer.prompt_ids('the cat')
    assert tokenizer.prompt_ids('the cat') == ids
    for other in range(12):  # More than are held at once.
        tokens.load(write(tmp_path / str(other), template=f'{other}'))
    assert tokenizer.prompt_ids('the cat') == ids


TALKATIVE = """
import os, runpy, sys
answers = runpy.run_path({path!r})
main = answers['main']
main.__globals__['answer'] = lambda line, cache: os.write(1, b'holes!\\n') and {{'value': 7}}
memory, *limits = map(float, sys.argv[1:])
main(int(memory), *limits)
"""


def test_what_a_library_prints_is_no_reply(monkeypatch, tmp_path):
    script = tmp_path / 'talkative.py'
    script.write_text(TALKATIVE.format(path=sandbox.sandboxed.__file__))
    monkeypatch.setattr(sandbox.sandboxed, '__file__', str(script))
    assert [sandbox.load('key')[1] for _ in range(3)] == [7, 7, 7]
