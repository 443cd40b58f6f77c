"""What a command says on its way."""

import io
import queue
import re
import threading

import pytest

import sail_jax
from sail_jax import terminal
from sail_jax.bandit import study
from sail_jax.control.config import ControlRun
from sail_jax.training import metrics, progress
from tests.support.toy import SETTINGS, Point


def test_a_run_says_what_it_is_busy_with_and_then_where_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, 'FIRST_S', 0)
    run = ControlRun.model_validate(SETTINGS)
    sail_jax.train(run, tmp_path / 'run', env=Point())
    said = capsys.readouterr().err.splitlines()
    stages = [match[1] for line in said if (match := re.fullmatch(r' *\d+ s  (.*)', line))]
    assert stages == [
        'preparing the start policy',
        'compiling the start',
        'compiling and evaluating',
        'compiling the update',
    ]
    assert any(re.match(r' +240 env steps  ', line) for line in said)
    # A run at its end has nothing left, and says so.
    sail_jax.train(run, tmp_path / 'run', env=Point(), resume=True)
    assert 'nothing is left to train: the run is at its end, 240 env steps' in (
        capsys.readouterr().err
    )
    sail_jax.train(run, tmp_path / 'run', env=Point(), resume=True, quiet=True)
    assert capsys.readouterr().err == ''


def test_a_stage_that_takes_long_is_named_again_until_the_next(monkeypatch):
    said, twice = [], threading.Event()

    def note(text):
        said.append(text.strip().split('  ', 1)[1])
        if said.count('still compiling') == 2:
            twice.set()

    monkeypatch.setattr(progress, 'FIRST_S', 0.01)
    monkeypatch.setattr(progress, 'AGAIN_S', 0.01)
    monkeypatch.setattr(progress, 'say', note)
    with progress.Stages() as stages:
        stages.stage('compiling')
        assert twice.wait(20)
        stages.stage('drawing')
        stages.stage('done')
    assert said[0] == 'compiling'
    before = len(threading.enumerate())
    with progress.Stages(quiet=True) as stages:
        stages.stage('nothing')
    assert 'nothing' not in said
    assert len(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ('updates', 'begun', 'left_s'), [(30, 0, 27 * 300 + 3 * 1000), (40, 10, 27 * 300 + 3 * 1000)]
)
def test_a_file_hears_how_long_updates_and_evaluations_will_take(
    monkeypatch, updates, begun, left_s
):
    said, now = queue.SimpleQueue(), 0.0
    monkeypatch.setattr(progress, 'AGAIN_S', 0.01)
    monkeypatch.setattr(progress, 'say', said.put)
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now)
    with bar_of(updates, evaluate_every=10) as bar:
        for seconds in (5000, 1000):  # The first one compiles.
            with bar.evaluating():
                now += seconds
        bar.training(begun)
        assert said.get(timeout=20).endswith(f'{begun} of {updates} updates')
        for step in range(3):
            now += 300
            bar.show(ROW | {'step': begun + step + 1})
        expected = f' +6900 s  {begun + 3} of {updates} updates, eta {left_s} s'
        # It speaks whenever its time is up, between two updates too.
        while not re.fullmatch(expected, said.get(timeout=20)):
            pass


@pytest.mark.parametrize(
    ('end', 'left'),
    [(20, [11 + 2 * 7, 10 + 7, 1 + 7, 0]), (25, [16 + 3 * 7, 15 + 2 * 7, 6 + 2 * 7, 5 + 7, 0])],
)
def test_the_last_evaluation_is_waited_for_once(end, left):
    pace = progress.Pace(end, 10)
    pace.evaluated(7.0)
    pace.begin(0, 7.0)
    for update, expected in zip((9, 10, 19, 20, 25), left, strict=False):
        pace.see(update, 7.0 + update)
        assert pace.left_s() == expected


def bar_of(updates, **options):
    return progress.ProgressBar(updates, WATCHED, 'env_steps', **{'evaluate_every': 100} | options)


WATCHED = {f'train/{name}': name for name in ('return', 'margin', 'label accuracy', 'wins')}
ROW = {'step': 3456, 'env_steps': 10**6} | dict.fromkeys(WATCHED, 123.456)


@pytest.mark.parametrize('width', [72, 80, 200])
def test_a_terminal_has_room_for_count_and_time(monkeypatch, width):
    written = io.StringIO()
    console = terminal.Console(file=written, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(progress, 'console', console)
    bar = bar_of(12_000)
    bar.training(0)
    bar.show(ROW)
    console.print(bar._progress)
    (line,) = written.getvalue().splitlines()
    assert len(line) <= width
    assert re.search(r'^update .* 3456/12000 0:00:0\d eta (-:--:--|\d:\d\d:\d\d) r', line)
    assert (width < 200) == line.endswith('…')


def test_a_file_has_a_line_for_each_evaluation(monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', '40')
    bar = bar_of(12_000)
    for step in range(3):
        bar.show(ROW | {'step': step})
        bar.show(ROW | {'step': step, 'eval/return': 1.0})
    lines = capsys.readouterr().err.splitlines()
    numbers = '  '.join(f'{name} 123' for name in WATCHED.values())
    assert lines == [f'   1,000,000 env steps  {numbers}'] * 3


@pytest.mark.parametrize(
    ('value', 'shown'),
    [(0.01234, '0.0123'), (999.4, '999'), (1234, '1234'), (-56789, '-56.8k'), (2.5e6, '2.5M')],
)
def test_short_numbers(value, shown):
    assert progress.short(value) == shown


def test_every_objective_of_a_study_is_named():
    titles = [study._doing(name) for name in study.OBJECTIVES]
    assert len(set(titles)) == 3
    assert all('compiling' in title for title in titles)
    assert metrics.say is progress.say
