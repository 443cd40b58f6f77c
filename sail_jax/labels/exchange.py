"""The store of a run that people label, and what the run says while it waits for them."""

from pathlib import Path
from typing import Any

from sail_jax.labels.settings import PeopleTeacher
from sail_jax.labels.store import NAME, Store


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


def waiting(store: Store) -> str:
    """As of `training.task.HostExchange`."""
    return f'waiting for answers: sail-jax label {store.path.parent}'
