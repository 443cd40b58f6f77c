"""What others wrote reaches the terminal as text, and what is refused is refused at once."""

import json
import logging
import re
import subprocess
import sys
import unicodedata

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sail_jax import commands, meanings, reports, tables, terminal, workloads
from sail_jax.cli import main
from sail_jax.control.config import ControlRun
from sail_jax.control.kind import TABLE as CONTROL_TABLE
from sail_jax.kind import Line
from sail_jax.language.kind import TABLE
from sail_jax.sweep import Members
from sail_jax.training import metrics
from sail_jax.training.result import Result

TITLE, RED, BACK = '\x1b]0;title\x07', '\x1b[31m', '\u202e'
"""Sets the title of a window, turns it red, and turns the text after it round."""
HOSTILE = f'a{TITLE}{RED}{BACK}\x9b1m\u2066\u200b\udcff'
MARKUP = '[red]a[/red] [/] [link=x] :smile: $a$'


def acts(text):
    """Characters that do something else than to be seen."""
    return [c for c in text if unicodedata.category(c) in ('Cc', 'Cf', 'Cs') and c not in '\n\t']


@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_nothing_in_escaped_text_acts(text):
    escaped = terminal.escaped(text)
    assert not set(acts(escaped)) - set(terminal.JOINERS)
    assert not set(escaped) & set('\n\t\r')
    escaped.encode()
    if text.isprintable():
        assert escaped == text


def test_escaped_text_says_what_was_there():
    assert terminal.escaped('a\x1b[0mb\u202ec\udcffd\n') == 'a\\x1b[0mb\\u202ec\\udcffd\\n'
    family = '\U0001f468\u200d\U0001f469'
    assert terminal.escaped(f'é　ü {family}') == f'é　ü {family}'


def test_a_line_is_of_bounded_length():
    line = terminal.one_line('begin ' + 'x' * 10**6 + ' end')
    assert len(line) < 2100
    assert line.startswith('begin xxx')
    assert line.endswith('xxx end')


HOSTILE_YAML = [
    {HOSTILE.replace('\udcff', ''): 1},
    {'objective': {HOSTILE.replace('\udcff', ''): 1}},
    {'env': {'name': f'x{TITLE}{MARKUP}'}},
    {'workload': f'{TITLE}{MARKUP}'},
    {'objective': {'beta': f'{RED}{MARKUP}'}},
    {'workload': 'language', 'model': {'path': f'/none/{TITLE}'}, 'data': {'path': RED}},
    {
        'env': {'name': 'inverted_pendulum'},
        'reference': {'source': 'run', 'path': f'/none/{TITLE}{MARKUP}'},
    },
]


@pytest.mark.parametrize('settings', HOSTILE_YAML, ids=range(len(HOSTILE_YAML)))
def test_configurations(tmp_path, capsys, settings):
    path = tmp_path / 'bad.yaml'
    path.write_text(yaml.safe_dump(settings))
    assert main(['train', str(path), '--run-dir', str(tmp_path / 'run'), '--quiet']) == 2
    printed = capsys.readouterr()
    assert not acts(printed.out + printed.err)
    assert printed.err.count('\n') == 1
    assert '\\x1b' in printed.err
    assert MARKUP not in yaml.safe_dump(settings, width=999) or MARKUP in printed.err


@pytest.mark.parametrize(
    'arguments',
    [
        [HOSTILE],
        ['train', f'{HOSTILE}.yaml'],
        ['train', 'CONFIG', f'--{HOSTILE}', '1'],
        ['train', 'CONFIG', '--env.name', HOSTILE],
        ['train', 'CONFIG', '--objective.beta', HOSTILE],
        ['evaluate', HOSTILE],
        ['evaluate', 'none', '--episodes', HOSTILE],
        ['plot', HOSTILE],
        ['render', HOSTILE],
        ['export', HOSTILE, 'out'],
        ['generate', HOSTILE, 'prompt'],
        ['doctor', '--coordinator', HOSTILE],
    ],
)
def test_options(tmp_path, capsys, arguments):
    path = tmp_path / 'good.yaml'
    path.write_text('workload: control\n')
    assert main([str(path) if part == 'CONFIG' else part for part in arguments]) == 2
    printed = capsys.readouterr()
    assert not acts(printed.out + printed.err)
    assert printed.err.startswith('sail-jax: ')
    assert printed.err.count('\n') == 1


