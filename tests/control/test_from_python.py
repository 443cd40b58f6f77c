"""What Python gave to a run is recorded by name, and asked for again."""

import jax
import numpy as np
import pytest
import yaml
from brax.training.agents.ppo import checkpoint as ppo_checkpoint

import sail_jax
from sail_jax import configfile, curves
from sail_jax.cli import main
from sail_jax.control import export
from sail_jax.control.config import ControlRun, recorded
from sail_jax.errors import UserError
from tests.support.toy import SETTINGS, Point

RUN = ControlRun.model_validate(SETTINGS)


def low_effort(segment):
    return segment.reward - 0.1 * (segment.action**2).sum(-1)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp('python') / 'run'
    sail_jax.train(RUN, path, env=Point(), segment_reward=low_effort, quiet=True)
    return path


def said(capsys):
    printed = capsys.readouterr()
    assert printed.out == ''
    assert printed.err.count('\n') == 1
    return printed.err


def test_config_yaml_says_what_python_gave_and_loads(trained):
    data = yaml.safe_load((trained / 'config.yaml').read_text())
    assert data['env'] == RUN.env.model_dump() | {'name': 'Point', 'backend': 'python'}
    assert data['segment_reward'] == 'low_effort'
    assert sail_jax.load(trained / 'config.yaml') == recorded(RUN, Point(), low_effort)


@pytest.mark.parametrize('config', ['its own', 'the one it began with'])
def test_resuming_from_the_command_line_says_to_do_it_from_python(
    trained, tmp_path, capsys, config
):
    own = trained / 'config.yaml'
    path = own if config == 'its own' else tmp_path / 'config.yaml'
    if path != own:
        path.write_text(yaml.safe_dump(SETTINGS))
    before = own.read_bytes()
    assert main(['train', str(path), '--run-dir', str(trained), '--resume']) == 2
    line = said(capsys)
    assert 'env Point and segment_reward low_effort came from Python' in line
    assert (
        f"resume it from Python: sail_jax.train('{own}', '{trained}', resume=True, env=env, "
        'segment_reward=segment_reward)'
    ) in line
    assert own.read_bytes() == before


@pytest.mark.parametrize(
    ('command', 'call'),
    [
        (['evaluate'], 'evaluate it from Python: sail_jax.evaluate('),
        (['render'], 'open it from Python: sail_jax.open_run('),
        (['export'], 'open it from Python: sail_jax.open_run('),
    ],
)
def test_other_commands_say_so_too(trained, tmp_path, capsys, command, call):
    out = [str(tmp_path / 'out')] if command == ['export'] else []
    assert main([*command, str(trained), *out]) == 2
    line = said(capsys)
    assert f"{call}'{trained}', env=env)" in line
    assert not list(tmp_path.iterdir())


def test_a_new_run_of_that_configuration_asks_for_both(trained, tmp_path, capsys):
    path = str(trained / 'config.yaml')
    assert main(['train', path, '--run-dir', str(tmp_path / 'run')]) == 2
    assert 'sail_jax.train(CONFIG, env=env, segment_reward=segment_reward)' in said(capsys)
    with pytest.raises(UserError, match='segment_reward low_effort came from Python'):
        sail_jax.train(path, tmp_path / 'run', env=Point())
    assert not list(tmp_path.iterdir())


def test_from_python_it_goes_on(trained, tmp_path):
    before, after = sail_jax.evaluate(trained, env=Point())
    assert before['return'] != after['return']
    run, policy, _ = sail_jax.open_run(trained, env=Point())
    exported = export.export_brax(run, policy, tmp_path / 'brax', Point())
    obs = np.zeros((3, 2), np.float32)
    ppo_checkpoint.load_policy(exported)(obs, jax.random.key(0))
    with pytest.raises(UserError, match=r"another configuration: segment_reward \('low_effort' ->"):
        sail_jax.train(
            trained / 'config.yaml', trained, resume=True, env=Point(), segment_reward=lambda s: 0.0
        )


def test_checkpoints_of_before_it_was_recorded_are_the_runs_own():
    named, own = (run.model_dump(mode='json') for run in (RUN, recorded(RUN, Point(), None)))
    assert configfile.another_runs(named, own).startswith(
        "env.backend 'spring' instead of 'python'"
    )
    del named['segment_reward']
    assert configfile.another_runs(named, own) is None
    assert configfile.another_runs(named | {'seed': 3}, own) == 'seed 3 instead of 0'


def test_a_plot_sets_it_apart_from_a_named_environment(trained, tmp_path):
    ours = curves.load(trained, trained.name)
    theirs = ours._replace(run=RUN)
    assert ours.figure.subject(ours.run) == 'Point (python)'
    names = [name for name, _ in curves.group_by_settings([theirs, ours])]
    assert names == [
        'run: env.name hopper, env.backend spring, segment_reward none',
        'run: env.name Point, env.backend python, segment_reward low_effort',
    ]


def test_an_environment_that_was_named_without_being_given(tmp_path):
    run = ControlRun.model_validate(SETTINGS | {'env': {'name': 'Point', 'backend': 'python'}})
    with pytest.raises(UserError, match=r'env Point came from Python.*train\(CONFIG, env=env\)'):
        sail_jax.train(run, tmp_path / 'run')
    assert not list(tmp_path.iterdir())
