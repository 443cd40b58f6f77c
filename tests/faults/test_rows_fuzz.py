"""Data files and rows of all forms, mutated: a usable row or one line."""

import json
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from sail_jax.errors import UserError
from sail_jax.language.data import rows, sources, turns

USER = {'role': 'user', 'content': 'Which?'}
THIS, THAT = ({'role': 'assistant', 'content': text} for text in ('this', 'that'))
SOUND = [
    {'prompt': 'Which?', 'chosen': 'this', 'rejected': 'that', 'system': 'Be.'},
    {'prompt': [USER], 'chosen': [THIS], 'rejected': [THAT], 'system': 'Be.'},
    {'prompt': 'Which?', 'chosen': [USER, THIS], 'rejected': [USER, THAT]},
    {'chosen': [USER, THIS], 'rejected': [USER, THAT], 'system': '', 'images': ['a.png']},
    {'question': 'Which?', 'chosen': 'this', 'rejected': 'that', 'history': [['a', 'b']]},
    {'prompt': [{'role': 'user', 'content': [{'type': 'text', 'text': 'Which?'}]}],
     'chosen': [THIS | {'reasoning_content': 'hm'}], 'rejected': [THAT], 'margin': 0.5},
]  # fmt: skip
VALUES = ['', ' ', 'x', '\ud800', '\x1b[2J', None, True, 0, -1, 1e400, [], {}, [None], [[]],
          [USER], [THIS], [USER, THIS], [{'role': 'system', 'content': 'No.'}],
          [{'role': 'user', 'content': [{'type': 'image'}]}], {'content': [1]}]  # fmt: skip
KEYS = ['prompt', 'chosen', 'rejected', 'completion', 'system', 'tools', 'label', 'question',
        'Input', 'images', 'messages', '', 'a' * 300]  # fmt: skip
CARD = (
    '---\nconfigs:\n- config_name: a\n  data_files:\n  - split: train\n    path: x/*.jsonl\n---\n'
)


def mutated(rng: random.Random) -> dict:
    row = json.loads(json.dumps(rng.choice(SOUND)))
    for _ in range(rng.randrange(4)):
        key = rng.choice([*row, *KEYS])
        if rng.random() < 0.3:
            row.pop(key, None)
        else:
            row[key] = rng.choice(VALUES)
    return row


def changed(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.randbytes(rng.randrange(4)) + data[at + rng.randrange(4) :]
    return data


def one_line_or(read) -> None:
    try:
        read()
    except UserError as error:
        message = str(error)
        assert '\n' not in message
        assert len(message) < 600


@settings(max_examples=1000)
@given(seed=st.integers(0, 2**32))
def test_rows_are_usable_or_one_line(seed):
    rng = random.Random(seed)
    form = rows.FORMATS[rng.choice(list(rows.FORMATS))]
    raw, kind = mutated(rng), rng.choice(['prompt', 'completion', 'preference'])

    def read():
        row = rows.check(form.convert(raw), kind)
        assert row.prompt or row.is_text
        assert isinstance(row.prompt, str) or row.prompt[-1].role != 'assistant'
        if turns.says(raw.get('system')) and 'system' in form.columns:
            conversation = row.prompt if isinstance(row.prompt, str) else turns.told(row.prompt)[1]
            assert conversation[0] == rows.Message('system', raw['system'])

    assert all(isinstance(name, str) for name in rows.unread(raw, form.columns))
    one_line_or(read)


@settings(max_examples=400)
@given(seed=st.integers(0, 2**32))
def test_files_are_read_or_one_line(tmp_path_factory, seed):
    rng = random.Random(seed)
    table = [mutated(rng) for _ in range(3)]
    text = json.dumps(table) if rng.random() < 0.5 else '\n'.join(map(json.dumps, table))
    path = tmp_path_factory.getbasetemp() / rng.choice(['rows.json', 'rows.jsonl'])
    path.write_bytes(rng.choice([b'', b'\xef\xbb\xbf', b'\xff\xfe']) + changed(text.encode(), rng))

    def read():
        for file in sources.find(path, 'train'):
            for located in sources.read(file):
                one_line_or(located.load)

    one_line_or(read)


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32))
def test_cards_name_files_or_one_line(tmp_path_factory, seed):
    rng = random.Random(seed)
    path = tmp_path_factory.getbasetemp() / 'directory'
    (path / 'x').mkdir(parents=True, exist_ok=True)
    (path / 'x' / 'part.jsonl').write_text('{}')
    (path / 'README.md').write_bytes(changed(CARD.encode(), rng))

    def read():
        for file in sources.find(path, 'train'):
            assert file.resolve().is_relative_to(path.resolve())

    one_line_or(read)
