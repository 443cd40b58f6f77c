"""Configurations: a mistake is one line that says where and what; all of configs/ is fine."""

import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sail_jax import cli, configfile, runs
from sail_jax.control import config as control_config
from sail_jax.control.config import ControlRun
from sail_jax.errors import UserError
from tests.support.paths import ROOT
from tests.support.refused import message, override

CONFIGS = sorted((ROOT / 'configs').rglob('*.yaml'))


def load(tmp_path, text):
    path = tmp_path / 'run.yaml'
    path.write_text(text)
    return runs.load(path)


BAD_FILES = {
    'unknown section': ('seed: 1\nobjectve: {beta: 1}\n', 2, ['objectve', 'objective?']),
    'unknown key': (
        'seed: 1\noptimizer:\n  epochs: 2\n  learning_rte: 1.0e-3\n',
        4,
        ['optimizer.learning_rte', 'optimizer.learning_rate?'],
    ),
    'misplaced key': ('beta: 0.1\n', 1, ['beta', 'objective.beta?']),
    'deep unknown key': (
        'objective:\n  mixture:\n    dpr: 1\n    dprr: 0\n',
        4,
        ['objective.mixture.dprr', 'objective.mixture.dpr?'],
    ),
    'nothing like it': ('zzzzzz: 1\n', 1, ['zzzzzz', '--help']),
    'wrong type': ('\nseed: many\n', 2, ['seed', 'integer', "'many'"]),
    'fraction': ('seed: 1.5\n', 1, ['seed', 'integer', '1.5']),
    'wrong type in a list': ('policy:\n  hidden: [64, wide]\n', 2, ['policy.hidden.1', "'wide'"]),
    'section that is none': ('objective: 3\n', 1, ['objective', '3']),
    'empty section': ('env:\n', 1, ['env']),
    'empty list': ('policy: {hidden: []}\n', 1, ['policy.hidden', 'at least 1']),
    'below the bound': ('objective:\n  beta: 0\n', 2, ['objective.beta', 'greater than 0', '0']),
    'above the bound': ('objective: {mixture: {dpp: 1.5}}', 1, ['objective.mixture.dpp', '1.5']),
    'infinite': ('objective: {beta: .inf}\n', 1, ['objective.beta', 'finite']),
    'group of one': ('rollout:\n  group_size: 1\n', 2, ['rollout.group_size', '2', 'got 1']),
    'no such choice': (
        'divergence: {direction: reverse}\n',
        1,
        ['divergence.direction', 'ref_to_policy', 'policy_to_ref', "'reverse'"],
    ),
    'seed too large': (f'seed: {2**31}\n', 1, ['seed', str(2**31)]),
}


