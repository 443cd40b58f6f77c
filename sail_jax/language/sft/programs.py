"""What is compiled for learning chosen responses, from shapes alone."""

from typing import Any

import jax.numpy as jnp

from sail_jax.language.abstract import abstract, forward_flops
from sail_jax.language.model import policy, published
from sail_jax.language.sft import learn, task
from sail_jax.language.sft.config import SftRun
from sail_jax.language.supervised.programs import StageShapes, of_stage
from sail_jax.training import devices
from sail_jax.training.program import Programs


def programs(run: SftRun, chips: devices.Chips = None) -> Programs:
    """What is compiled for a run; see `Kind.programs`.

    Raises:
      UserError: the devices do not divide the run; nothing is known of the model.
    """
    mesh = devices.make_mesh(run.prompts_per_update, run.devices, 'prompts_per_update', chips)
    path = run.model.path
    architecture = run.model.architecture if path is None else published.architecture(path)
    decoders = policy.read(run.model, mesh, architecture, length=run.longest)
    stage = StageShapes(
        decoders=decoders,
        loss=learn.make_loss(decoders.policy, run.loss_on),
        measure=task.make_nats(run, decoders),
        rows=_rows,
        lanes=1,
        flops=lambda rows, places: forward_flops(decoders.architecture, rows, 0, 1, places),
    )
    return of_stage(run, stage, mesh)


def _rows(rows: int, size: int) -> Any:
    return learn.Completions(
        tokens_BxS=abstract((rows, size), jnp.int32),
        lengths_B=abstract((rows,), jnp.int32),
        prompt_lengths_B=abstract((rows,), jnp.int32),
    )
