"""A stand-in for the Hugging Face hub, as far as `huggingface_hub` needs one: repositories in
memory, downloads, commits, tokens."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = 'hf_right'
READ_ONLY = 'hf_reads'


class Hub(ThreadingHTTPServer):
    """Repositories by `models/owner/name` or `datasets/owner/name`, with one revision each."""

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.requests: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        """For processes that are to use it."""
        return {
            'HF_ENDPOINT': f'http://127.0.0.1:{self.server_address[1]}',
            'HF_HUB_DISABLE_XET': '1',
            'HF_HUB_DISABLE_TELEMETRY': '1',
        }


def revision(files: dict[str, bytes]) -> str:
    """The commit that a repository is at."""
    parts = [f'{name} {hashlib.sha1(content).hexdigest()}' for name, content in files.items()]
    return hashlib.sha1('\n'.join(sorted(parts)).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = 'HTTP/1.1'

    def log_message(self, format: str, *args: Any) -> None:
        self.server.requests.append(f'{self.command} {self.path}')

    def answer(self, status: int, body: Any = b'', **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace('_', '-'), value)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(status, {'error': message}, X_Error_Code=code, X_Error_Message=message)

    @property
    def token(self) -> str | None:
        return (self.headers.get('Authorization') or '').removeprefix('Bearer ') or None

    def body(self) -> bytes:
        if self.headers.get('Transfer-Encoding') == 'chunked':
            content = b''
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get('Content-Length') or 0))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.token not in (None, TOKEN, READ_ONLY):
            return self.answer(401, {'error': 'Invalid credentials in Authorization header'})
        if found := re.fullmatch(r'/api/((?:models|datasets)/[^/]+/[^/]+)(/.*)?', path):
            name, rest = found[1], found[2] or ''
        elif found := re.fullmatch(r'/(datasets/)?([^/]+/[^/]+)(/resolve/.*)', path):
            name, rest = f'{found[1] or "models/"}{found[2]}', found[3]
        else:
            return self.answer(404, {'error': 'Not found'})
        files = self.server.repositories.get(name)
        if files is None or (name in self.server.private and self.token is None):
            return self.refuse(401 if self.token is None else 404, 'RepoNotFound', 'not found')
        commit = revision(files)
        wanted = re.match(r'/(?:revision|tree|resolve)/([^/?]+)', rest)
        if wanted and wanted[1] not in ('main', commit):
            return self.refuse(404, 'RevisionNotFound', f'Invalid rev id: {wanted[1]}')
        if '/resolve/' in rest:
            return self.answer_file(files, rest.split('/', 3)[3], commit)
        if '/tree/' in rest:
            return self.answer(200, [self.entry(*item) for item in sorted(files.items())])
        names = [{'rfilename': file} for file in sorted(files)]
        answer = {'id': name.partition('/')[2], 'sha': commit, 'siblings': names}
        return self.answer(200, answer | {'private': name in self.server.private, 'tags': []})

    def answer_file(self, files: dict[str, bytes], file: str, commit: str) -> None:
        if file not in files:
            return self.refuse(404, 'EntryNotFound', 'Entry not found')
        mark = self.entry(file, files[file])['oid']
        return self.answer(200, files[file], ETag=f'"{mark}"', X_Repo_Commit=commit)

    @staticmethod
    def entry(file: str, content: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()
        return {'type': 'file', 'path': file, 'size': len(content), 'oid': oid}

    def do_POST(self) -> None:
        path, content = unquote(urlsplit(self.path).path), self.body()
        if self.token is None:
            return self.answer(401, {'error': 'Invalid username or password.'})
        if self.token not in (TOKEN, READ_ONLY):
            return self.answer(401, {'error': 'Invalid credentials in Authorization header'})
        if self.token == READ_ONLY:
            return self.answer(403, {'error': "You don't have the rights to create a model"})
        if path == '/api/validate-yaml':
            return self.answer(200, {'errors': [], 'warnings': []})
        if path == '/api/repos/create':
            asked = json.loads(content)
            name = f'{asked.get("type") or "model"}s/{asked["organization"]}/{asked["name"]}'
            there = name in self.server.repositories
            self.server.repositories.setdefault(name, {})
            if asked.get('private') or asked.get('visibility') == 'private':
                self.server.private.add(name)
            url = f'{self.server.environment["HF_ENDPOINT"]}/{name.removeprefix("models/")}'
            return self.answer(409 if there else 200, {'url': url, 'name': name})
        if found := re.fullmatch(r'/api/((?:models|datasets)/[^/]+/[^/]+)/preupload/\w+', path):
            asked = [file['path'] for file in json.loads(content)['files']]
            modes = [{'path': p, 'uploadMode': 'regular', 'shouldIgnore': False} for p in asked]
            return self.answer(200, {'files': modes})
        if found := re.fullmatch(r'/api/((?:models|datasets)/[^/]+/[^/]+)/commit/\w+', path):
            files = self.server.repositories[found[1]]
            for line in content.decode().splitlines():
                entry = json.loads(line)
                if entry['key'] == 'file':
                    value = entry['value']
                    files[value['path']] = base64.b64decode(value['content'])
                if entry['key'] == 'deletedFile':
                    del files[entry['value']['path']]
            url = f'{self.server.environment["HF_ENDPOINT"]}/{found[1]}/commit/{revision(files)}'
            return self.answer(200, {'commitUrl': url, 'commitOid': revision(files)})
        return self.answer(404, {'error': f'no {path}'})


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