def test_help_shows_the_values_of_a_file(tmp_path, capsys):
    path = tmp_path / 'run.yaml'
    path.write_text(yaml.safe_dump({'env': {'name': f'x{TITLE}'}, 'reference': {'path': RED}}))
    with pytest.raises(SystemExit):
        main(['train', str(path), '--help'])
    printed = capsys.readouterr().out
    assert not acts(printed)
    assert 'x\\x1b]0;title' in printed


def test_results(capsys, monkeypatch):
    monkeypatch.delenv('COLUMNS', raising=False)  # A width that pytest's workers have.
    terminal.out(f'one\n\ttwo {HOSTILE}')
    terminal.print_table(HOSTILE, ('', MARKUP), [(HOSTILE, MARKUP)])
    terminal.error(f'{HOSTILE} {MARKUP}')
    terminal.log_to_stderr()
    logging.getLogger('sail_jax').warning('row of %s', HOSTILE)
    metrics.console.print(f'{HOSTILE} {MARKUP}', soft_wrap=True)
    printed = capsys.readouterr()
    assert not acts(printed.out + printed.err)
    assert printed.out.startswith('one\n\ttwo a\\x1b]0;title\\x07')
    assert printed.out.count(MARKUP) == 2
    assert printed.err.count(MARKUP) == 2
    assert printed.err.count('\\x1b]0;title\\x07') == 3


def test_a_line_in_a_log_does_not_end_in_blanks(capsys, monkeypatch):
    monkeypatch.delenv('COLUMNS', raising=False)
    terminal.print_table('short', ('', 'start'), [('return, of a whole episode', '1.0')])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'short'
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize('columns', [1, 20, 33, 40, 60])
def test_a_narrow_terminal_takes_no_number_away(capsys, monkeypatch, columns):
    monkeypatch.setenv('COLUMNS', str(columns))
    rows = [('return, of a whole episode', '17.2 ± 2.8', *'345678')]
    for width in (3, 8):  # Of the table, in columns.
        terminal.print_table('', ['number', *'abcdefg'][:width], [row[:width] for row in rows])
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('│')]
        columns = zip(*map(_cells, lines), strict=True)
        cells = [''.join(column).replace(' ', '') for column in columns]
        assert cells == ['return,ofawholeepisode', '17.2±2.8', *'345678'][:width]


def _cells(line: str) -> list[str]:
    return line.strip('│').split('│')


def test_a_first_evaluation_of_an_older_version_has_fewer_numbers(capsys):
    reports.print_comparison(TABLE, '', {'reward': 1.0, 'reward_se': 0.1}, {
        'reward': 2.0, 'reward_se': 0.1, 'not_finite': 0.0,
    })  # fmt: skip
    printed = ' '.join(capsys.readouterr().out.split())
    assert '1.000 ± 0.1 │ 2.000 ± 0.1' in printed
    assert 'finite' not in printed


