"""A data set's README names its files."""

import json

import pytest

from sail_jax.errors import UserError
from sail_jax.language.data import sources

ROWS = [{'prompt': f'p{i}', 'chosen': 'é', 'rejected': None} for i in range(5)]
LINES = ''.join(json.dumps(row) + '\n' for row in ROWS).encode()


def read(path, split='train'):
    located = [located for file in sources.find(path, split) for located in sources.read(file)]
    return [item.where for item in located], [item.load() for item in located]


def lines(path, *names):
    """Files of the same rows."""
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(LINES)


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
        ('? [a]\n: b', 'line 2: a sequence as key; expected text'),
        ('a: 1\na: 2', "line 3: second 'a'"),
        ('configs:\n- data_files: x\n  data_files: y', "line 4: second 'data_files'"),
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
    there = 'a.json, b/0.jsonl, b/validation.jsonl'
    with pytest.raises(UserError, match=f"no file of split 'train'; there are {there}$"):
        read(tmp_path)
