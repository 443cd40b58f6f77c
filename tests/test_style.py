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


def in_the_locales_encoding(path):
    """Lines that read or write text without saying how it is encoded."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        said = {keyword.arg for keyword in node.keywords}
        first = str(getattr(node.args[0], 'value', '')) if node.args else ''
        text = node.func.attr == 'write_text' or (node.func.attr == 'read_text' and not first)
        opened = node.func.attr == 'open' and first and set(first) <= set('rwxa+')
        if (text or opened) and 'encoding' not in said:
            yield f'{path.relative_to(ROOT)}:{node.lineno}'


def test_text_is_utf8_in_every_locale():
    """In one of ASCII or Latin-1 a response of other letters would end the run that writes it."""
    files = (ROOT / 'sail_jax').rglob('*.py')
    assert [line for path in files for line in in_the_locales_encoding(path)] == []
