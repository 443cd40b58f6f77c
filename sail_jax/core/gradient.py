"""The gradient of the loss, in parts over the devices of a mesh."""

from collections.abc import Callable
from typing import Any

import jax
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

from sail_jax import config
from sail_jax.core import loss
from sail_jax.core.loss import LossMetrics
from sail_jax.core.types import Hyper, Minibatch, Policies, Workload

Gradient = Callable[[Any, Policies, Hyper, Minibatch], tuple[tuple[jax.Array, LossMetrics], Any]]
"""`(params, policies, settings, minibatch) -> ((loss, metrics), gradient)`; see `loss.Loss`."""


def make(workload: Workload, run: config.Run) -> Gradient:
    """The loss of a workload, its metrics, and its gradient.

    Where the workload has a mesh, each device goes through its own rows, and one vector with all
    of their parts is added up: a collective costs its time for each array that it is given, and
    left to the compiler every parameter's gradient is one. So loss and metrics must be sums over
    rows, divided by a count of the whole batch (`Counts`), or a `Mean`, whose parts are such sums.
    Where baselines are over all rows, devices tell each other two numbers before. Rows that do not
    divide by the devices are left to the compiler.

    Raises:
      UserError: as of `loss.make`.
    """
    value_and_grad = jax.value_and_grad(loss.make(workload, run), has_aux=True)
    baselines_over = 'data' if workload.group_size == 2 or workload.abstains else None

    def summed(*args):
        part, unravel = ravel_pytree(value_and_grad(*args, baselines_over))
        return unravel(jax.lax.psum(part, 'data'))

    def gradient(params: Any, policies: Policies, hyper: Hyper, minibatch: Minibatch) -> Any:
        args = params, policies, hyper, minibatch
        devices = 1 if workload.mesh is None else workload.mesh.shape['data']
        if devices == 1 or minibatch.batch.mask_BxLxT.shape[0] % devices:
            return value_and_grad(*args)
        everywhere: Any = PartitionSpec()
        by_rows: Any = PartitionSpec('data')
        of_minibatch = Minibatch(batch=by_rows, reference_dist=by_rows, counts=everywhere)
        # With `check_vma` autodiff would add the gradients up itself, by one collective an array.
        return jax.shard_map(
            summed,
            mesh=workload.mesh,
            in_specs=(everywhere, everywhere, everywhere, of_minibatch),
            out_specs=everywhere,
            check_vma=False,
        )(*args)

    return gradient
