"""Several processes, one run: how they find each other, who writes, and how they agree."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sail_jax.errors import UserError, one_line

HEARTBEAT_S = 30
"""A process that is silent for this long is lost, and the others end."""


def start(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins the processes of a run, before JAX is used for anything else.

    With no arguments JAX asks the environment: SLURM, Cloud TPU pods, GKE, Open MPI.

    Args:
      coordinator: `HOST:PORT` of process 0.
      processes: how many there are.
      process: this one's number, from 0.

    Raises:
      UserError: the environment says nothing, or the others do not answer.
    """
    # JAX's preemption service would swallow a SIGTERM that comes before training has its own
    # handler, and afterwards see none; `any_process` says what it would.
    jax.config.update('jax_enable_preemption_service', False)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=HEARTBEAT_S,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f'--distributed: {one_line(error)}; outside SLURM, Cloud TPU, GKE '
            'and Open MPI give --coordinator HOST:PORT --num-processes N --process-id I'
        ) from None


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def on_main(action: Callable[[], Any]) -> None:
    """Does something in process 0 while the others wait for it.

    Raises:
      UserError: it did there; in all processes.
    """
    refusal: UserError | None = None
    if is_main():
        try:
            action()
        except UserError as error:
            refusal = error
    if any_process(refusal is not None):
        raise refusal or UserError('process 0 refused; it says why')


def any_process(flag: bool) -> bool:
    """Whether it is so in any process; all of them must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.int32(flag)).any())


def place(tree: Any, shardings: Any) -> Any:
    """Lays arrays that every process has out over the devices of all of them."""

    def host(x: Any) -> Any:
        return x if isinstance(x, jax.Array) and not x.is_fully_addressable else np.asarray(x)

    if jax.process_count() > 1:
        tree = jax.tree.map(host, tree)
    return jax.device_put(tree, shardings)