@pytest.mark.parametrize(('text', 'line', 'parts'), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_named_by_line_and_key(tmp_path, text, line, parts):
    got = message(load, tmp_path, text)
    assert got.startswith(f'{tmp_path}/run.yaml:{line}: ')
    for part in parts:
        assert part in got.removeprefix(str(tmp_path))


@pytest.mark.parametrize(
    ('text', 'missing'),
    [
        ('workload: language\n', ': missing: model, data'),
        (
            'workload: sft\ndata: {path: x}\nmodel:\n  architecture: {family: llama, layers: 2, '
            'heads: 2, kv_heads: 1, head_dim: 8}\n',
            ':4: missing: model.architecture.vocab_size, model.architecture.hidden_size, '
            'model.architecture.intermediate_size',
        ),
    ],
)
def test_all_missing_keys_are_named_in_one_line(tmp_path, text, missing):
    assert message(load, tmp_path, text) == f'{tmp_path}/run.yaml{missing}'


@pytest.mark.parametrize(
    ('text', 'part'),
    [
        ('a: [1\n', 'not valid YAML'),
        ('a: b: c\n', 'not valid YAML'),
        ('\tseed: 1\n', 'not valid YAML'),
        ('seed: !!python/object/apply:os.system ["true"]\n', 'not valid YAML'),
        ('seed: 1\n---\nseed: 2\n', 'not valid YAML'),
        ('[' * 5000, 'not valid YAML'),
        (f'seed: {"9" * 5000}\n', 'not valid YAML'),
        ('- 1\n- 2\n', 'got list'),
        ('just text\n', 'got str'),
        ('workload: chess\n', 'chess'),
        ('workload: [control]\n', 'workload'),
        ('workload: {a: 1}\n', 'workload'),
        ('1: 2\n', '1'),
        ('seed: 1\nseed: 2\n', 'seed'),
    ],
)
def test_files_that_are_no_mapping_of_settings(tmp_path, text, part):
    got = message(load, tmp_path, text)
    assert got.startswith(f'{tmp_path}/run.yaml')
    assert part in got.removeprefix(f'{tmp_path}/run.yaml')


def test_files_that_cannot_be_read(tmp_path):
    assert 'No such file' in message(runs.load, tmp_path / 'absent.yaml')
    assert 'directory' in message(runs.load, tmp_path)
    (tmp_path / 'binary.yaml').write_bytes(b'\xff\xfe\x00seed')
    assert 'not valid YAML' in message(runs.load, tmp_path / 'binary.yaml')


def test_an_empty_file_is_the_defaults(tmp_path):
    assert load(tmp_path, '') == load(tmp_path, '# nothing\n') == ControlRun()


def test_configurations_are_immutable():
    with pytest.raises(ValueError, match='frozen'):
        ControlRun().objective.beta = 2.0


GOOD_OVERRIDES = [
    (['--objective.beta', '0.25'], ('objective', 'beta'), 0.25),
    (['--objective.beta=0.25'], ('objective', 'beta'), 0.25),
    (['--objective.mixture.dpp', '0.5'], ('objective', 'mixture', 'dpp'), 0.5),
    (['--rollout.group_size', '4'], ('rollout', 'group_size'), 4),
    (['--rollout.group-size', '4'], ('rollout', 'group_size'), 4),
    (['--policy.hidden', '32', '16', '8'], ('policy', 'hidden'), (32, 16, 8)),
    (['--policy.hidden', '32'], ('policy', 'hidden'), (32,)),
    (['--optimizer.clip', 'None'], ('optimizer', 'clip'), None),
    (['--optimizer.param_bound', '10'], ('optimizer', 'param_bound'), 10.0),
    (['--labeller.max_labels', '5'], ('labeller', 'max_labels'), 5),
    (['--labeller.soft'], ('labeller', 'soft'), True),
    (['--logging.no-tensorboard'], ('logging', 'tensorboard'), False),
    (['--reference.path', 'a/b'], ('reference', 'path'), Path('a/b')),
]


def setting(run, keys):
    for key in keys:
        run = getattr(run, key)
    return run


@pytest.mark.parametrize(('arguments', 'keys', 'value'), GOOD_OVERRIDES)
def test_overrides_win_over_the_file(arguments, keys, value):
    base = ControlRun.model_validate({'seed': 7})
    got = override(*arguments, run=base)
    assert setting(got, keys) == value
    changed = [line.split(' ')[0] for line in configfile.differences(got, base)]
    assert changed == ['.'.join(keys)]


@pytest.mark.parametrize('between', [' ', '='])
@pytest.mark.parametrize('word', ['none', 'None'])
@pytest.mark.parametrize('key', ['optimizer.clip', 'reference.path', 'labeller.max_labels'])
def test_none_is_what_the_help_calls_it(key, word, between):
    # The documentation of the fields says "none"; the path must not become a file of that name.
    run = ControlRun.model_validate({'labeller': {'max_labels': 9}, 'reference': {'path': 'x'}})
    for option in (f'--{key}', f'--{key.replace("_", "-")}'):
        words = f'{option}{between}{word}'.split(' ')
        assert setting(override(*words, run=run), key.split('.')) is None


BAD_OVERRIDES = {
    'unknown section': (['--objectve.beta', '1'], ['objectve.beta', 'objective.beta?']),
    'unknown key': (['--objective.bta', '1'], ['objective.bta', 'objective.beta?']),
    'unknown with =': (['--optimizer.epoch=3'], ['optimizer.epoch', 'optimizer.epochs?']),
    'misplaced': (['--beta', '1'], ['beta', 'objective.beta?']),
    'long': (['--objective.' + 'very_' * 8 + 'long', '1'], ['very_' * 8 + 'long']),
    'nothing like it': (['--zzzzzz', '1'], ['zzzzzz', '--help']),
    'two unknown': (['--objectve.beta', '1', '--zzzzzz', '2'], ['objective.beta?']),
    'wrong type': (['--objective.beta', 'big'], ['objective.beta', 'big']),
    'fraction': (['--rollout.group_size', '2.5'], ['rollout.group', '2.5']),
    'exponent': (['--total_env_steps', '1e6'], ['total', '1e6']),
    'no number': (['--optimizer.clip', 'x'], ['optimizer.clip', 'x']),
    'no choice': (['--divergence.direction', 'reverse'], ['divergence.direction', 'ref_to_policy']),
    'wrong tuple': (['--policy.hidden', '64', 'wide'], ['policy.hidden', 'wide']),
    'empty tuple': (['--policy.hidden'], ['policy.hidden', 'at least 1']),
    'out of bounds': (['--objective.beta', '-1'], ['objective.beta:', 'greater than 0', '-1']),
    'top level out of bounds': (['--seed', '-1'], ['seed:', '-1']),
    'deep out of bounds': (['--objective.mixture.dpr', '2'], ['objective.mixture.dpr:', '2']),
    'optional out of bounds': (['--optimizer.clip', '1.5'], ['optimizer.clip:', '1.5']),
    'not finite': (['--objective.beta', 'nan'], ['objective.beta:', 'finite']),
    'group of one': (['--rollout.group_size', '1'], ['rollout.group_size:', '2']),
    'value for a switch': (['--labeller.soft', 'maybe'], ['maybe']),
    'a switch that is said true': (
        ['--labeller.soft', 'true'],
        ['labeller.soft:', '--labeller.no-soft'],
    ),
    'a switch that is false': (
        ['--logging.tensorboard=False'],
        ['logging.tensorboard:', 'no-tensorboard', "'False'"],
    ),
    'a switch that is not': (['--logging.no-tensorboard', '0'], ['logging.tensorboard:', "'0'"]),
    'no such choice': (
        ['--divergence.states', "it's"],
        ['divergence.states: should be one of', "it's"],
    ),
    'no value': (['--seed'], ['--seed']),
    'two values': (['--seed', '1', '2'], ['2']),
    'stray word': (['stray'], ['stray']),
    'single dash': (['-seed', '1'], ['-seed']),
    'other workload': (['--workload', 'chess'], ['workload', 'chess']),
    'a section': (['--objective', '1'], ['objective']),
    'a list as YAML writes it': (
        ['--policy.hidden', '[64, 64]'],
        ['policy.hidden:', 'one after the other', '--policy.hidden A B'],
    ),
}


@pytest.mark.parametrize(('arguments', 'parts'), BAD_OVERRIDES.values(), ids=BAD_OVERRIDES)
def test_bad_overrides_are_one_line(arguments, parts, capfd, monkeypatch):
    got = message(override, *arguments)
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '20')
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)  # Where tyro writes in colours.
    assert message(override, *arguments) == got
    monkeypatch.undo()
    for part in parts:
        assert part in got
    assert not re.search('[│╭╰]', got)
    assert 'ControlRun' not in got
    assert capfd.readouterr() == ('', '')


