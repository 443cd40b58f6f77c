"""How benchmarks take turns, and what is done with their ratios."""

import fnmatch
import json
import re
import sys
from pathlib import Path

import jax
import pytest

from benchmarks import __main__ as suite
from benchmarks import (
    control_communication,
    convergence,
    language_models,
    language_throughput,
    machine,
    matrix_products,
    quickstart_seeds,
    regressions,
    rounds,
)
from sail_jax.errors import UserError
from tests.support.paths import ROOT

CONTENDER = """
import sys
from benchmarks.rounds import serve

kept, calls = [], 0

def call():
    global calls
    calls += 1
    if sys.argv[1] == 'large' and calls == 2:
        kept.append(b'x' * 200 * 2**20)
    with open(sys.argv[2], 'a') as file:
        file.write(f'{sys.argv[1]}\\n')
    return {'items': calls}

print('a library says hello')
serve(call)
"""


def test_contenders_take_turns_and_share_nothing(tmp_path):
    commands = {
        name: [sys.executable, '-c', CONTENDER, name, str(tmp_path / 'order')]
        for name in ('small', 'large')
    }
    found = rounds.take_turns(commands, 3, tmp_path / 'logs')
    assert (tmp_path / 'order').read_text().split() == ['small', 'large'] * 3
    for name in commands:
        assert [call['items'] for call in found[name]['calls']] == [1, 2, 3]
        seconds = [call['seconds'] for call in found[name]['calls']]
        assert rounds.rates(found[name], 'items') == pytest.approx(
            [items / s for items, s in zip((1, 2, 3), seconds, strict=True)]
        )
    peaks = {name: [call['peak_mib'] for call in found[name]['calls']] for name in commands}
    assert 190 < peaks['large'][1] - peaks['large'][0] < 300
    assert peaks['small'][2] - peaks['small'][0] < 50


def test_functions_of_one_process_take_turns_after_a_round_that_warms_up():
    order = []

    def call(name):
        order.append(name)
        return {'items': len(order)}

    calls = {name: lambda name=name: call(name) for name in 'ab'}
    found = rounds.take_turns_here(calls, 2)
    assert order == list('ababab')
    assert [call['items'] for call in found['b']['calls']] == [4, 6]
    assert (rounds.rates(found['a'], 'items') > 0).all()


