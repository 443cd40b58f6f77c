"""The labelling page's server: files of the package, and four calls that take and return JSON.

No path of a request leads to a file, and no text of one goes anywhere but into the store, as a
value. There are no cookies: who may ask is said by a header.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial
from importlib import resources
from typing import Annotated, Any, NamedTuple

import h11
import pydantic
import uvicorn
from pydantic import StringConstraints
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from sail_jax.errors import UserError
from sail_jax.labels import guard, payloads
from sail_jax.labels.guard import LOOPBACK, Denied, Rate
from sail_jax.labels.queue import Refused
from sail_jax.labels.store import Choice, ShownQuestion, Store
from sail_jax.training import lock, signals

FILES = {
    '/': ('sail_jax.labels', 'page/label.html', 'text/html'),
    '/label.css': ('sail_jax.labels', 'page/label.css', 'text/css'),
    '/label.js': ('sail_jax.labels', 'page/label.js', 'text/javascript'),
    '/scene.js': ('sail_jax', 'scene.js', 'text/javascript'),
}
Id = Annotated[str, StringConstraints(pattern='^[0-9a-f]{32}$')]
ABOUT = 'kind', 'task', 'instruction', 'world'
"""What the page is told of `Store.about`."""

HEAD_S = 10.0
"""For a request's head to come, which uvicorn bounds in size alone; and for the rest of a body that
has been answered already."""

log = logging.getLogger(__name__)


class Body(pydantic.BaseModel):
    """What every call has."""

    model_config = pydantic.ConfigDict(extra='forbid', strict=True)
    client: Id
    """The page, as long as its tab is open."""


class NamedBody(Body):
    """Of somebody who has said who it is."""

    who: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r'^[^\x00-\x1f]+$')]


class AnswerBody(NamedBody):
    """An answer."""

    ticket: Id
    choice: Choice


class UndoBody(NamedBody):
    """A withdrawal."""

    yours: int
    """`Progress.yours`, as the page was told last."""


class Call(NamedTuple):
    """One of the page's calls."""

    takes: type[Body]
    do: Callable[[Store, Any], dict[str, Any]]


class Timely(H11Protocol):
    """A connection that is closed where it says nothing, or half of something, for too long."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Begins to wait."""
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_S, transport.close)

    def data_received(self, data: bytes) -> None:
        """Waits on, from the first byte of a head to its last, and for what comes of a body after
        the answer."""
        super().data_received(data)
        # Who says nothing, uvicorn hangs up on by itself.
        answered_early = (self.conn.our_state, self.conn.their_state) == (h11.DONE, h11.SEND_BODY)
        if self.conn.their_state is not h11.IDLE and not answered_early:
            self._stop_waiting()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is waited for."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def make_app(store: Store, token: str | None) -> Starlette:
    """The server's application.

    Args:
      token: what calls have to know; None where only this host can ask.
    """
    rate = Rate()
    routes = [Route(path, partial(_file, rate, token, content(path))) for path in FILES]
    routes += [
        Route(f'/api/{name}', partial(_call, rate, token, store, call), methods=['POST'])
        for name, call in CALLS.items()
    ]
    return Starlette(routes=routes)


def content(path: str) -> tuple[bytes, str]:
    """A file of the package, and its type."""
    package, name, kind = FILES[path]
    return resources.files(package).joinpath(name).read_bytes(), kind


def listen(host: str, port: int) -> socket.socket:
    """Raises:
    UserError: that cannot be listened on.
    """
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # Who opens the page as soon as its address is printed waits, no more.
    except (OSError, UnicodeError) as error:
        listener.close()
        why = getattr(error, 'strerror', None) or error
        raise UserError(f'--host {host} --port {port}: {why}') from None
    return listener


def address(listener: socket.socket, host: str, token: str | None) -> str:
    """What a browser opens."""
    name = f'[{host}]' if ':' in host else host
    if host in ('0.0.0.0', '::'):
        name = socket.gethostname()
    after = '' if token is None else f'#{token}'
    return f'http://{name}:{listener.getsockname()[1]}/{after}'


def token_for(host: str, store: Store) -> str | None:
    """What other hosts have to know; None for a server of this host alone."""
    return None if host in LOOPBACK else store.about()['token']


def make_server(store: Store, token: str | None) -> uvicorn.Server:
    """A server that is yet to be run on a listener, in a thread for example."""
    settings = uvicorn.Config(
        make_app(store, token),
        log_level='warning',
        access_log=False,
        server_header=False,
        proxy_headers=False,
        http=Timely,
        limit_concurrency=128,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=2**14,
        ws='none',
        lifespan='off',
    )
    return uvicorn.Server(settings)


async def _file(
    rate: Rate, token: str | None, file: tuple[bytes, str], request: Request
) -> Response:
    try:
        _admit(rate, token, request)
    except Denied as denied:
        return _failed(denied.status, denied)
    return Response(file[0], media_type=file[1], headers=guard.HEADERS)


async def _call(
    rate: Rate, token: str | None, store: Store, call: Call, request: Request
) -> Response:
    try:
        _admit(rate, token, request)
        guard.require_same_origin(request)
        if token is not None:
            guard.require_token(request, token)
        body = call.takes.model_validate_json(await guard.body(request))
        said = await run_in_threadpool(call.do, store, body)
    except Denied as denied:
        return _failed(denied.status, denied)
    except pydantic.ValidationError as error:
        where = '.'.join(str(part) for part in error.errors()[0]['loc'])
        return _failed(400, f'{where or "body"}: {error.errors()[0]["msg"]}')
    except Refused as error:
        return _failed(409, error)
    except UserError as error:
        log.error('%s', error)
        return _failed(500, error)
    return JSONResponse(said, headers=guard.HEADERS)


def _admit(rate: Rate, token: str | None, request: Request) -> None:
    rate.spend('' if request.client is None else request.client.host)
    if token is None:
        guard.require_host(request)


def _failed(status: int, why: object) -> Response:
    return JSONResponse({'error': str(why)}, status, headers=guard.HEADERS)


def _about(store: Store, _: Body) -> dict[str, Any]:
    about = store.about()
    return {key: about[key] for key in ABOUT if key in about}


def _next(store: Store, body: NamedBody) -> dict[str, Any]:
    return _said(store, body, store.next(body.client, body.who))


def _answer(store: Store, body: AnswerBody) -> dict[str, Any]:
    store.answer(body.ticket, body.client, body.who, body.choice)
    return _next(store, body)


def _undo(store: Store, body: UndoBody) -> dict[str, Any]:
    return _said(store, body, store.undo(body.client, body.yours, body.who))


def _said(store: Store, body: Body, shown: ShownQuestion | None) -> dict[str, Any]:
    """The question that the page shows next, and how far it all is; where there is none, whether
    there will be others, and what goes on with a run that nobody trains."""
    progress = store.progress(body.client)
    said: dict[str, Any] = {'progress': progress._asdict() | {'waiting': progress.waiting}}
    about = store.about()
    if shown is None:
        run_dir = store.path.parent
        stopped = signals.resume(run_dir) if lock.is_free(run_dir) else None
        return said | {'question': None, 'last': about.get('last', False), 'stopped': stopped}
    drawn = payloads.for_page(about.get('kind', 'segments'), shown.payload, shown.turned)
    return said | {'question': {'ticket': shown.ticket, 'number': shown.number, **drawn}}


CALLS = {
    'about': Call(takes=Body, do=_about),
    'next': Call(takes=NamedBody, do=_next),
    'answer': Call(takes=AnswerBody, do=_answer),
    'undo': Call(takes=UndoBody, do=_undo),
}
