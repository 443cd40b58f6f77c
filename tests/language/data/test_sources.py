"""Sources: rows out of files, each with its place."""

import bz2
import gzip
import json
import lzma
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail_jax.errors import UserError
from sail_jax.language.data import rows, sources

ROWS = [{'prompt': f'p{i}', 'chosen': 'é', 'rejected': None} for i in range(5)]
LINES = ''.join(json.dumps(row) + '\n' for row in ROWS).encode()


def read(path, split='train'):
    located = [located for file in sources.find(path, split) for located in sources.read(file)]
    return [item.where for item in located], [item.load() for item in located]


def write_arrow(path, table, new=pa.ipc.new_stream):
    with pa.OSFile(str(path), 'wb') as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def lines(path, *names):
    """Files of the same rows."""
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(LINES)


def test_json_lines_by_line_number(tmp_path):
    file = tmp_path / 'x.jsonl'
    file.write_bytes(b'\n' + LINES)
    where, found = read(file)
    assert found == ROWS
    assert where == [f'{file}:{line}' for line in range(2, 7)]
    (tmp_path / 'x.jsonl.gz').write_bytes(gzip.compress(LINES, mtime=0))
    assert read(tmp_path / 'x.jsonl.gz')[1] == ROWS


@pytest.mark.parametrize('content', [LINES, gzip.compress(LINES, mtime=0)], ids=['', 'packed'])
@pytest.mark.parametrize('name', ['x.json', 'x.jsonl.gz'])
def test_rows_are_unpacked_where_they_are_packed_whatever_the_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name)[1] == ROWS


@pytest.mark.parametrize('name', ['x.json', 'x.jsonl', 'x.json.gz'])
@pytest.mark.parametrize('mark', [b'', b'\xef\xbb\xbf'])
@pytest.mark.parametrize('array', [False, True])
@pytest.mark.parametrize('newline', [b'\n', b'\r\n'])
def test_json_is_lines_or_an_array_whatever_its_name(tmp_path, name, mark, array, newline):
    text = mark + (json.dumps(ROWS, indent=2).encode() if array else LINES)
    text = text.replace(b'\n', newline)
    file = tmp_path / name
    file.write_bytes(gzip.compress(text) if name.endswith('.gz') else text)
    where, found = read(file)
    assert found == ROWS
    assert where[0] == (f'{file}: row 1' if array else f'{file}:1')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (b'[{"prompt": "a"},', 'not valid JSON'),
        (b'[{"prompt": "a"}]\n{"prompt": "b"}', 'not valid JSON: Extra data'),
        (b'[' * 100_000, 'not valid JSON'),
        (b'[3]', 'expected an object, got int'),
        (b'[\xff]', 'not valid UTF-8 at byte 1'),
    ],
)
def test_a_broken_array_is_one_line(tmp_path, text, message):
    file = tmp_path / 'x.json'
    file.write_bytes(text)
    with pytest.raises(UserError, match=message):
        read(file)


def test_an_array_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, 'MAX_ARRAY', 20)
    file = tmp_path / 'x.json'
    file.write_text(json.dumps(ROWS))
    with pytest.raises(UserError, match=f'{file}: an array of over 20 bytes; write a row a line'):
        read(file)


def test_parquet_by_row_number(tmp_path):
    file = tmp_path / 'x.parquet'
    pq.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=2)
    where, found = read(file)
    assert found == ROWS
    assert where == [f'{file}: row {row}' for row in range(1, 6)]


ODD = {
    'nanoseconds': pa.array([2**62 + 1], pa.timestamp('ns')),
    'a zone that is nowhere': pa.array([0], pa.timestamp('s', 'Nowhere/City')),
    'a long time': pa.array([2**62 + 1], pa.duration('ns')),
    'a time of day': pa.array([1], pa.time64('ns')),
    'a far day': pa.array([2**30], pa.date32()),
    'a far second': pa.array([2**40], pa.timestamp('s')),
    'within a list': pa.array([[2**62 + 1]], pa.list_(pa.timestamp('ns'))),
    'within an object': pa.array([{'t': 2**30}], pa.struct([('t', pa.date32())])),
    'a map': pa.array([[('k', 2**30)]], pa.map_(pa.string(), pa.date32())),
}


