"""`sail-jax label`: questions of a run, answered at a page."""

import argparse
import contextlib
import importlib.util
from typing import Any

from sail_jax import option_types, terminal
from sail_jax.errors import UserError

PORT = 8642


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
    from sail_jax.labels import server, store

    questions = store.Store(options.run / store.NAME)
    token = server.token_for(options.host, questions)
    listener = server.listen(options.host, options.port)
    terminal.out(server.address(listener, options.host, token))
    with contextlib.closing(listener):
        server.make_server(questions, token).run(sockets=[listener])
