"""Models and data sets of the Hugging Face hub, `hf://owner/name` in the place of a directory.

What is read of them lies in the library's own cache afterwards (`HF_HOME`) and is found there
without a connection. `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` are as for all who use it.
"""

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import PlainSerializer

from sail_jax import files
from sail_jax.errors import UserError, one_line

CONFIG = ('*.json', '*.jinja', '*.txt', '*.model')
"""Files that say what a model is, its tokeniser included."""
MODEL = (*CONFIG, '*.safetensors')
DATA = ('README.md', '*.jsonl', '*.json', '*.gz', '*.parquet', '*.arrow')

ANSWER_S = 60
"""Seconds to wait for the hub's next word: a commit of many files takes it long."""

RepoType = Literal['model', 'dataset']

_ADDRESS = re.compile(
    r'hf:/+(?:(?P<kind>models|datasets)/+)?(?P<id>[\w.-]{1,96}/[\w.-]{1,96}?)'
    r'(?:@(?P<revision>refs/pr/\d+|refs/convert/\w+|[\w.-]{1,255}))?(?:/(?P<inside>[^@]*[^/@]))?/*'
)


class Address(NamedTuple):
    """A place on the hub."""

    kind: RepoType
    id: str
    """`owner/name`."""
    revision: str | None
    """A branch, tag or commit; None is the newest."""
    inside: str
    """A file or directory within; empty is all of it."""

    def __str__(self) -> str:
        of_kind = 'datasets/' if self.kind == 'dataset' else ''
        revision = f'@{self.revision}' if self.revision else ''
        return f'hf://{of_kind}{self.id}{revision}{"/" * bool(self.inside)}{self.inside}'


def shown(path: Path) -> str:
    """A path as text; `Path` leaves one of an address's two slashes."""
    return re.sub('^hf:/+', 'hf://', str(path))


ModelPath = Annotated[Path, PlainSerializer(shown, return_type=str, when_used='json')]
"""A directory, or an address, in a configuration."""


def is_address(path: str | Path) -> bool:
    """Whether it is a place on the hub."""
    return str(path).startswith('hf:/')


def parse(path: str | Path, kind: RepoType = 'model') -> Address:
    """Reads `hf://owner/name`, `hf://datasets/owner/name@revision/inside` and the like.

    Args:
      kind: where it does not say.

    Raises:
      UserError: it is no such address, or of another kind.
    """
    match = _ADDRESS.fullmatch(str(path))
    if match is None or '..' in str(path).split('/'):
        raise UserError(f'{path}: expected hf://OWNER/NAME, with @REVISION and /FILE if need be')
    said = (match['kind'] or f'{kind}s').removesuffix('s')
    if said != kind:
        raise UserError(f'{path}: a {said} of the hub; expected a {kind}')
    return Address(kind, match['id'], match['revision'], match['inside'] or '')


def name_of(path: str | Path) -> str:
    """What others call a model: `owner/name` of one on the hub, else its directory."""
    return parse(path).id if is_address(path) else str(path)


def local(path: str | Path, patterns: tuple[str, ...], kind: RepoType = 'model') -> Path:
    """The directory, or file, itself; of one on the hub its copy here, downloaded if need be; of a
    repository in the hub's cache (`models--owner--name`) its newest snapshot.

    Args:
      patterns: of the names of files that are needed.

    Raises:
      UserError: it cannot be had.
    """
    if is_address(path):
        return _download(parse(path, kind), patterns)
    path = Path(path)
    newest = path / 'refs' / 'main'
    if path.name.startswith(('models--', 'datasets--')) and os.path.isfile(newest):
        return path / 'snapshots' / files.read(newest, 2**10).decode(errors='replace').strip()
    return path


@functools.cache  # Asked once a process: a branch may move on meanwhile.
def _download(address: Address, patterns: tuple[str, ...]) -> Path:
    import huggingface_hub

    beginning = f'{address.inside}/' if address.inside else ''
    wanted = [beginning + pattern for pattern in patterns]
    with _named(address):
        snapshot = huggingface_hub.snapshot_download(
            address.id,
            repo_type=address.kind,
            revision=address.revision,
            allow_patterns=[address.inside, *wanted] if address.inside else wanted,
            # Other forms of the same weights.
            ignore_patterns=f'{beginning}*/*.safetensors',
        )
    place = Path(snapshot, address.inside)
    if not place.exists():
        what = 'no such file there' if address.inside else f'none of {", ".join(patterns)} there'
        raise UserError(f'{address}: {what}')
    return place


