"""What the README of an uploaded model says, and that it speaks of the checkpoint that is in it."""

import json

import jax.numpy as jnp
import pytest
import yaml

from sail_jax import configfile
from sail_jax.core.types import Policy
from sail_jax.language import model_card
from sail_jax.language.export import OpenedModel
from tests.support import small

ROWS = [
    {'step': 0, 'eval/reward': 0.1, 'eval/win_rate': None},
    {'step': 1, 'train/margin': 2.0},
    {'step': 2, 'train/margin': 3.0, 'eval/reward': 0.25, 'eval/win_rate': 0.625},
    {'step': 4, 'train/margin': 4.0, 'eval/reward': 0.5, 'eval/win_rate': 0.75},
]


@pytest.mark.parametrize('updates', [0, 3, 4])
def test_card_states_base_data_configuration_and_the_checkpoint_s_evaluation(tmp_path, updates):
    model = {'path': 'hf://me/base@v1', 'train': 'lora'}
    run = small.run('model', 'pairs', model=model, data={'path': 'hf://me/pairs/train.jsonl'})
    configfile.write(run, tmp_path / 'config.yaml')
    (tmp_path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, ROWS)) + '\n')
    opened = OpenedModel(run, None, Policy((), jnp.asarray(updates)), ())
    card = model_card.text(opened, tmp_path, 'me/tuned', adapter=updates == 3)
    _, front, body = card.split('---\n', 2)
    assert yaml.safe_load(front) == {
        'library_name': 'peft' if updates == 3 else 'transformers',
        'pipeline_tag': 'text-generation',
        'tags': ['sail-jax', 'sail-revkl'],
        'base_model': 'me/base',
        'datasets': ['me/pairs'],
    }
    assert f'{updates} updates' in body
    assert "from_pretrained('me/tuned')" in body
    written = body.rpartition('```yaml\n')[2].removesuffix('```\n')
    assert yaml.safe_load(written) == yaml.safe_load((tmp_path / 'config.yaml').read_text())
    evaluated = {0: '0.1', 3: '0.25', 4: '0.5'}[updates]
    assert f'| reward | {evaluated} |' in body
    assert ('| win_rate |' in body) is (updates > 0)
    assert 'margin |' not in body


def test_card_of_what_lies_on_this_host_has_no_paths_in_its_metadata(tmp_path):
    run = small.run(tmp_path / 'base-model', tmp_path / 'pairs.jsonl')
    configfile.write(run, tmp_path / 'config.yaml')
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "train/margin": 2.0}\n')
    opened = OpenedModel(run, None, Policy((), jnp.asarray(1)), ())
    card = model_card.text(opened, tmp_path, 'me/tuned')
    assert yaml.safe_load(card.split('---\n')[1]).keys() == {'library_name', 'pipeline_tag', 'tags'}
    assert '`base-model`, aligned' in card
    assert 'There was none.' in card
