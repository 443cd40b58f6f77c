"""What stands in `examples` runs, and does what it says; `.ci/run` always looks."""

import dataclasses
import re

import pytest

import sail_jax
from sail_jax.cli import main
from sail_jax.training import metrics
from tests.support import examples, small
from tests.support.checkpoints import same
from tests.support.paths import ROOT
from tests.support.toy import SETTINGS, Point


@pytest.fixture(autouse=True)
def registries_as_before():
    """What an example adds is not there for the tests after it."""
    registries = sail_jax.PAIR_LOSSES, sail_jax.LABELLERS
    before = [dict(registry) for registry in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.mark.parametrize('path', sorted((ROOT / 'examples').glob('*.py')), ids=lambda p: p.name)
def test_an_example_uses_public_names_only(path):
    assert not re.search(r'(\.|import )_[a-z]', path.read_text())


@pytest.mark.slow
def test_families_of_ones_own_are_read_sampled_from_and_written_again(tmp_path, capsys):
    examples.load('custom_model').main(tmp_path)
    said = capsys.readouterr().out
    assert said.count('written again are the same') == 2
    assert "pear: '" in said
    assert "gemma2: '" in said


@pytest.mark.slow
def test_an_environment_of_ones_own_is_learned(tmp_path):
    result = examples.load('custom_environment').main(str(tmp_path / 'run'))
    assert result.after['eval/return'] > 2 * result.before['eval/return']


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_objective_of_ones_own_is_trained_by_its_name(tmp_path):
    examples.load('custom_objective').main(str(tmp_path / 'run'), updates=5)
    rows = metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')
    # exp(0) while the policy is its reference; log sigmoid would have 0.69.
    assert rows[1]['train/preference'] == pytest.approx(-1, abs=0.05)
    assert 'loss: exponential' in (tmp_path / 'run' / 'config.yaml').read_text()
    unknown = {'objective.loss': 'exponentiel'}
    with pytest.raises(sail_jax.UserError, match=r'exponentiel.*hinge, simpo, .*exponential'):
        sail_jax.train(tmp_path / 'run' / 'config.yaml', overrides=unknown, env=Point())


def labelled(run_dir):
    """The share of pairs that got a label, of each update."""
    rows = metrics.read_rows(run_dir / 'metrics.jsonl')
    return [row['train/labelled'] for row in rows if 'train/labelled' in row]


@pytest.mark.slow
def test_a_labeller_of_ones_own_labels_segments(tmp_path):
    examples.load('custom_labeller').main(str(tmp_path / 'run'), updates=5)
    assert 'kind: hesitant' in (tmp_path / 'run' / 'config.yaml').read_text()
    assert all(0 < share < 1 for share in labelled(tmp_path / 'run'))


@pytest.mark.slow
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


PENDULUM = {
    **{key: value for key, value in SETTINGS.items() if key != 'logging'},
    'env': {'name': 'inverted_pendulum', 'episode_length': 30},
    'value': {'hidden': [8]},
    'optimizer': {'epochs': 1, 'minibatches': 1},
    'logging': {'tensorboard': False},
}


@pytest.mark.slow
def test_a_reward_of_ones_own_is_recorded(tmp_path):
    example, path = examples.load('custom_reward'), tmp_path / 'run'
    result = example.main(str(path), **PENDULUM)
    assert result.after['eval/return'] != result.before['eval/return']
    assert 'segment_reward: gentle' in (path / 'config.yaml').read_text()


@pytest.mark.slow
def test_a_sweep_leaves_runs_and_their_plot(tmp_path):
    members = examples.load('sweep').main(str(tmp_path / 'run'), **PENDULUM)
    assert [*members] == [f'beta-{beta}-seed-{seed}' for beta in (0.1, 0.3) for seed in (0, 1)]
    assert len({tuple(result.after.values()) for result in members.values()}) == 4
    assert (tmp_path / 'run' / 'return.png').stat().st_size > 10_000
    assert sail_jax.load_policy(tmp_path / 'run' / 'beta-0.3-seed-1')([0.0] * 4).shape == (1,)


@pytest.mark.slow
def test_a_checkpoint_is_aligned_by_a_reward_of_ones_own_and_exported(tmp_path):
    result = examples.load('align_hf').main(str(tmp_path / 'brief'))
    assert result.after['eval/reward'] > result.before['eval/reward']
    responses = sail_jax.generate(tmp_path / 'brief', ['A good book'], max_tokens=16)
    exported = tmp_path / 'brief' / 'exported'
    assert sail_jax.generate(exported, ['A good book'], max_tokens=16) == responses


TOUR = ROOT / 'examples' / 'tour.ipynb'


def outputs(notebook):
    """What cells gave, in their order: (type of the content, content)."""
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    return [
        (kind, content)
        for cell in cells
        for output in cell.outputs
        for kind, content in (output.get('data') or {'error': output.get('evalue')}).items()
    ]


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_says():
    nbclient, nbformat = pytest.importorskip('nbclient'), pytest.importorskip('nbformat')
    pytest.importorskip('ipykernel')
    notebook = nbformat.read(TOUR, as_version=4)
    committed = outputs(notebook)
    where = {'metadata': {'path': str(TOUR.parent)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=where).execute()
    shown = outputs(notebook)
    progress = [text for _, text in shown if text and re.match(r'\d+ of 80 updates  \d+ s', text)]
    assert len(progress) == 1, 'one line, however long it trains'
    assert any(kind == 'text/html' and 'return, stochastic' in text for kind, text in shown)
    assert any(kind == 'text/html' and text.startswith('<iframe') for kind, text in shown)
    assert any(kind == 'image/png' for kind, _ in shown)
    assert sorted(kind for kind, _ in committed) == sorted(kind for kind, _ in shown)
    assert TOUR.stat().st_size < 200_000
