"""What stands in `examples` runs, and does what it says."""

import re

import pytest

from tests.support import examples
from tests.support.paths import ROOT


@pytest.mark.parametrize('path', sorted((ROOT / 'examples').glob('*.py')), ids=lambda p: p.name)
def test_an_example_uses_public_names_only(path):
    assert not re.search(r'(\.|import )_[a-z]', path.read_text())


def test_families_of_ones_own_are_read_sampled_from_and_written_again(tmp_path, capsys):
    examples.load('custom_model').main(tmp_path)
    said = capsys.readouterr().out
    assert said.count('written again are the same') == 2
    assert "pear: '" in said
    assert "gemma2: '" in said


def test_an_environment_of_ones_own_is_learned(tmp_path):
    result = examples.load('custom_environment').main(str(tmp_path / 'run'))
    assert result.after['eval/return'] > 2 * result.before['eval/return']
