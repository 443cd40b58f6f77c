"""From Python: what is given is checked as files and the command line are, and errors name
arguments."""

import pickle
import shlex
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import sail_jax
from sail_jax import configfile, errors
from sail_jax.config import Divergence, Objective, Settings
from sail_jax.control.config import ControlRun
from sail_jax.errors import Interrupted, TrainingFailed, UserError
from sail_jax.language.quickstart.config import QuickstartRun
from tests.support.toy import SETTINGS, Point

QUICKSTART = 'configs/quickstart.yaml'


def refused(call, *arguments, **named):
    """The error's text, which is one line."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **named)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def changes(**overrides):
    """What `load` makes of overrides, by dotted keys."""
    before, after = sail_jax.load(QUICKSTART), sail_jax.load(QUICKSTART, **overrides)
    a, b = configfile.flatten(before), configfile.flatten(after)
    return {key: value for key, value in b.items() if a.get(key) != value}


def test_load_takes_overrides():
    assert changes() == {}
    assert changes(seed=3) == {'seed': 3}
    assert changes(seed=np.int64(3), **{'objective.beta': np.float32(0.5)}) == {
        'seed': 3,
        'objective.beta': 0.5,
    }
    assert changes(**{'objective.mixture.dpr': 0.5}) == {'objective.mixture.dpr': 0.5}
    # A mapping sets what it has; what the file says of the section's other keys stays.
    assert changes(optimizer={'learning_rate': 1e-3}) == {'optimizer.learning_rate': 1e-3}
    assert changes(**{'optimizer.clip': None}, value={'hidden': [8]}) == {
        'optimizer.clip': None,
        'value.hidden': [8],
    }
    assert changes(objective=Objective(beta=0.3)) == {'objective.beta': 0.3}
    for seeds in (np.arange(3), jnp.arange(3), range(3), (0, 1, 2)):
        assert changes(seeds=seeds) == {'seeds': [0, 1, 2]}
    for switch in (np.asarray([True])[0], jnp.asarray(True)):
        assert changes(**{'labeller.soft': switch}) == {'labeller.soft': True}
    assert changes(reference={'source': 'run', 'path': Path('runs/a')}) == {
        'reference.source': 'run',
        'reference.path': 'runs/a',
    }


def test_a_path_is_text_where_the_setting_is_text():
    file = 'configs/language/qwen2.5-0.5b-ultrafeedback.yaml'
    assert sail_jax.load(file, data={'path': Path('my') / 'rows'}).data.path == 'my/rows'


@pytest.mark.parametrize('overrides', [[], [('seed', 3)], 'seed=3', 3, {'seed'}], ids=repr)
def test_overrides_that_are_no_mapping_are_refused(tmp_path, overrides):
    text = refused(sail_jax.train, QUICKSTART, tmp_path / 'run', overrides=overrides)
    assert text.startswith("overrides: expected a mapping, {'seed': 3} for example, got ")
    assert not (tmp_path / 'run').exists()


BAD = {
    'unknown': ({'sed': 3}, 'unknown key sed; did you mean seed?'),
    'of a section': ({'epochs': 8}, 'unknown key epochs; did you mean optimizer.epochs?'),
    'unknown deep': ({'objective.bta': 3}, 'unknown key objective.bta; did you mean objective.b'),
    'below a setting': ({'seed.x': 3}, 'seed: should be a valid integer'),
    'no key': ({'': 3}, 'unknown key'),
    'out of bounds': ({'total_env_steps': -5}, 'total_env_steps: should be greater than or equal'),
    'text': ({'seed': '3'}, "seed: should be a valid integer, not text, got '3'"),
    'switch': ({'seed': True}, 'seed: should be a valid integer, not true or false, got True'),
    'float32': ({'objective': {'beta': 1e308}}, 'objective.beta: should be at most 3.4e+38'),
    'other section': ({'objective': Divergence()}, 'objective: a section; expected keys'),
    'no section': ({'objective': 3}, 'objective: a section; expected keys and values, got 3'),
    'other workload': ({'workload': 'bandit'}, "workload: should be 'control', got 'bandit'"),
    'a matrix': ({'seeds': np.zeros((2, 2))}, 'seeds.0: should be a valid integer, got [0.0, 0'),
    'not UTF-8': ({'env.name': 'a\udcff'}, 'env.name: should be UTF-8'),
}


@pytest.mark.parametrize(('overrides', 'said'), BAD.values(), ids=BAD)
def test_wrong_overrides_are_refused_wherever_they_come_in(tmp_path, overrides, said):
    assert refused(sail_jax.load, QUICKSTART, **overrides).startswith(said)
    for run in (QUICKSTART, sail_jax.load(QUICKSTART)):
        text = refused(sail_jax.train, run, tmp_path / 'run', overrides=overrides)
        assert text.startswith(said)
    assert not (tmp_path / 'run').exists()


def copies():
    run = ControlRun.model_validate(SETTINGS)
    change = lambda value, **update: value.model_copy(update=update)
    mixture = change(run.objective.mixture, dpr=3)
    return {
        'unknown key': (change(run, sed=3), 'unknown key sed; did you mean seed?'),
        'out of bounds': (change(run, total_env_steps=-5), 'total_env_steps: should be greater'),
        'wrong type': (change(run, seed='1'), 'seed: should be a valid integer, not text'),
        'dict': (change(run, objective={'beta': 0.2}), 'objective: a dict in the place of the sec'),
        'deep dict': (
            change(run, objective=change(run.objective, mixture={'dpr': 1})),
            'objective.mixture: a dict in the place',
        ),
        'deep unknown': (
            change(run, objective=change(run.objective, bta=1)),
            'unknown key objective.bta',
        ),
        'deep bound': (
            change(run, objective=change(run.objective, mixture=mixture)),
            'objective.mixture.dpr: should be less than or equal to 1',
        ),
        'other section': (change(run, objective=run.divergence), 'objective: a section; expected'),
        'no section': (change(run, objective=None), 'objective: a section; expected keys'),
        'no workload': (Settings(), 'run: a configuration or the path of one, got Settings'),
        'a dict': ({'seed': 3}, 'run: a configuration or the path of one, got dict'),
        'None': (None, 'run: a configuration or the path of one, got NoneType'),
    }


@pytest.mark.parametrize('case', copies())
def test_a_configuration_that_python_made_wrong_is_refused_by_train(tmp_path, case):
    run, said = copies()[case]
    text = refused(sail_jax.train, run, tmp_path / 'run', env=Point(), quiet=True)
    assert text.startswith(said)
    assert not (tmp_path / 'run').exists()


def test_a_configuration_that_python_made_right_is_kept():
    run = ControlRun.model_validate(SETTINGS)
    copy = run.model_copy(update={'objective': run.objective.model_copy(update={'beta': 0.7})})
    assert configfile.checked(copy) == copy
    assert configfile.differences(configfile.checked(copy), run) == ['objective.beta (0.1 -> 0.7)']


def test_episodes_of_evaluate_are_checked(tmp_path):
    configfile.write(ControlRun(), tmp_path / 'config.yaml')
    for episodes in (10**12, 0, -1, '8', True):
        text = refused(sail_jax.evaluate, tmp_path, episodes)
        assert text.startswith('evaluation.episodes: should be')


@pytest.mark.parametrize(
    ('call', 'said'),
    [
        (lambda: sail_jax.load({'workload': 'control'}), 'path: expected a path, got dict'),
        (lambda: sail_jax.evaluate(sail_jax.load(QUICKSTART)), 'run_dir: expected a path, got Con'),
        (lambda: sail_jax.open_run(3), 'run_dir: expected a path, got int'),
        (lambda: sail_jax.render([]), 'run_dir: expected a path, got list'),
        (lambda: sail_jax.generate(None, []), 'model: expected a path, got NoneType'),
        (lambda: sail_jax.plot(None), 'runs: expected a path, got NoneType'),
        (lambda: sail_jax.plot([b'run']), 'runs: expected a path, got bytes'),
        (lambda: sail_jax.train(QUICKSTART, 3), 'run_dir: expected a path, got int'),
    ],
)
def test_what_is_no_path_is_named_by_argument(call, said):
    with pytest.raises(UserError, match=f'^{said}'):
        call()


def test_errors_name_arguments_in_python(tmp_path):
    (tmp_path / 'taken').touch()
    text = refused(sail_jax.train, ControlRun.model_validate(SETTINGS), tmp_path, env=Point())
    assert text == f'{tmp_path}: exists already; use resume=True, or another run_dir'


@pytest.mark.parametrize('where', ['runs/a', "runs/a 'b'", '/r/ä b'])
def test_the_command_that_goes_on_becomes_a_call(where):
    quoted = shlex.quote(where)
    command = f'sail-jax train {quoted}/config.yaml --run-dir {quoted} --resume'

    def stop():
        raise Interrupted(f'stopped; go on with: {command}', 75)

    with pytest.raises(Interrupted) as caught:
        errors.for_python(stop)()
    assert caught.value.status == 75
    call = f'sail_jax.train({where + "/config.yaml"!r}, {where!r}, resume=True)'
    assert str(caught.value) == f'stopped; go on with: {call}'


def test_errors_pass_from_a_process_to_another():
    for error in (UserError('bad'), TrainingFailed('lost'), Interrupted('stopped', 75)):
        read = pickle.loads(pickle.dumps(error))
        assert (type(read), str(read), read.status) == (type(error), str(error), error.status)


def test_the_two_quickstarts_have_names_of_their_own():
    named = {}
    for path in (QUICKSTART, 'configs/language/quickstart.yaml', 'configs/language/sft.yaml'):
        run = sail_jax.load(path)
        named[type(run)] = sail_jax.runs.default_name(path, run)
    assert named[ControlRun] == 'quickstart'
    assert named[QuickstartRun] == 'language-quickstart'
    assert 'sft' in named.values()
