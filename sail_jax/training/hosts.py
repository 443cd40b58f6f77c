"""Several processes, one run: how they find each other, who writes, and how they agree."""

import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from sail_jax import terminal
from sail_jax.errors import NotJoined, TrainingFailed, UserError, one_line
from sail_jax.training import gpus

T = TypeVar('T')

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

    With no arguments JAX asks the environment: SLURM, Cloud TPU pods, GKE, Open MPI. Which GPUs of
    the host are this process's, `gpus.of_task` says.

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
                local_device_ids=gpus.of_task(os.environ, gpus.visible()),
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


def together(part: Callable[[], T]) -> T:
    """Does this process's part of what all of them do at one time, and goes on if all could.

    Args:
      part: asks nothing of the other processes: where it fails they are not there to answer.

    Raises:
      UserError, TrainingFailed: the part raised it; or another process's did, which says why.
    """
    try:
        value = part()
    except (UserError, TrainingFailed) as error:
        gather(np.int32(error.status))
        raise
    statuses = gather(np.int32(0))
    if statuses.any():
        first = int(np.flatnonzero(statuses)[0])
        kind = UserError if statuses[first] == UserError.status else TrainingFailed
        raise kind(f'process {first} failed; it says why')
    return value


def on_main(action: Callable[[], Any]) -> None:
    """Does something in process 0 while the others wait for it; errors as of `together`."""
    together(lambda: action() if is_main() else None)


def any_process(flag: bool) -> bool:
    """Whether it is so in any process; all of them must ask."""
    return bool(gather(np.int32(flag)).any())


def gather(x: np.ndarray | np.generic) -> np.ndarray:
    """An array of each process, stacked in their order; all of them must ask, with one shape."""
    if jax.process_count() == 1:
        return np.asarray(x)[None]
    return multihost_utils.process_allgather(x)


def gather_text(text: str) -> list[str]:
    """A text of each process, in their order; all of them must ask."""
    data = np.frombuffer(f'{text}.'.encode(), np.uint8)  # No array is empty.
    lengths = gather(np.int32(data.size))
    padded = np.pad(data, (0, lengths.max() - data.size))
    pairs = zip(gather(padded), lengths, strict=True)
    return [row[: length - 1].tobytes().decode() for row, length in pairs]


def require_same(what: Mapping[str, str]) -> None:
    """Refuses a run of which the processes do not know the same.

    Args:
      what: by what errors call it.

    Raises:
      UserError: in all processes.
    """
    first, *others = map(json.loads, gather_text(json.dumps(dict(what))))
    for number, other in enumerate(others, 1):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise UserError(f'{name}: not the same in process {number} as in process 0')


def whole(tree: Any) -> Any:
    """Arrays on the host, whole in every process, wherever their parts lie; all must ask."""

    def of_array(x: Any) -> Any:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return multihost_utils.process_allgather(x, tiled=True)
        return jax.device_get(x)

    return jax.tree.map(of_array, tree)


def place(tree: Any, shardings: Any) -> Any:
    """Lays arrays that every process has out over the devices of all of them."""

    def host(x: Any) -> Any:
        return x if isinstance(x, jax.Array) and not x.is_fully_addressable else np.asarray(x)

    if jax.process_count() > 1:
        tree = jax.tree.map(host, tree)
    return jax.device_put(tree, shardings)
