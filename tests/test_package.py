"""The wheel: what is in it, and that it works where the repository is not."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest

from tests.support.paths import ROOT

SOURCES = ('sail_jax', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE')
READS_A_CONFIGURATION = """
import importlib.metadata, sail_jax
from sail_jax import cli
about = importlib.metadata.metadata('sail-jax')
print(sail_jax.__file__, about['Version'], sail_jax.load('quickstart.yaml').env.name, sep='\\n')
assert about['Author'] and about.get_payload().startswith('# sail_jax')
"""
PAGES = {
    'sail_jax/py.typed',
    'sail_jax/scene.js',
    'sail_jax/control/viewer.html',
    'sail_jax/labels/page/label.html',
}


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Built from a copy: setuptools keeps a `build` beside setup.py, and packs what is in it."""
    source, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns('__pycache__')
            shutil.copytree(ROOT / name, source / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, source)
    pip(sys.executable, 'wheel', '--no-deps', '--no-build-isolation', '-w', out, source)
    (path,) = out.iterdir()
    return path


def pip(python, *arguments):
    subprocess.run([python, '-m', 'pip', '-q', *map(str, arguments)], check=True)


def test_a_wheel_has_every_file_of_the_package_and_no_other(wheel):
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'sail_jax').rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }
    assert files >= PAGES
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if '.dist-info/' not in name} == files
    assert any(name.endswith('/LICENSE') for name in names)


def test_an_installed_wheel_reads_a_configuration_outside_the_repository(wheel, tmp_path):
    target = tmp_path / 'installed'
    pip(sys.executable, 'install', '--no-deps', '--target', target, wheel)
    shutil.copy(ROOT / 'configs' / 'quickstart.yaml', tmp_path)
    found = subprocess.run(
        [sys.executable, '-c', READS_A_CONFIGURATION],
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': str(target)},
        check=True,
        capture_output=True,
        text=True,
    )
    file, version, env = found.stdout.split()
    assert file == str(target / 'sail_jax' / '__init__.py')
    assert f'-{version}-' in wheel.name
    assert env == 'hopper'


@pytest.mark.slow
def test_a_wheel_brings_all_that_it_needs(wheel, tmp_path):
    """Into an empty environment, from the package index."""
    venv.create(tmp_path / 'empty', with_pip=True)
    commands = tmp_path / 'empty' / 'bin'
    pip(commands / 'python', 'install', wheel)
    config = ROOT / 'configs' / 'bandit' / 'landscape.yaml'
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    for command in (['doctor'], ['train', config, '--help']):
        subprocess.run([commands / 'sail-jax', *command], cwd=tmp_path, env=env, check=True)
    pip(commands / 'python', 'install', f'{wheel}[label]')  # What the labelling page is made with.
    modules = [
        '.'.join(path.relative_to(ROOT).with_suffix('').parts)
        for path in (ROOT / 'sail_jax').rglob('*.py')
        if path.name != '__init__.py'
    ]
    code = f'import importlib\nfor name in {modules!r}: importlib.import_module(name)'
    subprocess.run([commands / 'python', '-c', code], cwd=tmp_path, env=env, check=True)
