"""The command line: one run through all commands, and one line for everything that is wrong."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import jax
import matplotlib.image
import pytest
import yaml
from brax.training.agents.ppo import checkpoint as ppo_checkpoint

from sail_jax import curves, reports, train_command, workloads
from sail_jax.cli import main
from sail_jax.config import Objective
from sail_jax.control.config import ControlRun
from sail_jax.language.supervised.config import MODEL
from sail_jax.runs import load
from sail_jax.training import metrics
from sail_jax.training.result import Result
from tests.support.disk import disk_of
from tests.support.paths import ROOT
from tests.support.toy import SETTINGS

PENDULUM = {
    **SETTINGS,
    'env': {'name': 'inverted_pendulum', 'episode_length': 30},
    'logging': {'tensorboard': True},
}


CONFIGS = sorted((ROOT / 'configs').rglob('*.yaml'))


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp('config') / 'pendulum.yaml'
    path.write_text(yaml.safe_dump(PENDULUM))
    return path


@pytest.fixture(scope='module')
def runs(config):
    """Two seeds of one configuration, trained through the command line."""
    directories = [config.parent / f'seed{seed}' for seed in (0, 1)]
    for seed, directory in enumerate(directories):
        assert main(['train', str(config), '--seed', str(seed), '--run-dir', str(directory)]) == 0
    return directories


def one_line(capsys):
    """The error that was printed, which is one line and nothing else but progress."""
    printed = capsys.readouterr()
    assert printed.out == ''
    said = re.sub(r'(?m)^ *\d+ s  .*\n', '', printed.err)
    assert said.startswith('sail-jax: ')
    assert said.count('\n') == 1
    return said


def test_a_run_leaves_what_the_documentation_says(runs):
    page = (ROOT / 'docs' / 'reference' / 'run-directory.md').read_text()
    for name in ('config.yaml', 'metrics.jsonl', 'checkpoints', 'tensorboard'):
        assert f'| `{name}' in page
        assert (runs[0] / name).exists()
    assert list((runs[0] / 'tensorboard').iterdir())
    rows = metrics.read_rows(runs[0] / 'metrics.jsonl')
    assert rows[-1]['env_steps'] == 240
    assert yaml.safe_load((runs[1] / 'config.yaml').read_text())['seed'] == 1


def test_resume_of_a_finished_run_prints_its_table(runs, config, capsys):
    assert main(['train', str(config), '--run-dir', str(runs[0]), '--resume']) == 0
    printed = capsys.readouterr().out
    assert 'return, stochastic' in printed
    assert '240 env steps' in printed


def test_evaluate(runs, capsys):
    assert main(['evaluate', str(runs[0])]) == 0
    assert 'win rate against the start policy' in capsys.readouterr().out


def test_plot_draws_seeds_as_a_band(runs, tmp_path, capsys):
    out = tmp_path / 'plot.png'
    assert main(['plot', *map(str, runs), '--out', str(out)]) == 0
    assert matplotlib.image.imread(out).shape[1] > 1000


def test_plot_names_what_sets_runs_apart(runs):
    curve, same = (curves.load(run, run.name) for run in runs)
    others = [
        curve._replace(run=curve.run.model_copy(update={'objective': Objective(beta=beta)}))
        for beta in (0.2, 0.5)
    ]
    groups = curves.group_by_settings([curve, *others, same])
    assert [name for name, _ in groups] == [
        'seed0: objective.beta 0.1 (2 seeds)',
        'seed0: objective.beta 0.2',
        'seed0: objective.beta 0.5',
    ]


def test_damaged_checkpoint_is_one_line_of_a_process(runs, tmp_path):
    path = tmp_path / 'run'
    shutil.copytree(runs[0], path)
    for file in (path / 'checkpoints').rglob('*'):
        if file.is_file() and 'start' not in file.parts:
            file.write_bytes(file.read_bytes()[:3])
    done = subprocess.run(
        [sys.executable, '-m', 'sail_jax.cli', 'evaluate', path], capture_output=True, text=True
    )
    assert done.returncode == 2
    aside = re.compile(r'.*settotalmass| +\d+ s  (still )?evaluating$')
    lines = [line for line in done.stderr.splitlines() if not aside.match(line)]
    assert lines[-1].startswith(f'sail-jax: {path}/checkpoints: none of the checkpoints')
    assert all(line.startswith('sail-jax: checkpoint') for line in lines[:-1]), done.stderr


def test_render(runs, tmp_path, capsys):
    out = tmp_path / 'episode.html'
    assert main(['render', str(runs[0]), '--out', str(out)]) == 0
    assert 'return' in capsys.readouterr().out
    assert '<html' in out.read_text()[:200].lower()


def test_export_is_readable_by_brax(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(['export', str(runs[0]), 'brax']) == 0
    ppo_checkpoint.load_policy(capsys.readouterr().out.strip())
    assert main(['export', str(runs[0]), str(tmp_path / 'brax')]) == 2
    assert 'brax: exists' in one_line(capsys)
    with disk_of(100):
        assert main(['export', str(runs[0]), 'again']) == 1
    assert 'again: cannot be written' in one_line(capsys)
    assert main(['export', str(runs[0]), 'again']) == 0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--objectiv.beta', '1'], 'unknown key objectiv.beta; did you mean objective.beta?'),
        (['--objective.beta', 'x'], 'objective.beta'),
        (['--objective.beta', '-1'], 'objective.beta: should be greater than 0, got -1.0'),
        (['--rollout.group-size', '1'], 'rollout.group_size: should be greater than or equal to 2'),
        (['--rollout.segment-length', '31'], 'rollout.segment_length: 31 is longer than the epis'),
        (['--env.name', 'hoper'], 'did you mean hopper'),
        (['--env.backend', 'sprin'], 'did you mean spring'),
        (['--resume'], '--resume needs the --run-dir'),
        (['--run-dir', '/proc/none/run'], '/proc/none/run: '),
        (['--reference.source', 'run', '--reference.path', '/none'], '/none/config.yaml: No such'),
        (['--reference.source', 'brax'], 'reference.path: needed'),
    ],
)
def test_bad_arguments(config, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(['train', str(config), *arguments]) == 2
    assert message in one_line(capsys)
    assert not [path for path in tmp_path.rglob('*') if path.is_file()], 'nothing is left behind'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('objective:\n  bta: 1\n', ':2: unknown key objective.bta; did you mean objective.beta?'),
        ('objective:\n  beta: one\n', ':2: objective.beta: should be a valid number'),
        ('rollout: {group_size: 1}\n', 'rollout.group_size'),
        ('workload: languge\n', "workload: 'languge'; known: control"),
        ('- 1\n', 'expected "key: value" lines, got list'),
        ('a: [1\n', 'not valid YAML'),
        ('seed: 1.5\n', ':1: seed: should be a valid integer'),
    ],
)
def test_bad_files(tmp_path, capsys, text, message):
    path = tmp_path / 'bad.yaml'
    path.write_text(text)
    assert main(['train', str(path), '--run-dir', str(tmp_path / 'run')]) == 2
    error = one_line(capsys)
    assert message in error
    assert str(path) in error
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'path',
    [path for path in CONFIGS if not workloads.of(load(path)).processes],
    ids=lambda path: path.stem,
)
def test_studies_take_one_process(tmp_path, capsys, monkeypatch, path):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    assert main(['train', str(path), '--run-dir', str(tmp_path / 'run')]) == 2
    assert ' runs take one process so far, not 2; use the devices of one host' in one_line(capsys)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'arguments',
    [
        ['train', 'none.yaml'],
        ['train'],
        ['evaluate', 'none'],
        ['plot', 'none'],
        ['render', 'none'],
        ['export', 'none', 'out'],
        ['fly'],
        [],
        ['evaluate', 'none', '--episodes', 'x'],
    ],
)
def test_bad_commands(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    one_line(capsys)


def test_existing_run_is_not_overwritten(runs, config, capsys):
    before = (runs[0] / 'metrics.jsonl').read_bytes()
    assert main(['train', str(config), '--run-dir', str(runs[0])]) == 2
    assert 'exists already' in one_line(capsys)
    assert (runs[0] / 'metrics.jsonl').read_bytes() == before


def test_help_names_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        main(['train', '--help'])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for setting in ('--objective.beta', '--rollout.group-size', '--value.terminal', '--resume'):
        assert setting in printed


@pytest.mark.parametrize('columns', ['1', '4'])
def test_help_ends_however_narrow_the_terminal_is(monkeypatch, capsys, columns):
    """tyro's own formatter goes round for ever."""
    monkeypatch.setenv('COLUMNS', columns)
    with pytest.raises(SystemExit):
        main(['train', '--help'])
    assert '--objective.beta' in capsys.readouterr().out
    assert os.environ['COLUMNS'] == columns


