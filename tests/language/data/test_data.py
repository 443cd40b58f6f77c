"""Data: ArrayRecord in between, bad rows, the cursor."""

import errno
import fcntl
import json
import os
import pwd
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail_jax.errors import UserError
from sail_jax.language.data import dataset, reader, records, rows, tokens
from sail_jax.language.data.dataset import Data
from sail_jax.language.data.rows import DataRow, Message
from tests.support import small
from tests.support.disk import disk_of
from tests.support.refused import message
from tests.support.tiny_tokenizer import END, IM_END, write

PLAIN = {'prompt': 'the cat', 'chosen': ' sat', 'rejected': ' said'}
STRANGE = ['\0', 'é\u2028', '👩‍🚀', '\r\nno', ' a ', '<|begin|>', '\ufeffa', 'a' * 100]
BAD = {
    b'{"prompt": "the cat", "chosen": " sat"}': 'rejected: missing; the columns are prompt, chosen',
    b'{"prompt": "the cat", "chosen": " sat", "rejected": 3}': 'rejected: expected text, got int',
    b'{"prompt": "the cat", "chosen": "", "rejected": " said"}': 'chosen: empty',
    b'{"prompt": "the cat", "chosen": "a", "rejected": "a"}': 'chosen and rejected are the same',
    b'{"prompt": "' + b'cat ' * 45 + b'", "chosen": "a", "rejected": "b"}': (
        'prompt: 47 tokens; at most 40'
    ),
    b'{"prompt": "a", "chosen": "' + b'cat ' * 30 + b'", "rejected": "b"}': (
        'chosen: 32 tokens; at most 20'
    ),
    b'{"prompt": "a", "chosen": "b", "rejected": "b<|end|>"}': (
        'chosen and rejected are the same in tokens'
    ),
    b'{"prompt": "a", "chosen": "b", "rejected": "<|end|>b"}': (
        "rejected: response: holds '<|end|>' before its end"
    ),
    b'{"prompt": "a\xff", "chosen": "b", "rejected": "c"}': 'not valid UTF-8 at byte 13',
    b'{"prompt": "a\\ud800", "chosen": "b", "rejected": "c"}': (
        'prompt: not valid UTF-8 at character 1'
    ),
    b'{"prompt": "a"': "not valid JSON: Expecting ',' delimiter at character 14",
    b'[1]': 'expected an object, got list',
}


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    return tokens.load(write(tmp_path_factory.mktemp('tokenizer')))


def settings(path, **kwargs):
    return Data(path=str(path), max_prompt_tokens=40, max_response_tokens=20, **kwargs)


def test_rows_come_back_as_they_were(tmp_path, tokenizer):
    plain = [DataRow(f'a{text}', f'b{text}'[:18], f'c{text}'[:18]) for text in STRANGE[:-1]]
    messages = (Message('system', ''), Message('user', 'no'), Message('assistant', 'yes'))
    chat = [
        DataRow((*messages, Message('user', f'a{text}')), f'b{text}'[:18], 'c')
        for text in STRANGE[:-1]
    ]
    raw = [row._asdict() for row in plain]
    for row in chat:
        answer = lambda text: [{'role': 'assistant', 'content': text}]
        prompt = [message._asdict() for message in row.prompt]
        raw.append({'prompt': prompt, 'chosen': answer(row.chosen), 'rejected': answer('c')})
    file = tmp_path / 'x.jsonl'
    file.write_text(''.join(json.dumps(row) + '\n' for row in raw))
    roomy = Data(path=str(file))
    prepared = dataset.prepare(roomy, 'preference', tokenizer, tmp_path / 'cache')
    assert [prepared[i].row for i in range(len(prepared))] == plain + chat
    for i in np.random.default_rng(0).permutation(len(prepared)):
        row, prompt, chosen, rejected = prepared[i]
        assert prompt == tokenizer.prompt_ids(row.prompt)
        assert chosen == tokenizer.response_ids(row.prompt, row.chosen)
        assert chosen[-1] == rejected[-1] == (END if i < len(plain) else IM_END)


@pytest.mark.parametrize(
    ('kind', 'expected'),
    [('prompt', DataRow('the cat')), ('completion', DataRow('the cat', ' sat'))],
)
def test_rows_with_fewer_responses(tmp_path, tokenizer, kind, expected):
    file = tmp_path / 'x.parquet'
    pq.write_table(pa.Table.from_pylist([PLAIN]), file)
    prepared = dataset.prepare(settings(file), kind, tokenizer, tmp_path / 'cache')
    assert prepared[0].row == expected
    assert prepared[0].rejected is None
    assert (prepared[0].chosen is None) == (kind == 'prompt')


