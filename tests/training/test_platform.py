"""Settings of JAX: one line for what nothing works with, and for a run that had others."""

import os
import re
import signal
import subprocess
import sys

import jax
import pytest

import sail_jax
from sail_jax import cli, commands
from sail_jax.control.config import ControlRun
from sail_jax.errors import UserError
from sail_jax.training import platform
from tests.support.toy import SETTINGS, Point

RUN = ControlRun.model_validate(SETTINGS)


@pytest.fixture
def setting():
    """Sets one of JAX's settings for a test."""
    before = {}

    def change(name, value):
        before.setdefault(name, getattr(jax.config, name))
        jax.config.update(name, value)

    yield change
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize(('name', 'value'), platform.UNUSABLE.items())
def test_a_setting_that_nothing_works_with_is_named_before_anything_is_written(
    name, value, setting, tmp_path
):
    setting(name, value)
    with pytest.raises(UserError, match=f'^{name.upper()}={value}: not with sail_jax'):
        sail_jax.train(RUN, tmp_path / 'run', env=Point())
    with pytest.raises(UserError, match=f'^{name.upper()}={value}: not with sail_jax'):
        sail_jax.train('configs/bandit/landscape.yaml', tmp_path / 'study')
    assert not list(tmp_path.iterdir())


def test_what_is_called_within_a_trace_or_a_mesh_is_refused(tmp_path):
    call = lambda: sail_jax.train(RUN, tmp_path / 'run', env=Point())
    with pytest.raises(UserError, match=r'^called from a function that JAX traces'):
        jax.eval_shape(call)
    mesh = jax.make_mesh((1,), ('x',), devices=jax.devices()[:1])
    with jax.set_mesh(mesh), pytest.raises(UserError, match=r'^called while a mesh is set'):
        call()
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings('ignore:os.fork:RuntimeWarning')  # JAX's, and Python 3.12's.
@pytest.mark.filterwarnings('ignore:This process:DeprecationWarning')
def test_a_process_that_was_forked_from_one_with_jax_does_not_wait_for_ever(tmp_path):
    jax.devices()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            sail_jax.train(RUN, tmp_path / 'run', env=Point())
        except UserError as error:
            os._exit(42 if 'spawn' in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert not list(tmp_path.iterdir())
    platform.require_usable()


@pytest.mark.parametrize(
    ('name', 'value', 'said'),
    [
        ('jax_enable_x64', True, 'JAX_ENABLE_X64=False, and now it is True'),
        ('jax_default_prng_impl', 'rbg', 'JAX_DEFAULT_PRNG_IMPL=threefry2x32, and now it is rbg'),
        ('jax_random_seed_offset', 7, 'JAX_RANDOM_SEED_OFFSET=0, and now it is 7'),
    ],
)
def test_a_run_goes_on_under_the_settings_that_it_had(name, value, said, setting, tmp_path, run):
    before = (run / 'config.yaml').read_bytes(), sorted(os.listdir(run / 'checkpoints'))
    setting(name, value)
    with pytest.raises(UserError, match=f'checkpoints/4: the run has {said}; set it as it was'):
        sail_jax.train(RUN, run, env=Point(), resume=True, quiet=True)
    assert ((run / 'config.yaml').read_bytes(), sorted(os.listdir(run / 'checkpoints'))) == before


def test_who_reads_a_run_of_64_bits_without_them_is_told_so(setting, tmp_path):
    setting('jax_enable_x64', True)
    sail_jax.train(RUN, tmp_path / 'run', env=Point(), quiet=True)
    setting('jax_enable_x64', False)
    with pytest.raises(UserError, match='the run has JAX_ENABLE_X64=True, and now it is False'):
        sail_jax.evaluate(tmp_path / 'run', env=Point())


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp('settings') / 'run'
    sail_jax.train(RUN, path, env=Point(), quiet=True)
    return path


def test_warnings_that_are_errors_are_one_line(monkeypatch, capsys):
    """Brax warns as it is imported."""

    def read(_):
        raise DeprecationWarning('no longer\nmaintained')

    monkeypatch.setattr(commands, 'run', read)
    assert cli.main(['plot']) == 2
    said = "sail-jax: the environment: PYTHONWARNINGS makes an error of 'no longer maintained'\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ('name', 'value', 'said'),
    [
        ('JAX_PLATFORMS', 'cuda', 'JAX_PLATFORMS=cuda: JAX has no device: '),
        ('JAX_PLATFORMS', 'abacus', "JAX_PLATFORMS=abacus: JAX has no device: .*'abacus'"),
        ('MPLBACKEND', 'abacus', "the environment: .*'abacus'"),
        ('JAX_ENABLE_X64', 'perhaps', "the environment: .*'perhaps' .* 'JAX_ENABLE_X64'"),
    ],
)
def test_an_environment_in_which_a_library_does_not_begin_is_one_line(name, value, said, run):
    if value == 'cuda' and jax.default_backend() == 'gpu':
        pytest.skip('there is one')
    rest = ['doctor'] if name.startswith('JAX') else ['plot', run]
    command = [sys.executable, '-m', 'sail_jax.cli', *rest]
    done = subprocess.run(command, capture_output=True, env=os.environ | {name: value}, text=True)
    assert done.returncode == 2
    *progress, line = done.stderr.splitlines()
    assert not progress
    assert re.match(f'sail-jax: {said}', line)
