"""Several processes, one run: how they find each other, who writes, and how they agree."""

import re
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from sail_jax import terminal
from sail_jax.errors import NotJoined, UserError, one_line

HEARTBEAT_S = 30
"""A process that is silent for this long is lost, and the others end."""


JOIN_S = 300
"""How long the processes of a run wait for each other at the start."""
PATIENCE_S = 5
"""A process that waits for longer says for whom."""


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    timeout_s: float = JOIN_S,
) -> int:
    """Joins the processes of a run, before JAX is used for anything else.

    With no arguments JAX asks the environment: SLURM, Cloud TPU pods, GKE, Open MPI.

    Args:
      coordinator: `HOST:PORT` of process 0.
      processes: how many there are.
      process: this one's number, from 0.
      timeout_s: how long to wait for the others.

    Returns:
      How many processes there are.

    Raises:
      UserError: the environment says nothing, or the coordinator is no HOST:PORT.
      NotJoined: the others did not come in time; JAX goes on waiting for them, and is best left to
        it by `os._exit`.
    """
    if coordinator is not None and not _is_address(coordinator):
        raise UserError(f'--coordinator: HOST:PORT of process 0, got {coordinator!r:.80}')
    # JAX's preemption service would swallow a SIGTERM that comes before training has its own
    # handler, and afterwards see none; `any_process` says what it would.
    jax.config.update('jax_enable_preemption_service', False)
    failed: list[Exception] = []

    def join() -> None:
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                # Beyond ours: what JAX does at the end of its own is to abort the process.
                initialization_timeout=int(timeout_s) + 3600,
                heartbeat_timeout_seconds=HEARTBEAT_S,
                shutdown_timeout_seconds=HEARTBEAT_S,
            )
        except Exception as error:
            failed.append(error)

    joining = threading.Thread(target=join, daemon=True)
    joining.start()
    _wait(joining, timeout_s)
    if failed:
        raise UserError(
            f'--distributed: {one_line(failed[0])}; outside SLURM, Cloud TPU, GKE '
            'and Open MPI give --coordinator HOST:PORT --num-processes N --process-id I'
        )
    return distributed.global_state.num_processes or 1


def _wait(joining: threading.Thread, timeout_s: float) -> None:
    """Waits for the others, and says so where it takes long.

    Raises:
      NotJoined: they did not come.
    """
    joining.join(min(PATIENCE_S, timeout_s))
    if joining.is_alive():
        terminal.say(f'waiting for {_others()}, for {timeout_s:g} s at most')
        joining.join(max(timeout_s - PATIENCE_S, 0))
    if joining.is_alive():
        raise NotJoined(
            f'--distributed: {_others()} did not come within {timeout_s:g} s '
            '(--join-timeout); is it running, is that its address, and is the port open to here?'
        )


def _is_address(text: str) -> bool:
    match = re.fullmatch(r'\S+:([0-9]{1,5})', text)
    return match is not None and 0 < int(match[1]) < 2**16


def _others() -> str:
    """Who a process waits for at the start."""
    # What JAX was told or has found out; nothing public says it.
    joined = distributed.global_state
    address = joined.coordinator_address or 'an address that the environment gives'
    if joined.process_id == 0:
        return f'the other processes at process 0, {address}'
    return f'process 0 at {address}'


def require_one_process(who: str) -> None:
    """Refuses what each of several processes would write into the same directory.

    Raises:
      UserError: there are several.
    """
    if jax.process_count() > 1:
        raise UserError(
            f'{who} take one process so far, not {jax.process_count()}; use the devices of one host'
        )


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Says something once, however many processes there are."""
    if is_main():
        terminal.say(line)


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
