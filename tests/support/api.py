"""A stand-in for an API of OpenAI's form, as far as a judge needs one."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = 'sk-right'


class Api(ThreadingHTTPServer):
    """Answers each question by `say(question)`: the text of an answer; a status, with headers and
    a message; or bytes, a body that is no chat completion."""

    def __init__(self, say: Callable[[str], Any]) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.say = say
        self.requests: list[dict[str, Any]] = []
        """Bodies, with their path."""

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.server_address[1]}/v1'


class _Handler(BaseHTTPRequestHandler):
    server: Api

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.server.requests.append(body | {'path': self.path})
        sent = self.headers.get('Authorization')
        if sent != f'Bearer {KEY}':
            said: Any = 401, {}, f'Incorrect API key provided: {sent}'
        else:
            said = self.server.say(body['messages'][0]['content'])
        with contextlib.suppress(ConnectionError):  # Who asked may have gone.
            self.answer(said)

    def answer(self, said: Any) -> None:
        status, headers = 200, {}
        if isinstance(said, tuple):
            status, headers, message = said
            said = json.dumps({'error': {'message': message}}).encode()
        elif not isinstance(said, bytes):
            said = json.dumps({'choices': [{'message': {'content': said}}]}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(said)))
        self.end_headers()
        self.wfile.write(said)


@contextlib.contextmanager
def running(say: Callable[[str], Any]) -> Iterator[Api]:
    """An API that answers until the block ends."""
    api = Api(say)
    thread = threading.Thread(target=lambda: api.serve_forever(0.01), daemon=True)
    thread.start()
    try:
        yield api
    finally:
        api.shutdown()
        api.server_close()
        thread.join()
