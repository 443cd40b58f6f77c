"""The supervised stage as a workload of the registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sail_jax.kind import Figure, Kind, late
from sail_jax.language.kind import TABLE, export, load_policy
from sail_jax.language.sft.config import SftRun, check

if TYPE_CHECKING:
    from sail_jax.training.task import Task

FIGURE = Figure(
    x={'prompts': 'prompts', 'wall_s': 'wall time (s)'},
    y={'eval/loss': 'loss on held-out responses, nats per token'},
    subject=lambda run: Path(run.data.path).name,
)


def make_task(run: SftRun, *, run_dir: Path | None = None) -> Task:
    """As of `task.make`; no task of a supervised stage writes into the run directory."""
    from sail_jax.language.sft import task

    return task.make(run)


SFT = Kind(
    name='sft',
    trains='a language model, on chosen responses',
    settings=SftRun,
    check=check,
    task=make_task,
    programs=late('sail_jax.language.sft.programs:programs'),
    processes=True,
    finish=late('sail_jax.language.supervised.task:leave_model'),
    table=TABLE,
    figure=FIGURE,
    export=export,
    generate=late('sail_jax.language.export:respond'),
    load_policy=load_policy,
)
