"""What is compiled for a study that learns; see `sail_jax.training.program`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from sail_jax.bandit import stochastic
from sail_jax.bandit.config import SampleComplexity, StudySettings
from sail_jax.bandit.measure import OBJECTIVES, make_problems
from sail_jax.errors import UserError
from sail_jax.training import devices
from sail_jax.training.program import Program, Programs


def programs(run: StudySettings, chips: devices.Chips = None) -> Programs:
    """The ascent, on one device, as a study runs; it is the same for every objective.

    Raises:
      UserError: the study has no updates.
    """
    if not isinstance(run, SampleComplexity):
        raise UserError('plan: a landscape learns nothing; study: sample_complexity does')
    mesh = devices.make_mesh(1, devices=(chips or jax.devices())[:1])
    layout = NamedSharding(mesh, PartitionSpec())
    problems = make_problems(run)
    count, width = len(problems.reward_XxY), problems.features_XxYxD.shape[-1]

    def abstract(shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=layout)

    number = abstract((count,))
    arguments = (
        jax.tree.map(lambda x: abstract(x.shape, stochastic.to_float32(x).dtype), problems),
        abstract((count, run.seeds, width)),
        abstract((count, run.seeds), jnp.uint32),
        stochastic.Optimum(best=number, strength=number, smoothness=number),
    )
    settings = stochastic.settings_of(run, OBJECTIVES[-1])
    ascend = Program(
        name='ascend',
        function=stochastic.make_ascent(run, settings),
        arguments=arguments,
        per_update=1 / run.updates,
        steps=run.updates,
        batch=arguments,
    )
    pairs = run.group_size * (run.group_size - 1) // 2
    return Programs(
        programs=(ascend,),
        mesh=mesh,
        resident={'weights': (), 'optimizer': (), 'others': ()},
        per_update={'pairs': count * run.seeds * run.contexts * pairs},
        smaller='lower seeds, contexts or problems.count',
    )
