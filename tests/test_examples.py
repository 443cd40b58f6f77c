"""What stands in `examples` runs, and does what it says."""

import dataclasses
import re

import pytest

import sail_jax
from sail_jax.cli import main
from sail_jax.training import metrics
from tests.support import examples, small
from tests.support.checkpoints import same
from tests.support.paths import ROOT
from tests.support.toy import Point


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


def test_a_workload_of_ones_own_is_trained_resumed_evaluated_and_plotted(tmp_path, capsys):
    example, path = examples.load('custom_workload'), tmp_path / 'run'
    result = example.main(str(path))
    assert result.after['eval/distance'] < 0.5 * result.before['eval/distance']
    assert (path / 'compass.png').stat().st_size > 10_000
    capsys.readouterr()
    assert main(['evaluate', str(path)]) == 0
    assert 'points nearest to where the user goes' in capsys.readouterr().out
    whole = sail_jax.train(sail_jax.load(path / 'config.yaml'), tmp_path / 'whole', quiet=True)
    same(whole.policy, result.policy)


def test_a_name_of_ones_own_is_not_that_of_another_workload(tmp_path):
    kind = examples.load('custom_workload').COMPASS
    sail_jax.register(kind)  # A notebook's cell runs again.
    with pytest.raises(sail_jax.UserError, match='workload control: the name of one of sail_jax'):
        sail_jax.register(dataclasses.replace(kind, name='control'))
    with pytest.raises(sail_jax.UserError, match='workload compass: give either task or study'):
        sail_jax.register(dataclasses.replace(kind, task=None))


def test_an_objective_of_ones_own_is_trained_by_its_name(tmp_path):
    examples.load('custom_objective').main(str(tmp_path / 'run'), updates=5)
    rows = metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')
    # exp(0) while the policy is its reference; log sigmoid would have 0.69.
    assert rows[1]['train/preference'] == pytest.approx(-1, abs=0.05)
    assert 'loss: exponential' in (tmp_path / 'run' / 'config.yaml').read_text()
    unknown = {'objective.loss': 'exponentiel'}
    with pytest.raises(sail_jax.UserError, match=r'exponentiel.*dpo, ipo, hinge, exponential'):
        sail_jax.train(tmp_path / 'run' / 'config.yaml', overrides=unknown, env=Point())


def labelled(run_dir):
    """The share of pairs that got a label, of each update."""
    rows = metrics.read_rows(run_dir / 'metrics.jsonl')
    return [row['train/labelled'] for row in rows if 'train/labelled' in row]


def test_a_labeller_of_ones_own_labels_segments(tmp_path):
    examples.load('custom_labeller').main(str(tmp_path / 'run'), updates=5)
    assert 'kind: hesitant' in (tmp_path / 'run' / 'config.yaml').read_text()
    assert all(0 < share < 1 for share in labelled(tmp_path / 'run'))


def test_a_labeller_of_ones_own_labels_responses(tmp_path):
    examples.load('custom_labeller')
    run = small.run(
        small.checkpoint(tmp_path / 'model'),
        small.data(tmp_path / 'prompts.jsonl'),
        labeller={'kind': 'hesitant'},
        total_prompts=8,
        group_size=6,
        evaluation={'prompts': 4},
    )
    sail_jax.train(run, tmp_path / 'run', reward=small.letters, quiet=True)
    shares = labelled(tmp_path / 'run')
    assert len(shares) == 2
    assert all(0 < share < 1 for share in shares)


@pytest.mark.parametrize(
    ('key', 'names'), [('labeller.kind', ['teacher']), ('objective.loss', ['dpo', 'ipo', 'hinge'])]
)
def test_a_name_that_nobody_gave_is_one_line_with_those_there_are(key, names, tmp_path, capsys):
    command = ['train', str(ROOT / 'configs' / 'quickstart.yaml'), f'--{key}', 'hesitnat']
    assert main([*command, '--run-dir', str(tmp_path / 'run')]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{key}: 'hesitnat'; there are {', '.join(names)}" in line
    assert not (tmp_path / 'run').exists()
