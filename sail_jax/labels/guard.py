"""What every request has to pass: who may ask, how much, how often."""

import asyncio
import hmac
import time
from collections import OrderedDict
from urllib.parse import urlsplit

from starlette.requests import Request

MAX_BODY = 2**12
"""Bytes."""
BODY_S = 5.0
"""For a body to come."""
RATE, BURST = 20.0, 60.0
"""Requests a second of one address, and how many at once."""
MAX_ADDRESSES = 2**10
LOOPBACK = frozenset({'localhost', '127.0.0.1', '::1'})
HEADER = 'x-sail-label'
"""A page of another origin cannot set it without being asked first, which is refused."""

HEADERS = {
    'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cross-Origin-Opener-Policy': 'same-origin',
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cache-Control': 'no-store',
}


class Denied(Exception):
    """A request that is not served."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


class Rate:
    """A bucket of requests for each address, the newest addresses only."""

    def __init__(self):
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, address: str) -> None:
        """Raises:
        Denied: too many requests.
        """
        now = time.monotonic()
        left, then = self._buckets.pop(address, (BURST, now))
        left = min(BURST, left + (now - then) * RATE)
        self._buckets[address] = left - (left >= 1), now
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        if left < 1:
            raise Denied(429, 'too many requests; wait a second')


def require_host(request: Request) -> None:
    """For a server of this host alone: another name that leads here is somebody's trick (DNS
    rebinding).

    Raises:
      Denied: the request is for another host.
    """
    if _name(request.headers.get('host', '')) not in LOOPBACK:
        raise Denied(403, 'not for this host')


def require_same_origin(request: Request) -> None:
    """Raises:
    Denied: the request is not of this page, as far as the browser says.
    """
    origin, site = request.headers.get('origin'), request.headers.get('sec-fetch-site')
    foreign = origin is not None and _netloc(origin) != request.headers.get('host')
    if foreign or site not in (None, 'same-origin') or request.headers.get(HEADER) != '1':
        raise Denied(403, 'not from this page')
    if request.headers.get('content-type') != 'application/json':
        raise Denied(415, 'expected JSON')


def require_token(request: Request, token: str) -> None:
    """Raises:
    Denied: the request does not know it.
    """
    told = request.headers.get('authorization', '').removeprefix('Bearer ')
    if not hmac.compare_digest(told.encode(), token.encode()):
        raise Denied(401, 'this page needs the whole address that sail-jax label printed')


async def body(request: Request) -> bytes:
    """Raises:
    Denied: it is too long, or takes too long.
    """

    async def read() -> bytes:
        content = b''
        async for part in request.stream():
            content += part
            if len(content) > MAX_BODY:
                raise Denied(413, f'over {MAX_BODY} bytes')
        return content

    try:
        return await asyncio.wait_for(read(), BODY_S)
    except TimeoutError:
        raise Denied(408, 'the request did not come to its end') from None


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _name(netloc: str) -> str | None:
    try:
        return urlsplit(f'//{netloc}').hostname
    except ValueError:
        return None