@pytest.mark.parametrize('column', ODD.values(), ids=ODD)
def test_a_column_that_python_has_no_value_for_keeps_no_row_from_being_read(tmp_path, column):
    timed = pa.StructArray.from_arrays(
        [pa.array(['assistant']), pa.array(['b']), column], names=['role', 'content', 't']
    )
    chosen = pa.ListArray.from_arrays([0, 1], timed)
    table = pa.table({'prompt': ['a'], 'other': column, 'chosen': chosen})
    pq.write_table(table, tmp_path / 'x.parquet')
    write_arrow(tmp_path / 'x.arrow', table)
    for name in ('x.parquet', 'x.arrow'):
        _, [row] = read(tmp_path / name)
        assert row['prompt'] == 'a'
        assert row['other'] is not None
        assert rows.trl(row).chosen == 'b'
        with pytest.raises(UserError, match=r'^prompt'):
            rows.trl({'prompt': row['other']})


def test_a_file_of_arrow_is_read_as_a_stream_is(tmp_path):
    write_arrow(tmp_path / 'x.arrow', pa.Table.from_pylist(ROWS), pa.ipc.new_file)
    where, found = read(tmp_path / 'x.arrow')
    assert found == ROWS
    assert where[-1] == f'{tmp_path}/x.arrow: row {len(ROWS)}'


def test_two_columns_of_one_name_are_refused(tmp_path):
    columns = [pa.array(['a']), pa.array(['b'])]
    table = pa.Table.from_arrays(columns, names=['prompt', 'prompt'])
    pq.write_table(table, tmp_path / 'x.parquet')
    with pytest.raises(UserError, match=r'x.parquet: prompt: two columns of this name'):
        read(tmp_path / 'x.parquet')


@pytest.mark.parametrize(
    'text',
    [
        '{"prompt": "a", "prompt": "b"}',
        '{"id": 1, "prompt": "a", "chosen": "b", "prompt": "a"}',
        '{"messages": [{"role": "user", "prompt": "x", "prompt": "y"}]}',
        '[{"prompt": "a", "prompt": "b"}]',
    ],
)
def test_what_an_object_says_twice_is_refused(tmp_path, text):
    (tmp_path / 'x.jsonl').write_text(text)
    with pytest.raises(UserError, match='prompt: twice in one object'):
        read(tmp_path / 'x.jsonl')


def test_hub_directory_takes_the_files_of_the_split_alone(tmp_path):
    names = [
        'data/train-00001-of-00002.jsonl',
        'data/train-00000-of-00002.jsonl',
        'data/train_sft-00000-of-00001.jsonl',
        'data/test-00000-of-00001.jsonl',
        'train/0.jsonl',
        '.cache/train.jsonl',
        'train.txt',
    ]
    for name in names:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({'prompt': name}))
    prompts = lambda split: [row['prompt'] for row in read(tmp_path, split)[1]]
    assert prompts('train') == [names[1], names[0], names[4]]
    assert prompts('train_sft') == [names[2]]
    with pytest.raises(UserError, match="no file of split 'dev'"):
        prompts('dev')


@pytest.mark.parametrize(
    ('named', 'others'),
    [
        ('my-train.jsonl', ['my-extra.jsonl', 'trained.jsonl']),
        ('train2.jsonl', ['retrain.jsonl']),
        ('train_1.jsonl', ['train_sft.jsonl', 'train_1k.jsonl', 'x_test.jsonl']),
        ('2024-train/0.jsonl', ['2024-rest/0.jsonl']),
        ('train_2024/0.jsonl', ['train_2024/test.jsonl', 'train_2024/valid-0.jsonl']),
        ('train/sft.jsonl', ['train-2/eval.jsonl']),
    ],
)
def test_names_of_files_say_the_split_as_datasets_reads_them(tmp_path, named, others):
    lines(tmp_path, named, 'train.jsonl', *others)
    assert {*sources.find(tmp_path, 'train')} == {tmp_path / named, tmp_path / 'train.jsonl'}


