"""The language quickstart from end to end, in miniature, and the configurations beside it."""

import json

import pytest
import yaml

from sail_jax import cli, runs, workloads
from sail_jax.configfile import read_yaml
from sail_jax.errors import UserError
from sail_jax.language.quickstart import config, study
from tests.support.paths import ROOT

CONFIGS = ROOT / 'configs' / 'language'
SMALLER = """
reviews: {reviews: 64, pairs: 8}
sft:
  total_prompts: 32
  prompts_per_update: 8
  model: {architecture: {hidden_size: 16, layers: 1, max_positions: 128}}
  data: {max_prompt_tokens: 40, max_response_tokens: 60}
  optimizer: {warmup_updates: 1}
  evaluation: {prompts: 8}
  logging: {tensorboard: false}
alignment:
  total_prompts: 12
  prompts_per_update: 4
  group_size: 2
  data: {max_prompt_tokens: 40, max_response_tokens: 60}
  sampling: {max_tokens: 8}
  evaluation: {prompts: 8, every_updates: 1}
  logging: {tensorboard: false}
"""


def merged(data: dict, changes: dict) -> dict:
    """The mapping with the changes in it, section by section."""
    return data | {
        key: merged(data.get(key, {}), value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.mark.slow
def test_from_text_to_frontier(tmp_path, capsys):
    run_dir, path = tmp_path / 'run', tmp_path / 'small.yaml'
    data, _ = read_yaml(CONFIGS / 'quickstart.yaml')
    path.write_text(yaml.safe_dump(merged(data, yaml.safe_load(SMALLER))))
    given = ['--run-dir', str(run_dir), '--quiet', '--sft.model.architecture.heads', '2']
    assert cli.main(['train', str(path), *given]) == 0
    printed = capsys.readouterr().out
    curves = json.loads((run_dir / 'frontier.json').read_text())
    assert list(curves) == ['online DPO', 'SAIL', 'SAIL-RevKL']
    for name, curve in curves.items():
        assert name in printed
        assert [point['prompts'] for point in curve] == [0, 4, 8, 12]
        # All begin at one model, and leave it.
        assert curve[0] == curves['SAIL'][0]
        assert abs(curve[0]['kl']) < 1e-6 < curve[-1]['kl']
    stage = runs.load(run_dir / 'sft' / 'config.yaml')
    assert stage.model.architecture.heads == 2
    assert (run_dir / 'frontier.png').stat().st_size > 10_000
    switches = {name: runs.load(run_dir / name / 'config.yaml') for name in config.METHODS}
    assert [run.objective.response_grad > 0 for run in switches.values()] == [False, True, True]
    assert [run.divergence.coefficient > 0 for run in switches.values()] == [False, False, True]

    # What is done is left as it is; what is missing is done again, to the same end.
    (run_dir / 'frontier.png').unlink()
    kept = (run_dir / 'sft' / 'metrics.jsonl').read_bytes()
    (run_dir / 'sail' / 'config.yaml').unlink()
    again = runs.train(run_dir / 'config.yaml', run_dir, resume=True, quiet=True)
    assert (run_dir / 'sft' / 'metrics.jsonl').read_bytes() == kept
    assert json.loads((run_dir / 'frontier.json').read_text()) == curves
    assert again.curves['SAIL'][-1]._asdict() == curves['SAIL'][-1]
    assert len(again.samples) == study.SHOWN
    assert all(' review: ' in sample.prompt for sample in again.samples)


@pytest.mark.parametrize('key', ['objective.response_grad', 'divergence.coefficient'])
def test_methods_that_would_be_the_same_are_refused(tmp_path, key):
    run = runs.load(CONFIGS / 'quickstart.yaml')
    data = run.model_dump()
    section, _, name = key.partition('.')
    data['alignment'][section][name] = 0
    with pytest.raises(UserError, match=f'alignment.{key}: 0 makes'):
        runs.train(config.QuickstartRun.model_validate(data), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('path', sorted(CONFIGS.rglob('*.yaml')), ids=lambda path: path.stem)
def test_settings_go_together(path):
    run = runs.load(path)
    workloads.of(run).check(run)