def test_help_names_the_kinds_of_files_and_the_options_of_the_command(capsys):
    with pytest.raises(SystemExit):
        main(['train', 'configs/bandit/landscape.yaml', '--help'])
    printed = capsys.readouterr().out
    kinds, options = printed.split('those of bandit files', 1)
    for kind in workloads.KINDS:
        assert f'{kind.name:20} {kind.trains}' in kinds
    for option in ('--run-dir DIR', '--resume', '--quiet', '--coordinator HOST:PORT', '--starts'):
        assert option in options


def test_the_end_of_a_run_says_what_to_type_next(runs, config, tmp_path, capsys):
    path = tmp_path / 'my run'
    shutil.copytree(runs[0], path)
    assert main(['train', str(config), '--run-dir', str(path), '--resume']) == 0
    *_, printed = capsys.readouterr().out.partition('next:\n')
    commands = [shlex.split(line) for line in printed.splitlines()]
    assert [command[:3] for command in commands] == [
        ['sail-jax', 'plot', str(path)],
        ['sail-jax', 'render', str(path)],
        ['sail-jax', 'evaluate', str(path)],
        ['sail-jax', 'train', str(path / 'config.yaml')],
    ]
    assert commands[-1][-3:] == ['--resume', '--total-env-steps', '480']
    assert main([*commands[0][1:], '--out', str(tmp_path / 'plot.png')]) == 0


