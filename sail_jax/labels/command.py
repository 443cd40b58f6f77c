"""`sail-jax label`: questions of a run, answered at a page."""

import argparse
import contextlib
import importlib.util
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_jax import files, option_types, terminal
from sail_jax.errors import UserError

if TYPE_CHECKING:
    from sail_jax.labels.store import Store

PORT = 8642
POLL_S = 0.5
"""Between looks at whether a run has asked something."""


def add(commands: Any) -> None:
    """The command's options."""
    command = commands.add_parser('label', help="answer a run's questions at a page")
    command.add_argument('run', type=option_types.path, help='a run directory')
    command.add_argument(
        '--host',
        type=option_types.given,
        default='localhost',
        help='where to listen: localhost, or an address of this host, 0.0.0.0 for all; others than '
        'localhost need the token in the address that is printed',
    )
    command.add_argument(
        '--port', type=option_types.integer(0, 2**16 - 1), default=PORT, help='0 is any free one'
    )
    command.set_defaults(do=_label)


def _label(options: argparse.Namespace) -> None:
    missing = [name for name in ('starlette', 'uvicorn') if not importlib.util.find_spec(name)]
    if missing:
        raise UserError(f"label: needs {missing[0]}; pip install 'sail-jax[label]'")
    from sail_jax.labels import server

    questions = opened(options.run)
    token = server.token_for(options.host, questions)
    listener = server.listen(options.host, options.port)
    terminal.out(server.address(listener, options.host, token))
    with contextlib.closing(listener):
        server.make_server(questions, token).run(sockets=[listener])


def opened(run_dir: Path) -> 'Store':
    """The store of a run. One that is under way and has not asked anything yet is waited for: it
    compiles first.

    Raises:
      UserError: there is no run; it asks nobody, or was stopped before it did; as of `Store`.
    """
    from sail_jax.labels.store import NAME, Store, writable
    from sail_jax.training import lock, signals

    path = run_dir / NAME
    with files.reading(run_dir):  # A directory that is closed to us, or a disk that is gone.
        if not run_dir.is_dir():
            raise UserError(
                f'{run_dir}: no run there; sail-jax train --run-dir makes it as it begins'
            )
        if not path.exists() and _asks_people(run_dir):
            terminal.say(f"{run_dir}: waiting for the run's first questions; Ctrl-C ends it")
            while not path.exists():
                if lock.is_free(run_dir) and not path.exists():
                    how = signals.resume(run_dir)
                    raise UserError(f'{run_dir}: no questions yet, and training is stopped; {how}')
                time.sleep(POLL_S)
        store = Store(path)
    if not writable(path):
        raise UserError(f'{path}: cannot be written, and takes no answers')
    return store


def _asks_people(run_dir: Path) -> bool:
    from sail_jax import runs

    config = run_dir / runs.CONFIG
    labeller = getattr(runs.load(config), 'labeller', None) if files.exists(config) else None
    return getattr(labeller, 'source', None) == 'people'