def test_an_unknown_section_is_not_offered_itself():
    got = message(override, '--objective', '1')
    assert 'did you mean objective?' not in got


@settings(max_examples=25)
@given(
    st.lists(
        st.sampled_from(['--seed', '--policy.hidden', '--optimizer.clip', '--x.y', '-1', '2'])
        | st.text(max_size=6),
        max_size=4,
    ).filter(lambda words: not {'-h', '--help'} & set(words))
)
def test_any_words_are_a_configuration_or_one_line(words):
    try:
        got = override(*words)
    except UserError as error:
        got = error
    if isinstance(got, UserError):
        assert re.fullmatch('.+', str(got))
    else:
        assert isinstance(got, ControlRun)


def test_help_has_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        override('--help')
    assert not stop.value.code
    text = re.sub(r'[^\w.-]', ' ', capsys.readouterr().out).replace('-', '_')
    for key in configfile.flatten(ControlRun()):
        assert key in text or key.replace('.', '.no_') in text, key


def reread(run, tmp_path):
    return load(tmp_path, configfile.to_yaml(run))


@given(
    seed=st.integers(0, 2**31 - 1),
    beta=st.floats(1e-37, 1e38),
    clip=st.none() | st.floats(2**-30, 1, exclude_max=True, width=32),
    hidden=st.lists(st.integers(1, 2**16), min_size=1, max_size=4),
    direction=st.sampled_from(['ref_to_policy', 'policy_to_ref']),
    soft=st.booleans(),
    max_labels=st.none() | st.integers(1, 2**31 - 1),
    name=st.text(st.characters(exclude_categories=['Cs']), max_size=10),
    path=st.none() | st.from_regex(r'[\w ./~-]{1,20}', fullmatch=True),
)
def test_yaml_round_trip(
    tmp_path_factory, seed, beta, clip, hidden, direction, soft, max_labels, name, path
):
    run = ControlRun.model_validate(
        {
            'seed': seed,
            'objective': {'beta': beta},
            'optimizer': {'clip': clip},
            'policy': {'hidden': hidden},
            'divergence': {'direction': direction},
            'labeller': {'soft': soft, 'max_labels': max_labels},
            'env': {'name': name},
            'reference': {'path': path},
        }
    )
    assert reread(run, tmp_path_factory.mktemp('run')) == run