@pytest.mark.parametrize('file', ['language/sft', 'language/reward'])
def test_the_end_of_a_run_says_where_its_model_is(file, tmp_path, capsys):
    run = load(ROOT / f'configs/{file}.yaml')
    result = Result((), (), {'eval/loss': 1.0}, {'eval/loss': 0.5}, 8, 'prompts', 0, 0.0)
    train_command._report(run, result, tmp_path)
    assert f'\nmodel: {tmp_path / MODEL}\n' in capsys.readouterr().out


def test_of_a_sweep_a_member_is_named_next(tmp_path):
    run = load(ROOT / 'configs/quickstart.yaml', seeds=2)
    result = Result((), (), {}, {}, run.total_env_steps, 'env_steps', 0, 0.0)
    plot, render, evaluate, resume = reports.next_commands(run, [result] * 2, tmp_path)
    assert plot.endswith(str(tmp_path))
    assert render.endswith(f'{tmp_path}/seed-0')
    assert evaluate.endswith(f'{tmp_path}/seed-0')
    assert f'--run-dir {tmp_path} --resume' in resume
    spent = result._replace(length=run.total_env_steps - 1)  # By a label budget.
    assert len(reports.next_commands(run, [spent] * 2, tmp_path)) == 3


def test_of_a_registered_workload_the_calls_from_python_are_next(tmp_path, monkeypatch):
    """The command line of another process does not know it."""
    monkeypatch.setattr(workloads, '_registered', {})

    class MazeRun(ControlRun):
        workload: Literal['maze'] = 'maze'

    maze = dataclasses.replace(workloads.KINDS[0], name='maze', settings=MazeRun)
    workloads.register(maze)
    result = Result((), (), {}, {}, 480, 'env_steps', 0, 0.0)
    run = MazeRun(total_env_steps=480)
    assert reports.next_commands(run, result, Path("it's")) == [
        'sail_jax.plot("it\'s")',
        'sail_jax.render("it\'s")',
        'sail_jax.evaluate("it\'s")',
        'sail_jax.train("it\'s/config.yaml", "it\'s", resume=True, '
        "overrides={'total_env_steps': 960})",
    ]


@pytest.mark.parametrize(
    ('text', 'setting', 'said'),
    [
        ('workload: language\nmodel: {path: m}\n', '--sampling.max-tokens', ''),
        ('workload: sft\nseed: x\n', '--loss-on', ''),
        ('workload: bandit\n', '--rollout.group-size', 'known: landscape'),
        ('a: [', '--rollout.group-size', 'not valid YAML'),
        (None, '--rollout.group-size', 'No such file'),
    ],
)
def test_help_does_not_need_a_file_that_is_right(tmp_path, capsys, text, setting, said):
    path = tmp_path / 'unfinished.yaml'
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(['train', str(path), '--help'])
    assert stop.value.code == 0
    printed = capsys.readouterr()
    assert setting in printed.out
    assert said in printed.err
    assert printed.err.count('\n') == bool(said)


def test_the_resolved_configuration_runs_again(runs, capsys):
    resolved = runs[0] / 'config.yaml'
    assert main(['train', str(resolved), '--run-dir', str(runs[0]), '--resume']) == 0
    assert json.loads((runs[0] / 'metrics.jsonl').read_text().splitlines()[-1])['step'] == 4
