"""Ruff is clean, and test modules do not lean on each other."""

import ast
import subprocess
import sys

import pytest

from tests.support.paths import ROOT


@pytest.mark.parametrize('command', [['check'], ['format', '--check']], ids=['lint', 'format'])
def test_ruff(command):
    subprocess.run([sys.executable, '-m', 'ruff', *command, '.'], cwd=ROOT, check=True)


def imported(path):
    """Names of the modules that a file imports, within functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def test_what_tests_share_is_in_support():
    tests = ROOT / 'tests'
    shared = [name for path in tests.rglob('*.py') for name in imported(path)]
    ours = {name for name in shared if name.startswith('tests.')}
    assert {name for name in ours if not name.startswith('tests.support')} == set()
    assert not list((tests / 'support').glob('test_*.py'))
    helpers = {
        path.relative_to(tests)
        for path in tests.rglob('*.py')
        if not path.name.startswith('test_')
        and path.name not in ('__init__.py', 'conftest.py')
        and path.parent != tests / 'support'
    }
    assert helpers == set()