def test_a_text_is_learned_as_a_whole(tmp_path, tokenizer):
    file = tmp_path / 'texts.jsonl'
    file.write_text('{"text": "the cat sat"}\n{"messages": [{"role": "user", "content": "a"}]}\n')
    data = Data(path=str(file), on_bad_row='skip')
    made = dataset.prepare(data, 'completion', tokenizer, tmp_path / 'cache')
    assert len(made) == made.skipped == 1
    assert 'chosen: missing' in made.skipped_messages[0]
    row = made[0]
    assert row.prompt + row.chosen == [*tokenizer.prompt_ids('the cat sat'), tokenizer.eos_ids[0]]
    assert len(row.prompt) == 1


@pytest.mark.parametrize(('line', 'message'), BAD.items())
def test_bad_row_is_named_by_file_and_line(tmp_path, tokenizer, line, message):
    file = tmp_path / 'x.jsonl'
    file.write_bytes(json.dumps(PLAIN).encode() + b'\n' + line + b'\n')
    with pytest.raises(UserError) as caught:
        dataset.prepare(settings(file), 'preference', tokenizer, tmp_path / 'cache')
    assert str(caught.value) == f'{file}:2: {message}'


def test_bad_rows_are_skipped_and_counted(tmp_path, tokenizer, caplog):
    file = tmp_path / 'x.jsonl'
    good = [PLAIN | {'chosen': f' {i}'} for i in range(len(BAD))]
    pairs = zip(BAD, good, strict=True)
    file.write_bytes(b'\n'.join(x for bad, row in pairs for x in (bad, json.dumps(row).encode())))
    skipping = settings(file, on_bad_row='skip')
    for _ in range(2):  # Made, then found made.
        prepared = dataset.prepare(skipping, 'preference', tokenizer, tmp_path / 'cache')
        assert [prepared[i].row.chosen for i in range(len(prepared))] == [r['chosen'] for r in good]
        assert prepared.skipped == len(BAD)
        messages = [f'{file}:{2 * i + 1}: {m}' for i, m in enumerate(BAD.values())]
        assert prepared.skipped_messages == tuple(messages[: records.KEPT_MESSAGES])
    assert f'{len(BAD)} bad rows skipped, {len(good)} kept' in caplog.text
    file.write_bytes(b'\n'.join(BAD))
    first = re.escape(f'{file}: no usable row, {len(BAD)} skipped; the first bad one: {file}:1: ')
    with pytest.raises(UserError, match=first):
        dataset.prepare(skipping, 'preference', tokenizer, tmp_path / 'cache')