def test_a_terminal_of_another_encoding(tmp_path):
    code = "from sail_jax import terminal; terminal.out('± é'); terminal.error('± é')"
    done = subprocess.run(
        [sys.executable, '-c', code],
        env={'PYTHONIOENCODING': 'ascii', 'PYTHONPATH': ':'.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, '\\xb1 \\xe9\n')
    assert done.stderr == 'sail-jax: \\xb1 \\xe9\n'


SWEEP = ControlRun.model_validate(
    {'seeds': [3, 12], 'sweep': {'coefficient': [0.001, 0.01], 'learning_rate': [3e-4, 1e-5]}}
)


def result(value):
    keys = ('return', 'return_se', 'deterministic_return', 'deterministic_return_se')
    row = {f'eval/{key}': value for key in (*keys, 'kl_policy_to_start')}
    return Result((), (), row, row, 1_000_000, 'env_steps', 100, 12.0)


@pytest.mark.parametrize('columns', [None, '80', '60'])
def test_members_of_a_sweep_can_be_told_apart(capsys, monkeypatch, columns):
    monkeypatch.delenv('COLUMNS', raising=False)
    if columns:
        monkeypatch.setenv('COLUMNS', columns)
    members = Members.of(SWEEP).each
    reports.print_sweep(SWEEP, [result(-123.4)] * len(members))
    printed = capsys.readouterr().out
    assert '…' not in printed
    rows = [line.split('│')[1].strip() for line in printed.splitlines() if line.startswith('│')]
    found = ''.join(rows)
    for member in members:
        assert member.name in found
    for line in printed.splitlines():
        assert not line.startswith('│') or (line.endswith('│') and line.count('│') == 5)
    assert printed.count('-123.4') == len(members) * 6
    if columns:
        assert max(map(len, printed.splitlines())) <= int(columns)
    else:  # A file has no width.
        assert all(member.name in rows for member in members)


@pytest.mark.parametrize(
    ('value', 'shown'),
    [
        (0.0, '0.000'),
        (0.71349, '0.713'),
        (-3.14159, '-3.142'),
        (480.04, '480.0'),
        (1234.56, '1234.6'),
        (1234567.8, '1,234,568'),
        (4.2e-5, '4.2e-05'),
        (float('nan'), 'nan'),
    ],
)
def test_numbers_of_the_tables(value, shown):
    assert tables.number(value) == shown


def test_a_result_is_a_line():
    shown = repr(result(0.5))
    assert len(shown) < 200
    assert 'eval/return 0.5 -> 0.5' in shown
    assert '1,000,000 env_steps' in shown


def test_a_result_tells_the_first_number_of_its_workloads_table():
    row = {'eval/distance': 0.25, 'eval/kl_policy_to_start': 1.0}
    table = (Line('distance, radians', 'distance'),)
    shown = repr(result(0.5)._replace(before=row, after=row, table=table))
    assert 'eval/distance 0.25 -> 0.25, eval/kl_policy_to_start 1 -> 1' in shown


def test_a_cell_shows_the_table_of_a_result(capsys):
    shown = result(0.5)._replace(table=CONTROL_TABLE)
    rows = re.findall(r'<tr><th[^>]*>(.*?)</th>(.*?)</tr>', shown._repr_html_())
    cells = {title: re.findall(r'>([^<]*)</t[dh]>', rest) for title, rest in rows}
    assert cells[''] == ['start', 'trained', 'good']
    assert cells['return, stochastic'] == ['0.500 ± 0.5', '0.500 ± 0.5', 'high']
    assert cells['KL(policy || start) per step'] == ['0.500', '0.500', 'small']
    assert '1,000,000 env steps, 100 labels, 12 s' in shown._repr_html_()
    reports.print_result(ControlRun(), shown)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith('│')]
    assert [line.split('│')[1].strip() for line in printed] == [*cells][1:]


def test_the_table_has_what_the_last_update_says_of_the_objective():
    shown = result(0.5)._replace(table=CONTROL_TABLE, update={'train/preference': -0.61})
    assert tables.comparison(shown.table, shown.before, shown.after, shown.update)[-1] == (
        ('J, last update', '-', '-0.610', 'above -0.693')
    )
    assert 'J, last update' in shown._repr_html_()
    assert 'J, last update' not in result(0.5)._replace(table=CONTROL_TABLE)._repr_html_()


def test_a_command_says_what_every_number_of_a_table_means(capsys):
    assert commands.run(['metrics']) == 0
    printed = capsys.readouterr().out
    lines = [line for kind in workloads.KINDS for line in kind.table]
    judged = {f'eval/{line.metric}' for line in lines if line.good} - {
        'eval/deterministic_return',
        'eval/return_q50',
    }
    keys = {key for one in meanings.MEANINGS for key in one.metrics}
    assert judged - keys == set()
    assert {line.metric for line in tables.LAST_UPDATE} <= keys
    assert all(key in printed for key in keys)


def test_html_of_a_result_is_text_whatever_names_are_made_of():
    shown = result(0.5)._replace(table=(Line('<b>a</b>', 'return', good='<i>'),))
    assert '<b>' not in shown._repr_html_()
    assert '<i>' not in shown._repr_html_()


def test_a_refusal_imports_none_of_what_takes_long(tmp_path):
    (tmp_path / 'bad.yaml').write_text('objective: {bta: 1}\n')
    code = """
import json, sys
from sail_jax.cli import main
done = []
for arguments in (['train', 'bad.yaml'], ['evaluate', 'none'], ['fly'], ['train', 'bad.yaml', '--help']):
    try:
        done.append(main(arguments))
    except SystemExit as stop:
        done.append(stop.code)
print(json.dumps([done, sorted({name.partition('.')[0] for name in sys.modules})]))
"""  # noqa: E501
    ran = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        env={'PYTHONPATH': ':'.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    statuses, modules = json.loads(ran.stdout.splitlines()[-1])
    assert statuses == [2, 2, 2, 0]
    heavy = {'jax', 'brax', 'flax', 'orbax', 'tensorflow_datasets', 'grain', 'pyarrow', 'mujoco'}
    assert not heavy & set(modules)
