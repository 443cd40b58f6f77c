"""What a run that people label gives the loop: its store, and how it is asked and answered."""

from pathlib import Path
from typing import Any, Protocol

from sail_jax.core.types import State
from sail_jax.labels.settings import PeopleTeacher
from sail_jax.labels.store import NAME, Store
from sail_jax.training.task import HostExchange


class Asker(Protocol):
    """Who writes a run's questions into its store, and reads the answers; see `HostExchange`."""

    def publish(self, state: State, /) -> None: ...

    def ready(self, state: State, /) -> bool: ...

    def take(self, state: State, /) -> State: ...


def open_store(
    run_dir: Path, labeller: PeopleTeacher, *, kind: str, task: str, **needed: Any
) -> Store:
    """The store of a run that is trained, which is made where there is none.

    Args:
      kind: of its payloads, one of `payloads.KINDS`.
      task: what the run is about, for the page.
      **needed: what the page needs besides to show that kind.

    Raises:
      UserError: it cannot be used.
    """
    about = {
        'kind': kind,
        'task': task,
        'instruction': labeller.instruction,
        'repeat_every': labeller.repeat_every,
        **needed,
    }
    return Store.of_run(run_dir / NAME, about)


def host_exchange(asker: Asker, run_dir: Path) -> HostExchange:
    """What the loop does with it."""
    return HostExchange(
        publish=asker.publish,
        ready=asker.ready,
        take=asker.take,
        waiting=f'waiting for answers: sail-jax label {run_dir}',
    )