@contextlib.contextmanager
def new_version(path: str | Path, near: Path, private: bool = False) -> Iterator[Path]:
    """A directory to write into that is uploaded at the end, as one commit, in the place of the
    model that is there, with its configuration and tokeniser. The repository is made
    before, if it is not there: whoever may not write learns it before the work.

    Args:
      path: its address.
      near: a directory on the disk that has room for it.
      private: of a new repository.

    Raises:
      UserError: it cannot be written there.
    """
    import huggingface_hub

    address = parse(path)
    if address.revision or address.inside:
        raise UserError(f'{address}: expected hf://OWNER/NAME alone, which is written as a whole')
    with _named(address):
        huggingface_hub.create_repo(address.id, private=private or None, exist_ok=True)
    with files.temporary_directory(near, prefix='.upload-') as temporary:
        directory = temporary / 'model'
        yield directory
        with _named(address):
            huggingface_hub.upload_folder(
                repo_id=address.id,
                folder_path=directory,
                commit_message='Upload by sail-jax',
                # Weights of an earlier version by other names would be read instead of these.
                delete_patterns=[*MODEL],
            )


def url(path: str | Path) -> str:
    """The page of a place on the hub."""
    from huggingface_hub import constants

    return f'{constants.ENDPOINT}/{parse(path).id}'


def cache_root(path: Path) -> Path:
    """The directory that a snapshot's links stay in: in the hub's cache
    (`models--owner--name/snapshots/COMMIT`) the repository's own, of any other the directory."""
    for parent in path.absolute().parents:
        if parent.name == 'snapshots' and os.path.isdir(parent.parent / 'blobs'):
            return parent.parent
    return path


@contextlib.contextmanager
def _named(address: Address) -> Iterator[None]:
    """Says in one line what the library raises, whatever its version speaks HTTP with."""
    try:
        _bound_waiting()
        yield
    except Exception as error:
        raise UserError(f'{address}: {_reason(error, address)}') from error


def _bound_waiting() -> None:
    """The library waits for ever for a server that takes a connection and says nothing."""
    import huggingface_hub

    # Its older versions, which speak with `requests`, have no such hooks.
    hooks = getattr(huggingface_hub.get_session(), 'event_hooks', {'request': []})
    if _not_for_ever not in hooks['request']:
        hooks['request'].append(_not_for_ever)


def _not_for_ever(request: Any) -> None:
    limits = request.extensions.get('timeout', {})
    request.extensions['timeout'] = {
        what: ANSWER_S if seconds is None else seconds for what, seconds in limits.items()
    }


def _reason(error: Any, address: Address) -> str:
    from huggingface_hub import constants, errors

    sign_in = 'HF_TOKEN, or `hf auth login`'
    status = _status(error)
    match error:
        case errors.GatedRepoError():
            return f'access is granted on its page; then {sign_in} says who you are'
        case errors.RepositoryNotFoundError():
            return f'no such {address.kind} at {constants.ENDPOINT}, or a private one: {sign_in}'
        case errors.RevisionNotFoundError():
            return 'no such revision'
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            answered = _status(error.__cause__)
            why = f'it answers with status {answered}' if answered else 'no connection'
            why = 'HF_HUB_OFFLINE is set' if constants.HF_HUB_OFFLINE else why
            return f'not in the cache, and {why} ({constants.ENDPOINT})'
    if status == 401:
        return f'{constants.ENDPOINT} does not know you: {sign_in}'
    if status == 403:
        return f'your token may not do that ({one_line(error)})'
    return f'{constants.ENDPOINT}: {one_line(error)}'


def _status(error: Any) -> int | None:
    """Of HTTP, where a server answered."""
    return getattr(getattr(error, 'response', None), 'status_code', None)
