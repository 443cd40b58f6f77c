"""The README of a model on the hub: what it was made of, how, and what was measured."""

from pathlib import Path
from typing import Any

import yaml

from sail_jax import files, hub
from sail_jax.language.export import OpenedModel
from sail_jax.language.reward.stage.config import RewardRun
from sail_jax.training.rows import MetricsRow, read_rows

CARD = """\
---
{metadata}---

# {name}

{base}, {how} with [sail_jax]({project}), {updates} updates.

```python
{usage}
```

## Data

{data}

## Evaluation

{evaluation}

## Configuration

```yaml
{configuration}
```
"""
HOW = {
    'language': 'aligned',
    'sft': 'trained on the chosen responses of a data set',
    'reward': 'trained to tell chosen from rejected responses',
}
TAGS = {'language': 'sail-revkl', 'sft': 'sft', 'reward': 'reward-model'}
USAGE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained('{id}')
tokenizer = AutoTokenizer.from_pretrained('{id}')"""
CLASSIFIER = USAGE.replace('ForCausalLM', 'ForSequenceClassification')
PEFT = """\
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained('{id}')"""
PROJECT = 'https://arxiv.org/abs/2606.31524'
MAX_CONFIG = 2**20
"""Bytes."""


def text(opened: OpenedModel, run_dir: Path, id: str, adapter: bool = False) -> str:
    """The card of a run's model.

    Args:
      run_dir: whose configuration and metrics it states.
      id: `owner/name` of the model.
      adapter: the model is the adapter alone.

    Raises:
      UserError: a file of the run that cannot be read.
    """
    run, updates = opened.run, int(opened.policy.statistics)
    scores = isinstance(run, RewardRun)
    usage = CLASSIFIER if scores else PEFT if adapter else USAGE
    base, data = run.model.path, run.data
    source = 'A new network' if base is None else _link(base)
    metadata: dict[str, Any] = {
        'library_name': 'peft' if adapter else 'transformers',
        'pipeline_tag': 'text-classification' if scores else 'text-generation',
        'tags': ['sail-jax', TAGS[run.workload]],
    }
    # The hub refuses what is no name of a repository.
    if base is not None and hub.is_address(base):
        metadata['base_model'] = hub.name_of(base)
    if hub.is_address(data.path):
        metadata['datasets'] = [hub.parse(data.path, 'dataset').id]
    return CARD.format(
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        name=id.partition('/')[2],
        base=source,
        how=HOW[run.workload],
        project=PROJECT,
        updates=updates,
        usage=usage.format(id=id),
        data=f'{_link(data.path, "dataset")}, split `{data.split}`, as `{data.format}`.',
        evaluation=_table(read_rows(run_dir / 'metrics.jsonl'), updates),
        configuration=files.read(run_dir / 'config.yaml', MAX_CONFIG).decode().strip(),
    )


def _link(path: str | Path, kind: hub.RepoType = 'model') -> str:
    """What is on the hub by its page, and of a directory of this host the name alone."""
    if not hub.is_address(path):
        return f'`{Path(path).name}`'
    address = hub.parse(path, kind)
    of_kind = 'datasets/' if kind == 'dataset' else ''
    return f'[{address.id}](https://huggingface.co/{of_kind}{address.id})'


def _table(rows: list[MetricsRow], updates: int) -> str:
    """The last evaluation within so many updates."""
    evaluations = [
        row
        for row in rows
        if row['step'] <= updates and any(key.startswith('eval/') for key in row)
    ]
    if not evaluations:
        return 'There was none.'
    last = evaluations[-1]
    lines = [
        f'After {last["step"]:.0f} updates, on held-out rows:',
        '',
        '| metric | value |',
        '|-|-|',
    ]
    for key in sorted(last):
        if key.startswith('eval/') and last[key] is not None:
            lines.append(f'| {key.removeprefix("eval/")} | {last[key]:.4g} |')
    return '\n'.join(lines)
