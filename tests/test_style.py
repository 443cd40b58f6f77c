"""Ruff is clean."""

import subprocess
import sys

import pytest

from tests.support.paths import ROOT


@pytest.mark.parametrize('command', [['check'], ['format', '--check']], ids=['lint', 'format'])
def test_ruff(command):
    subprocess.run([sys.executable, '-m', 'ruff', *command, '.'], cwd=ROOT, check=True)
