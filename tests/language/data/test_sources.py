"""Sources: rows out of files, each with its place."""

import gzip
import json
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


def write_arrow(path, table):
    with pa.OSFile(str(path), 'wb') as sink, pa.ipc.new_stream(sink, table.schema) as writer:
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


CARD = """---
license: mit
configs:
- config_name: a
  data_files:
  - split: train
    path: x/part-*.jsonl
  - split: held
    path: [y/0.jsonl, y/1.jsonl]
- config_name: b
  data_files: z.jsonl
---
# Rows
"""


def card_directory(path, card, names=('x/part-0.jsonl', 'x/part-1.jsonl', 'y/0.jsonl', 'z.jsonl')):
    (path / 'README.md').write_text(card)
    for name in names:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(json.dumps({'prompt': name}))
    return path


def test_a_readme_names_the_files_of_a_split(tmp_path):
    card_directory(tmp_path, CARD)
    prompts = [row['prompt'] for row in read(tmp_path)[1]]
    assert prompts == ['x/part-0.jsonl', 'x/part-1.jsonl', 'z.jsonl']
    assert [row['prompt'] for row in read(tmp_path, 'held')[1]] == ['y/0.jsonl']
    with pytest.raises(UserError, match="no file of split 'test'"):
        read(tmp_path, 'test')


@pytest.mark.parametrize('pattern', ['**', 'data/**', '**/*.jsonl', 'data/*.jsonl', './**'])
def test_a_readme_names_files_as_datasets_finds_them(tmp_path, pattern):
    lines(tmp_path, 'data/a.jsonl', 'data/.ipynb_checkpoints/a-checkpoint.jsonl', '.cache/b.jsonl')
    (tmp_path / 'README.md').write_text(f'---\nconfigs:\n- data_files: "{pattern}"\n---\n')
    assert sources.find(tmp_path, 'train') == [tmp_path / 'data' / 'a.jsonl']


def test_a_readme_names_hidden_files_too(tmp_path):
    lines(tmp_path, '.rows/a.jsonl', '.rows/.b.jsonl')
    (tmp_path / 'README.md').write_text('---\nconfigs:\n- data_files: ".rows/**"\n---\n')
    assert sources.find(tmp_path, 'train') == [tmp_path / '.rows' / 'a.jsonl']


def test_a_readme_that_names_a_directory_says_to_name_it(tmp_path):
    lines(tmp_path, 'a/train.jsonl', 'b/train.jsonl')
    (tmp_path / 'README.md').write_text('---\nconfigs:\n- {config_name: x, data_dir: a}\n---\n')
    with pytest.raises(UserError, match=r"README.md: data_dir: 'a': name that directory itself"):
        sources.find(tmp_path, 'train')


@pytest.mark.parametrize(
    ('names', 'two'),
    [
        (['train.jsonl', 'train.parquet'], 'train.jsonl and train.parquet'),
        (['data/train-00000-of-00001.parquet', 'train.jsonl'], 'parquet and train.jsonl'),
        (['train.jsonl', 'train.jsonl.gz'], 'train.jsonl and train.jsonl.gz'),
        (['train.json', 'train.jsonl'], 'train.json and train.jsonl'),
        (
            ['train-00000-of-00001.jsonl', 'train-00001-of-00002.jsonl'],
            '-of-00001.* and .*-of-00002',
        ),
        (['train-00000-of-00001-ab.jsonl', 'train-00000-of-00001-cd.jsonl'], '-ab.jsonl and .*-cd'),
        (['train-00000-of-00001.jsonl', 'train.jsonl'], 'train-00000-of-00001.jsonl and train.js'),
    ],
)
@pytest.mark.parametrize('card', ['', '---\nconfigs:\n- data_files: "**"\n---\n'])
def test_rows_that_are_there_twice_by_their_names_are_refused(tmp_path, names, two, card):
    lines(tmp_path, *names)
    (tmp_path / 'README.md').write_text(card)
    with pytest.raises(UserError, match=f'{two}.* by their names hold the same rows'):
        sources.find(tmp_path, 'train')