def test_what_map_and_filter_leave_behind_is_no_data(tmp_path):
    lines(tmp_path, 'a/rows.jsonl', 'a/cache-x.jsonl')
    for name in ('cache-46db512e7dea3f87.arrow', 'cache-46db512e7dea3f87_00000_of_00002.arrow'):
        write_arrow(tmp_path / 'a' / name, pa.Table.from_pylist(ROWS))
    names = [file.name for file in sources.find(tmp_path, 'train')]
    assert names == ['cache-x.jsonl', 'rows.jsonl']


def test_a_word_of_two_splits_is_the_name_of_neither(tmp_path):
    lines(tmp_path, 'train_prefs-00000-of-00001.jsonl', 'test_prefs-00000-of-00001.jsonl')
    with pytest.raises(UserError, match="no file of split 'prefs'"):
        sources.find(tmp_path, 'prefs')


def test_a_saved_directory_has_the_splits_that_it_says(tmp_path):
    (tmp_path / 'dataset_dict.json').write_text('{"splits": ["train_sft", "gen"]}')
    for split in ('train_sft', 'gen'):
        (tmp_path / split).mkdir()
        name = 'data-00000-of-00001.arrow'
        write_arrow(tmp_path / split / name, pa.Table.from_pylist(ROWS))
        (tmp_path / split / 'state.json').write_text(
            json.dumps({'_data_files': [{'filename': name}]})
        )
    assert read(tmp_path, 'gen')[1] == ROWS
    with pytest.raises(UserError, match="no split 'train'; there are gen, train_sft"):
        sources.find(tmp_path, 'train')


def test_saved_directory(tmp_path):
    for split, part in (('train', ROWS[:3]), ('test', ROWS[3:])):
        directory = tmp_path / split
        directory.mkdir()
        write_arrow(directory / 'data-00000-of-00001.arrow', pa.Table.from_pylist(part))
        state = {'_data_files': [{'filename': 'data-00000-of-00001.arrow'}]}
        (directory / 'state.json').write_text(json.dumps(state))
    assert read(tmp_path)[1] == ROWS[:3]
    where, found = read(tmp_path / 'test')
    assert found == ROWS[3:]
    assert where[1] == f'{tmp_path}/test/data-00000-of-00001.arrow: row 2'


@pytest.mark.parametrize('name', ['../data.arrow', '/etc/passwd', 'a/b.arrow', 'data.txt', 3, None])
def test_saved_directory_that_names_a_file_outside(tmp_path, name):
    write_arrow(tmp_path / 'data.arrow', pa.Table.from_pylist(ROWS))
    directory = tmp_path / 'set'
    directory.mkdir()
    (directory / 'state.json').write_text(json.dumps({'_data_files': [{'filename': name}]}))
    with pytest.raises(UserError, match=r'expected an .arrow file of this directory'):
        sources.find(directory, 'train')


def test_links(tmp_path):
    outside, inside = tmp_path / 'secret.jsonl', tmp_path / 'set' / 'blob'
    inside.parent.mkdir()
    outside.write_bytes(LINES)
    inside.write_bytes(LINES)
    link = tmp_path / 'set' / 'train.jsonl'
    link.symlink_to('blob')
    assert read(tmp_path / 'set')[1] == ROWS
    for target, message in (('../secret.jsonl', 'leads out of'), ('train.jsonl', 'symbolic links')):
        link.unlink()
        link.symlink_to(target)
        with pytest.raises(UserError, match=message):
            sources.find(tmp_path / 'set', 'train')


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('x.txt', b'', 'not a format that is read'),
        ('x.parquet', b'PAR1', 'cannot be read'),
        ('x.arrow', b'', 'cannot be read'),
        ('x.arrow', b'ARROW1' * 9, 'cannot be read'),
        ('x.jsonl.gz', gzip.compress(LINES, mtime=0)[:-9], 'cannot be read: Compressed file ended'),
        ('x.jsonl', bz2.compress(LINES), 'bzip2, no JSON'),
        ('x.json.gz', lzma.compress(LINES), 'xz, no JSON'),
        ('x.jsonl', gzip.compress(gzip.compress(LINES)), 'gzip in gzip, no JSON'),
        ('x.json', b'PAR1' + bytes(20), 'Parquet, no JSON; unpack it, or name it'),
    ],
)
def test_damaged_file_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f'{name}: {message}') as caught:
        read(tmp_path / name)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('path', ['nowhere', 'a' * 300, '\0'])