@pytest.mark.parametrize('damage', [lambda old: b'', lambda old: old[: len(old) // 2]])
@pytest.mark.parametrize('name', ['dataset_info.json', 'metadata.json', '*array_record*'])
def test_damaged_rows_of_the_cache_are_one_line(tokenizer, tmp_path, name, damage):
    file = small.data(tmp_path / 'train.jsonl', pairs=True)
    cache = tmp_path / 'cache'
    dataset.prepare(settings(file), 'preference', tokenizer, cache)
    (stored,) = cache.rglob(name)
    stored.write_bytes(damage(stored.read_bytes()))
    with pytest.raises(UserError, match='delete this directory, and they are prepared again') as e:
        dataset.prepare(settings(file), 'preference', tokenizer, cache)[0]
    assert str(e.value).startswith(f'{tmp_path}/cache/')
    assert '\n' not in str(e.value)


def test_a_cache_that_takes_nothing_says_where_another_is_named(tokenizer, tmp_path):
    file = small.data(tmp_path / 'train.jsonl', pairs=True)
    with pytest.raises(UserError, match=r'^/dev/null/.*: Not a directory; .* XDG_CACHE_HOME says'):
        dataset.prepare(settings(file), 'preference', tokenizer, '/dev/null/cache')


@pytest.mark.parametrize('cache', ['', 'relative'])
def test_who_has_no_home_is_told_where_to_have_data_prepared(monkeypatch, cache):
    monkeypatch.delenv('HOME', raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', cache)

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, 'getpwuid', unknown)
    assert 'XDG_CACHE_HOME' in message(reader.cache_dir)
    monkeypatch.setenv('XDG_CACHE_HOME', '/somewhere')
    assert reader.cache_dir() == Path('/somewhere/sail_jax/data')


def test_a_full_cache_is_one_line_and_prepared_once_there_is_room(tokenizer, tmp_path):
    file = small.data(tmp_path / 'train.jsonl', pairs=True)
    prepare = lambda: dataset.prepare(settings(file), 'preference', tokenizer, tmp_path / 'cache')
    with disk_of(1000), pytest.raises(UserError, match=r'data are prepared there, or .*') as e:
        prepare()
    assert str(e.value).startswith(f'{tmp_path}/cache/')
    assert '\n' not in str(e.value)
    assert len(prepare()) == 16


def test_rows_that_are_gone_while_they_are_read_are_one_line(tokenizer, tmp_path):
    file = small.data(tmp_path / 'train.jsonl', pairs=True)
    prepared = dataset.prepare(settings(file), 'preference', tokenizer, tmp_path / 'cache')
    (stored,) = (tmp_path / 'cache').rglob('*array_record*')
    stored.write_bytes(bytes(stored.stat().st_size))
    with pytest.raises(UserError, match='prepared before cannot be read'):
        [prepared[i] for i in range(len(prepared))]


def test_changed_data_or_settings_are_prepared_anew(tmp_path, tokenizer):
    file = tmp_path / 'x.jsonl'
    file.write_text(json.dumps(PLAIN))
    cache = tmp_path / 'cache'
    first = dataset.prepare(settings(file), 'preference', tokenizer, cache)
    moved = file.rename(tmp_path / 'moved.jsonl')
    dataset.prepare(settings(moved), 'preference', tokenizer, cache)
    assert len(list(cache.iterdir())) == 1
    bare = tokens.load(write(tmp_path / 'bare', template=None))
    dataset.prepare(settings(moved), 'preference', bare, cache)
    dataset.prepare(settings(moved), 'completion', tokenizer, cache)
    assert len(list(cache.iterdir())) == 3
    moved.write_text(json.dumps(PLAIN | {'chosen': ' hello'}))
    assert dataset.prepare(settings(moved), 'preference', tokenizer, cache)[0] != first[0]
    short = settings(moved).model_copy(update={'max_prompt_tokens': 2})
    with pytest.raises(UserError, match='prompt: 3 tokens; at most 2'):
        dataset.prepare(short, 'preference', tokenizer, cache)


def test_another_process_may_be_faster_where_there_are_no_locks(tmp_path, tokenizer, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'flock', flock)
    file = tmp_path / 'x.jsonl'
    file.write_text(json.dumps(PLAIN))
    arguments = settings(file), 'preference', tokenizer, tmp_path / 'cache'
    check, inner = rows.check, []

    def check_while_another_prepares(row, kind):
        monkeypatch.setattr(rows, 'check', check)
        inner.append(dataset.prepare(*arguments))
        return check(row, kind)

    monkeypatch.setattr(rows, 'check', check_while_another_prepares)
    outer = dataset.prepare(*arguments)
    assert len(inner) == len(outer) == 1
    assert outer[0] == inner[0][0]


def test_one_of_those_that_want_the_same_records_makes_them(tmp_path, tokenizer, monkeypatch):
    file = tmp_path / 'x.jsonl'
    file.write_text(json.dumps(PLAIN))
    arguments = settings(file), 'preference', tokenizer, tmp_path / 'cache'
    check, checked, waiting = rows.check, [], threading.Event()

    def slow_check(row, kind):
        checked.append(row)
        assert waiting.wait(60)
        return check(row, kind)

    monkeypatch.setattr(rows, 'check', slow_check)
    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(dataset.prepare, *arguments) for _ in range(2)]
        while not checked:
            time.sleep(0.01)
        time.sleep(0.2)  # The other comes to the lock.
        waiting.set()
        first, second = (result.result(60) for result in results)
    assert len(checked) == 1
    assert first[0] == second[0]


def test_cache_that_cannot_be_written(tmp_path, tokenizer):
    file = tmp_path / 'x.jsonl'
    file.write_text(json.dumps(PLAIN))
    (tmp_path / 'cache').touch()
    with pytest.raises(UserError, match=r'cache/.*: Not a directory'):
        dataset.prepare(settings(file), 'preference', tokenizer, tmp_path / 'cache')


def test_nothing_is_printed(tmp_path, tokenizer, capfd):
    file = tmp_path / 'x.jsonl'
    file.write_text(json.dumps(PLAIN))
    dataset.prepare(settings(file), 'preference', tokenizer, tmp_path / 'cache')
    assert capfd.readouterr() == ('', '')


def test_every_format_has_its_converter():
    assert tuple(rows.FORMATS) == Data.model_fields['format'].annotation.__args__
    safer = rows.FORMATS['pku-safe-rlhf-safer'].convert
    assert safer.keywords == {'label': 'safer'}


def test_what_is_not_read_is_named_once_also_from_the_cache(tmp_path, tokenizer, caplog):
    file = tmp_path / 'x.jsonl'
    said = [{'images': ['cat.png'], 'margin': 0.5}, {'history': [], 'images': None}, {'score': 0}]
    file.write_text('\n'.join(json.dumps(PLAIN | more) for more in said))
    for _ in range(2):
        caplog.clear()
        made = dataset.prepare(settings(file), 'preference', tokenizer, tmp_path / 'cache')
        assert made.unread == ('images', 'margin', 'score')
        (record,) = caplog.records
        assert record.getMessage() == (
            f'{file}: not read: images, margin, score (columns of the data, and keys of their '
            'messages)'
        )


@pytest.mark.parametrize(
    ('evaluation', 'trained_on'),
    [
        ({'split': 'test'}, True),  # Of a file there are no splits.
        ({'path': '{file}'}, True),
        ({'path': '{link}'}, True),
        ({'path': '{directory}', 'split': 'train'}, True),
        ({'path': '{directory}', 'split': 'test'}, False),
        ({}, False),
    ],
)
def test_an_evaluation_on_rows_that_are_trained_on_is_told(
    tmp_path, tokenizer, caplog, evaluation, trained_on
):
    file, link = tmp_path / 'rows' / 'train.jsonl', tmp_path / 'link.jsonl'
    file.parent.mkdir()
    small.data(file, rows=8, pairs=True)
    small.data(file.with_name('test.jsonl'), rows=8, pairs=True)
    link.symlink_to(file)
    places = {'file': file, 'link': link, 'directory': file.parent}
    evaluation = {key: value.format(**places) for key, value in evaluation.items()}
    run = small.run(tmp_path, file, evaluation={'prompts': 2} | evaluation)
    reader.prepare(run, tokenizer, tmp_path / 'cache')
    assert ('on rows that are trained on too' in caplog.text) == trained_on


def test_shards_that_are_not_there_are_told(tmp_path, tokenizer, caplog):
    for name in ('train-00000-of-00003.jsonl', 'train-00002-of-00003.jsonl'):
        (tmp_path / name).write_text(json.dumps(PLAIN))
    dataset.prepare(settings(tmp_path), 'preference', tokenizer, tmp_path / 'cache')
    assert f'shards that are not there: 1, {tmp_path}/train-00001-of-00003 the first' in caplog.text


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        ({'a': 'b'}, 'prompt: missing; the columns are a'),
        ({'prompt': 'b', 'response': 'c'}, 'chosen: missing; the columns are prompt, response'),
        ({'text': 'b', 'question': 'c'}, 'question: call this column prompt'),
        (
            {'conversations': [{'role': 'user', 'content': 'x'}]},
            'prompt: missing; the columns are conversa',
        ),
    ],
)
def test_a_missing_column_is_named_beside_those_that_there_are(tmp_path, tokenizer, row, message):
    file = tmp_path / 'x.jsonl'
    file.write_text(json.dumps(row))
    with pytest.raises(UserError, match=re.escape(f'{file}:1: {message}')):
        dataset.prepare(settings(file), 'completion', tokenizer, tmp_path / 'cache')


