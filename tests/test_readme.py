"""What the README promises."""

import re
import subprocess
import sys

import pytest

from sail_jax import configfile, runs
from sail_jax.control.config import ControlRun
from tests.support.paths import ROOT

README = (ROOT / 'README.md').read_text()
CONTRIBUTING = (ROOT / 'CONTRIBUTING.md').read_text()


def test_it_is_short():
    assert len(README.splitlines()) <= 160
    assert len(README.split()) <= 1100


def test_ci_runs_the_readmes_test_command():
    blocks = re.findall(r'```bash\n(.*?)```', README, re.DOTALL)
    command = next(block for block in blocks if 'pytest' in block).strip()
    workflow = (ROOT / '.github' / 'workflows' / 'tests.yml').read_text()
    assert command in map(str.strip, workflow.splitlines())
    lines = (ROOT / '.ci' / 'run').read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith('python3'))
    assert lines[first] == command
    assert not any('pytest' in line for line in lines[:first])


def test_with_extras_a_missing_library_is_a_failure(tmp_path):
    (tmp_path / 'test_it.py').write_text(
        "import pytest\n\ndef test_it():\n    pytest.importorskip('no_such_library')\n"
    )
    command = [sys.executable, '-m', 'pytest', '-n', '0', '-p', 'tests.conftest', str(tmp_path)]
    for options, ending in ([], '1 skipped'), (['--extras'], '1 failed'):
        done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
        assert ending in done.stdout.splitlines()[-1]


def test_settings_in_the_readme_exist():
    known = configfile.flatten(ControlRun())
    sections = {key.rpartition('.')[0] for key in known}
    for key in re.findall(r'`--([a-z_]+\.[a-z_.]+)`', README):
        assert key in known or key in sections, key


def test_paths_in_the_contributors_page_exist():
    paths = re.findall(r'`((?:docs|sail_jax|tests|benchmarks|configs)/[\w./-]*\w)', CONTRIBUTING)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    'path', re.findall(r'(?:configs|benchmarks|sail_jax|docs)/[\w./-]+\w', README)
)
def test_paths_in_the_readme_exist(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').rglob('*.yaml')), ids=lambda p: p.stem)
def test_every_configuration_says_what_was_measured(path):
    runs.load(path)
    header = path.read_text().split('workload:')[0]
    assert 'Measured' in header
    assert 'not yet' in header or re.search(r'\d{4}-\d\d-\d\d', header)
