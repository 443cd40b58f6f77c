"""Ruff is clean."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize('command', [['check'], ['format', '--check']], ids=['lint', 'format'])
def test_ruff(command):
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, '-m', 'ruff', *command, '.'], cwd=root, check=True)