def test_a_bad_row_names_what_else_it_says(tmp_path, tokenizer):
    file = tmp_path / 'x.jsonl'
    file.write_text(json.dumps(PLAIN | {'rejected': '', 'images': ['cat.png'], 'margin': 1}))
    with pytest.raises(UserError, match=r'rejected: empty; not read of this row: images, margin$'):
        dataset.prepare(settings(file), 'preference', tokenizer, tmp_path / 'cache')


SIZES = st.integers(1, 40)
SEEDS = st.integers(0, 2**31 - 1)


@given(SEEDS, SIZES, st.integers(0, 3))
def test_every_epoch_has_every_row_once(seed, size, epoch):
    order = dataset.indices(seed, epoch * size, size, size)
    assert sorted(order) == list(range(size))


@given(SEEDS, SIZES, st.integers(0, 100), st.integers(0, 30), st.integers(0, 30))
def test_resume_neither_repeats_nor_skips(seed, size, cursor, first, second):
    whole = dataset.indices(seed, cursor, first + second, size)
    dataset._order.cache_clear()
    rest = dataset.indices(seed, cursor + first, second, size)
    np.testing.assert_array_equal(whole[first:], rest)


def test_orders_are_of_their_seed_and_epoch_and_stay():
    orders = [tuple(dataset.indices(seed, 8 * epoch, 8, 8)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    # Golden: a library that shuffles otherwise would break resumed runs.
    assert orders[:2] == [(1, 2, 4, 5, 3, 7, 0, 6), (7, 6, 1, 4, 2, 0, 3, 5)]
