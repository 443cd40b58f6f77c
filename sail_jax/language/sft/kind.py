"""The supervised stage as a workload of the registry."""

from __future__ import annotations

from pathlib import Path

from sail_jax.kind import Figure, Kind, late
from sail_jax.language.kind import TABLE, export, load_policy
from sail_jax.language.sft.config import SftRun, check
from sail_jax.language.supervised.config import MODEL
from sail_jax.language.supervised.kind import task_of

FIGURE = Figure(
    x={'prompts': 'prompts', 'wall_s': 'wall time (s)'},
    y={'eval/loss': 'loss on held-out responses, nats per token'},
    subject=lambda run: Path(run.data.path).name,
)


SFT = Kind(
    name='sft',
    trains='a language model, on chosen responses',
    settings=SftRun,
    check=check,
    task=task_of('sail_jax.language.sft.task'),
    programs=late('sail_jax.language.sft.programs:programs'),
    processes=True,
    finish=late('sail_jax.language.supervised.task:leave_model'),
    leaves=MODEL,
    table=TABLE,
    figure=FIGURE,
    export=export,
    generate=late('sail_jax.language.export:respond'),
    load_policy=load_policy,
)