def test_no_such_path(tmp_path, path):
    with pytest.raises(UserError):
        sources.find(tmp_path / path, 'train')


def test_absurd_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, 'MAX_LINE', 100)
    file = tmp_path / 'x.jsonl'
    for length in (101, 202, 203, 303, 500):
        file.write_bytes(b'"' + b'a' * (length - 2) + b'"\n' + LINES)
        first, *rest = sources.read(file)
        with pytest.raises(UserError, match='over 100 bytes'):
            first.load()
        assert [item.load() for item in rest] == ROWS
        assert rest[0].where == f'{file}:2'
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / 'x.parquet')
    monkeypatch.setattr(sources, 'MAX_ROW_GROUP', 10)
    with pytest.raises(UserError, match=r'a row group of .* bytes; at most 10'):
        read(tmp_path / 'x.parquet')
    (tmp_path / 'y.jsonl').touch()
    monkeypatch.setattr(sources, 'MAX_ENTRIES', 2)
    with pytest.raises(UserError, match='over 2 files'):
        sources.find(tmp_path, 'train')


def test_invalid_utf8_is_of_one_row(tmp_path):
    file = tmp_path / 'x.parquet'
    binary = pa.array([b'good', b'\xff', b'fine'])
    text = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    pq.write_table(pa.table({'prompt': text}), file)
    first, second, third = sources.read(file)
    assert first.load() == {'prompt': 'good'}
    assert third.load() == {'prompt': 'fine'}
    with pytest.raises(UserError, match=r'^not valid UTF-8$'):
        second.load()


PAIR = {'prompt': [{'role': 'user', 'content': 'é\u2028'}], 'chosen': 'a', 'rejected': 'b'}
SOUND = [json.dumps(PAIR, ensure_ascii=escape).encode() + b'\n' for escape in (True, False)]


@given(st.data(), st.sampled_from(SOUND))
def test_mutated_bytes_are_rows_or_one_line(tmp_path_factory, data, line):
    mutated = bytearray(line * 3)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(mutated)))
        mutated[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    file = tmp_path_factory.mktemp('mutated') / 'x.jsonl'
    file.write_bytes(mutated)
    messages = []
    try:
        for located in sources.read(file):
            try:
                row = rows.check(rows.trl(located.load()), 'prompt')
            except UserError as error:
                messages.append(str(error))
            else:
                assert row.prompt
    except UserError as error:  # A file that begins with `[` is an array, whole or not.
        messages.append(str(error))
    for message in messages:
        assert '\n' not in message
        assert len(message) < 300


@pytest.mark.parametrize('suffix', sources.SUFFIXES)
def test_pipes_devices_and_pointers_are_not_opened(tmp_path, suffix):
    pointer = b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n'
    for directory in (False, True):
        folder = tmp_path / f'd{directory}'
        folder.mkdir()
        file = folder / f'train{suffix}'
        path = folder if directory else file
        os.mkfifo(file)
        with pytest.raises(UserError, match=f'{file}: not a regular file'):
            sources.find(path, 'train')
        file.unlink()
        file.write_bytes(pointer)
        with pytest.raises(UserError, match=f'{file}: a Git LFS pointer in the place of the file'):
            sources.find(path, 'train')
    with pytest.raises(UserError, match='/dev/zero: not a regular file'):
        sources.find('/dev/zero', 'train')