def test_differences_name_keys_and_both_values():
    ours = ControlRun.model_validate({'seed': 3, 'objective': {'mixture': {'dpp': 0.5}}})
    assert configfile.differences(ours, ControlRun()) == [
        'objective.mixture.dpp (0.0 -> 0.5)',
        'seed (0 -> 3)',
    ]
    assert configfile.differences(ours, ControlRun(), ignore=('seed',)) == [
        'objective.mixture.dpp (0.0 -> 0.5)'
    ]
    assert configfile.differences(ours, ours) == []


@pytest.mark.parametrize('path', CONFIGS, ids=[path.stem for path in CONFIGS])
def test_shipped_configurations_are_valid(path, tmp_path):
    run = runs.load(path)
    if isinstance(run, ControlRun):
        control_config.check(run)
    assert reread(run, tmp_path) == run


def test_there_are_configurations():
    assert CONFIGS


@pytest.mark.parametrize(
    ('text', 'arguments', 'part'),
    [
        ('sed: 1\n', [], 'did you mean seed?'),
        ('{}', ['--rollout.group_size', '1'], 'rollout.group_size'),
        ('{}', ['--rollout.segment_length', '2000'], 'rollout.segment_length'),
        ('{}', ['--resume'], '--run-dir'),
    ],
)
def test_command_line_exits_with_2_and_one_line(tmp_path, capfd, text, arguments, part):
    path = tmp_path / 'run.yaml'
    path.write_text(text)
    assert cli.main(['train', str(path), *arguments]) == 2
    out, err = capfd.readouterr()
    assert not out
    assert err.startswith('sail-jax: ')
    assert err.count('\n') == 1
    assert part in err


@pytest.mark.parametrize('size', [None, configfile.MAX_YAML + 1])
def test_what_is_no_file_or_absurdly_large_is_not_read(tmp_path, size):
    path = tmp_path / 'run.yaml'
    if size is None:
        path.symlink_to('/dev/null')
    else:
        path.touch()
        os.truncate(path, size)
    said = 'not a regular file' if size is None else 'over 524288 bytes; at most that'
    assert message(runs.load, path) == f'{path}: {said}'


@pytest.mark.parametrize('name', ['', 'a/b', 'a:b', 'what?', 'x' * 129])
def test_a_project_that_wandb_would_not_take_is_refused(name):
    assert 'logging.wandb: ' in message(configfile.update, ControlRun(), {'logging.wandb': name})
