"""What the kinds of supervised stages have in common."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sail_jax.language.supervised.config import SupervisedRun

if TYPE_CHECKING:
    from sail_jax.training.task import Task


def task_of(module: str) -> Callable[..., Task]:
    """`Kind.task` of a stage, which writes nothing into the run directory.

    Args:
      module: whose `make` builds it.
    """

    def make_task(run: SupervisedRun, *, run_dir: Path | None = None) -> Task:
        if run_dir is not None:  # It is to be trained.
            from sail_jax.language.supervised import learn

            learn.check_optimizer(run.optimizer, run.updates)
        return importlib.import_module(module).make(run)

    return make_task
