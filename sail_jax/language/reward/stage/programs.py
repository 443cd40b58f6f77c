"""What is compiled for a reward model's training, from shapes alone."""

from functools import partial

import jax.numpy as jnp

from sail_jax.language import export
from sail_jax.language.abstract import abstract, forward_flops
from sail_jax.language.model import published
from sail_jax.language.reward.stage import learn, task
from sail_jax.language.reward.stage.config import RewardRun, check_lengths
from sail_jax.language.supervised.programs import StageShapes, of_stage
from sail_jax.training import devices
from sail_jax.training.program import Programs


def programs(run: RewardRun, chips: devices.Chips = None) -> Programs:
    """What is compiled for a run; see `Kind.programs`.

    Raises:
      UserError: the devices do not divide the run; nothing is known of the model.
    """
    mesh = devices.make_mesh(run.prompts_per_update, run.devices, 'prompts_per_update', chips)
    decoders = export.decoders_of(run, mesh, published.architecture(run.model.path))
    check_lengths(run, decoders.architecture.max_positions)
    stage = StageShapes(
        decoders=decoders,
        loss=learn.make_loss(decoders.policy, run.loss),
        measure=task.make_rewards(run, decoders),
        rows=partial(_rows, heads=run.model.heads),
        lanes=2,
        flops=lambda rows, places: forward_flops(decoders.architecture, 2 * rows, places, 0, 0),
    )
    return of_stage(run, stage, mesh)


def _rows(rows: int, size: int, heads: int) -> learn.ComparedRows:
    return learn.ComparedRows(
        tokens_Bx2xS=abstract((rows, 2, size), jnp.int32),
        lengths_Bx2=abstract((rows, 2), jnp.int32),
        margin_B=abstract((rows,), jnp.float32),
        weight_BxH=abstract((rows, heads), jnp.float32),
    )