def test_files_that_only_look_alike_are_all_read(tmp_path):
    names = ['a/train.jsonl', 'b/train.json', 'train-00000-of-00002-ab.jsonl', 'train-0.jsonl']
    lines(tmp_path, *names, 'train-00001-of-00002-cd.jsonl', 'train_1.jsonl', 'train.v2.jsonl')
    (tmp_path / 'README.md').write_text('---\nconfigs:\n- data_files: "**"\n---\n')
    assert len(sources.find(tmp_path, 'train')) == 7


def test_shards_that_are_not_there_are_told(tmp_path):
    names = ['train-00001-of-00003.jsonl', 'b/train-00000-of-00001.jsonl', 'train.jsonl']
    files = [tmp_path / name for name in names]
    assert sources.missing_shards(files) == [
        f'{tmp_path}/train-00000-of-00003',
        f'{tmp_path}/train-00002-of-00003',
    ]


@pytest.mark.parametrize(
    'card',
    [
        '# Rows\n',
        '---\nlicense: mit\n---\n',
        '---\nconfigs: 3\n---\n',
        '---\nconfigs: [{config_name: x}]\n---\n',
    ],
)
def test_a_readme_without_files_leaves_them_to_their_names(tmp_path, card):
    card_directory(tmp_path, card, ['train.jsonl', 'other.jsonl'])
    assert [row['prompt'] for row in read(tmp_path)[1]] == ['train.jsonl']


@pytest.mark.parametrize(
    ('pattern', 'message'),
    [
        ('../x.jsonl', "'../x.jsonl': expected files of"),
        ('/etc/*.json', 'expected files of'),
        ('hf://datasets/a/b.jsonl', 'expected files of'),
        ('a/**b', "no file of split 'train'|data_files"),
        ('x/*.csv', 'x/part.csv: not a format that is read'),
    ],
)
def test_a_readme_names_files_of_its_own_directory(tmp_path, pattern, message):
    card = f'---\nconfigs:\n- data_files: "{pattern}"\n---\n'
    with pytest.raises(UserError, match=message):
        read(card_directory(tmp_path, card, ['x/part.csv']))


MANY = 'a: &a [' + 'x,' * 2000 + ']\nb: &b {split: train, path: *a}\nc: &c [' + '*b,' * 2000 + ']\n'


@pytest.mark.parametrize(
    ('metadata', 'message'),
    [
        ('a: ' + '[' * 500, 'nested over 32 deep'),
        ('a:\n- ' + '- ' * 1000 + '1', 'nested over 32 deep'),
        ('? ' * 500 + 'a', 'nested over 32 deep'),
        ('a: !!bool x', 'a value is not what its tag says'),
        ('a: !!timestamp x', 'a value is not what its tag says'),
        (f'a: 0x{"f" * 5000}', 'an integer of 5002 digits'),
        ('? [a]\n: b', 'unhashable key'),
        (MANY + 'configs: [' + '{data_files: *c},' * 2000 + ']', 'over 16384 patterns'),
    ],
)
def test_a_readme_that_attacks_is_one_line(tmp_path, metadata, message):
    with pytest.raises(UserError, match=f'README.md: .*{message}') as caught:
        read(card_directory(tmp_path, f'---\n{metadata}\n---\n'))
    assert '\n' not in str(caught.value)


def test_files_of_no_split_are_of_train(tmp_path):
    card_directory(tmp_path, '', ['b/0.jsonl', 'a.json', 'dataset_info.json'])
    assert [row['prompt'] for row in read(tmp_path)[1]] == ['a.json', 'b/0.jsonl']
    (tmp_path / 'b' / 'validation.jsonl').touch()
    with pytest.raises(UserError, match="no file of split 'train'"):
        read(tmp_path)


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


def test_two_columns_of_one_name_are_refused(tmp_path):
    columns = [pa.array(['a']), pa.array(['b'])]
    table = pa.Table.from_arrays(columns, names=['prompt', 'prompt'])
    pq.write_table(table, tmp_path / 'x.parquet')
    with pytest.raises(UserError, match=r'x.parquet: prompt: two columns of this name'):
        read(tmp_path / 'x.parquet')


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
    for target, message in (('../secret.jsonl', 'leads out of'), ('train.jsonl', 'loop')):
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
        ('x.jsonl.gz', LINES, 'cannot be read: Not a gzipped file'),
        ('x.jsonl.gz', gzip.compress(LINES, mtime=0)[:-9], 'cannot be read: Compressed file ended'),
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