def test_a_contender_that_ends_is_named_with_what_it_said(tmp_path):
    command = [sys.executable, '-c', 'raise SystemExit("no such environment")']
    with pytest.raises(SystemExit, match=r'(?s)ended.*no such environment'):
        rounds.take_turns({'a': command}, 1, tmp_path / 'logs')


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A directory of results, and the command over it; the baseline is `a` 2 and `b` 0.5."""
    baseline, out = tmp_path / 'baseline.json', tmp_path / 'results'
    baseline.write_text(json.dumps({'a': 2.0, 'b': 0.5}))
    out.mkdir()
    monkeypatch.setattr(regressions, 'BASELINE', baseline)

    def run(ratios, *options):
        found = [rounds.row(name, 'x/s', 10 * r, 10, r, None) for name, r in ratios.items()]
        (out / 'one.json').write_text(json.dumps({'rows': found}))
        (out / 'other.json').write_text(json.dumps({'figures': 1}))
        monkeypatch.setattr(sys, 'argv', ['regressions', str(out), *options])
        return regressions.main()

    return run


@pytest.mark.parametrize(
    ('ratios', 'status', 'said'),
    [
        ({'a': 1.9, 'b': 0.54}, 0, ''),
        ({'a': 1.7, 'b': 0.5}, 1, 'a: 2.00 -> 1.70 (-15%)\n'),
        ({'a': 2.3, 'b': 0.5}, 0, 'a: 2.00 -> 2.30 (+15%)\n'),
        ({'new': 9.0}, 0, ''),
    ],
)
def test_what_moved_is_said_and_what_got_worse_is_the_status(results, capsys, ratios, status, said):
    assert results(ratios) == status
    assert capsys.readouterr().out == said


def test_an_update_of_the_baseline_keeps_what_was_not_measured(results):
    assert results({'a': 1.0, 'new': 9.0}, '--update') == 0
    assert regressions.read_baseline() == {'a': 1.0, 'b': 0.5, 'new': 9.0}
    assert results({'a': 1.0}) == 0


def test_the_table_marks_what_moved(results):
    found = [rounds.row('a', 'x/s', 3e6, 2e6, 1.5, 5.0), rounds.row('new', 'x/s', 1, 2, 0.5, None)]
    lines = suite.table(found).splitlines()[2:]
    assert lines == [
        '| a | 3,000,000 | 2,000,000 | x/s | **1.50** | 5 | 2.00 (-25%) |',
        '| new | 1 | 2 | x/s | **0.50** |  |  |',
    ]


def test_weak_scaling_counts_every_gradient_step():
    found = [
        control_communication.Collective('all-reduce', 1000, False),
        control_communication.Collective('all-reduce', 500, True),
    ]
    link = control_communication.Link(1e6, 1e-3, '')
    # Among 4: 1 + 4 collectives of 2 latencies each, and 3/2 of 1000 + 4 * 500 bytes.
    assert control_communication.seconds(found, 4, link, 4) == pytest.approx(0.01 + 4.5e-3)
    assert control_communication.seconds(found, 4, link, 1) == 0


RESULTS = ROOT / 'benchmarks' / 'results'
TABLES = [
    line for line in (ROOT / 'benchmarks' / 'README.md').read_text().splitlines() if '|' in line
]


def test_the_list_of_benchmarks_has_every_module_and_result():
    listed = set(re.findall(r'`([\w/.*]+)', '\n'.join(TABLES)))
    modules = {path.stem for path in (ROOT / 'benchmarks').glob('[a-z]*.py')}
    assert modules - listed == {'kept', 'machine', 'rounds', 'regressions'}
    files = [path for path in RESULTS.rglob('*') if path.suffix in ('.json', '.md')]
    names = {path.relative_to(RESULTS).as_posix() for path in files}
    assert not {x for x in names if not any(fnmatch.fnmatch(x, pattern) for pattern in listed)}


def test_the_list_of_benchmarks_has_the_dates_of_their_results():
    checked = set()
    for line in TABLES:
        for name in re.findall(r'`([\w/]+\.json)`', line):
            dates = re.findall(r'"date": "([\d-]+)"', (RESULTS / name).read_text())
            if dates:
                assert set(re.findall(r'\d{4}-\d\d-\d\d', line)) == {min(dates), max(dates)}, name
                checked.add(name)
    assert len(checked) > 10


def test_results_are_written_with_the_minutes_that_they_took(tmp_path, capsys):
    machine.write({'rows': ['é']}, tmp_path / 'x.json')
    machine.write({'rows': ['é']}, None)
    text = (tmp_path / 'x.json').read_text(encoding='utf-8')
    assert text == capsys.readouterr().out
    assert 'é' in text
    assert json.loads(text)['minutes'] >= 0


ABSOLUTE = re.compile(r'(?<![\w.:/-])/[\w.-]+/[\w./-]+')


@pytest.mark.parametrize(
    'path',
    [path for path in RESULTS.rglob('*') if path.suffix in ('.json', '.md')],
    ids=lambda path: path.name,
)
def test_results_name_no_place_of_a_machine(path):
    assert not ABSOLUTE.findall(path.read_text())


def test_a_command_is_written_without_the_places_of_a_machine(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = [
        '--out',
        str(tmp_path / 'a' / 'b.json'),
        '--runs=/elsewhere/x',
        'c.yaml',
        '--n',
        '3',
    ]
    monkeypatch.setattr(sys, 'argv', ['program', *arguments])
    command = machine.machine('benchmarks.some')['command']
    assert command == 'python -m benchmarks.some --out a/b.json --runs=x c.yaml --n 3'


def test_a_users_compilation_cache_is_left_to_the_study():
    before = jax.config.jax_compilation_cache_dir
    try:
        for given, used in (('/theirs', '/theirs'), (None, str(Path.home() / '.cache/sail_jax'))):
            jax.config.update('jax_compilation_cache_dir', given)
            convergence.keep_compiled()
            assert jax.config.jax_compilation_cache_dir == used
    finally:
        jax.config.update('jax_compilation_cache_dir', before)


@pytest.mark.parametrize('full', [True, False])
def test_matrix_products_are_the_operations_of_an_update(full):
    """Norms and biases apart, as the count by parameters has them."""
    a, lengths = language_models.SMALL['4M'], matrix_products.Lengths(3, 16, 8)
    B, P, R = lengths
    done = lambda products: sum(2 * x.rows * x.inner * x.columns * n for x, n in products.items())
    drawn = language_throughput.operations(a, B * (P + 2 * R), 2 * B * R)
    assert done(matrix_products.drawing(a, lengths)) == pytest.approx(drawn, rel=2e-3)
    # The reference, the policy, and back through its activations and its weights.
    learned = done(matrix_products.learning(a, lengths, full))
    assert learned == pytest.approx((4 if full else 3) * drawn, rel=2e-3)


def test_seeds_of_another_file_or_that_were_stopped_are_not_read(tmp_path, monkeypatch):
    config, commands = tmp_path / 'config.yaml', []
    config.write_text('workload: control\nseed: 1\n')
    monkeypatch.setattr(
        quickstart_seeds.subprocess, 'run', lambda command, check: commands.append(command)
    )
    run_dir = tmp_path / 'seed1'
    run_dir.mkdir()
    (run_dir / 'config.yaml').write_text(config.read_text())  # Of a run that was killed, say.
    for _ in range(2):
        quickstart_seeds.train(str(config), run_dir, [])
    assert [command[-1] for command in commands] == ['--resume']
    with pytest.raises(UserError, match='has a run with total_env_steps: 1000000, and not 4000000'):
        quickstart_seeds.train(str(config), run_dir, ['--total-env-steps', '4000000'])
