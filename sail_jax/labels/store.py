"""Questions for people and their answers, in one SQLite file that several processes share.

Training asks, the page's server answers, either may be killed at any moment: each call is one
transaction, which is on the disk before the call returns. Questions and answers are never deleted.
"""

import contextlib
import hashlib
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from sail_jax.errors import Busy, UserError
from sail_jax.labels import progress, queue
from sail_jax.labels.progress import Progress
from sail_jax.labels.queue import Refused, Ticket

NAME = 'labels.sqlite'
"""Of a run directory."""
APPLICATION, SCHEMA = 0x5A11AB, 1
"""SQLite's own numbers of a file: whose it is, and in which form."""
MAX_PAYLOAD = 2**26
"""Bytes of a question."""
BUSY_S = 5
"""How long a call waits for another program's."""

Choice = Literal['left', 'right', 'equal', 'skip']
CHOICES: tuple[str, ...] = get_args(Choice)
TURNED = {'left': 'right', 'right': 'left'}
PROB: dict[str, float] = {'left': 1.0, 'right': 0.0, 'equal': 0.5, 'skip': 0.5}
"""That the first is better, by what was said."""

TABLES = """
create table about (key text primary key, value text not null) strict;
create table questions (
  number integer primary key, round integer not null, payload blob not null,
  digest text not null, time real not null
) strict;
create table tickets (
  ticket text primary key, question integer not null references questions, client text not null,
  again integer not null, turned integer not null, until real not null
) strict;
create table answers (
  id integer primary key, question integer not null references questions,
  ticket text not null unique references tickets,
  choice text not null check (choice in ('left', 'right', 'equal', 'skip')),
  client text not null, who text not null, time real not null, again integer not null,
  withdrawn real, taken integer
) strict;
create unique index one_answer on answers (question) where withdrawn is null and again = 0;
create index tickets_of on tickets (question);
"""
"""`tickets`: who was shown which question, until when nobody else is. `answers.choice` is of the
question as it was asked, whichever way round it was shown; `again` those that check agreement;
`taken` the update after which training learned of the answer."""


class Question(NamedTuple):
    """What is asked."""

    number: int
    """As the run counts its questions, from 0 on; some may be left out."""
    round: int
    """The update that asked, from 1 on; of soft actor-critic, which asks between two, the one
    before."""
    payload: bytes
    """What is compared; see `sail_jax.labels.payloads`."""


class ShownQuestion(NamedTuple):
    """A question as somebody sees it."""

    ticket: str
    """What an answer to it is given with."""
    number: int
    turned: bool
    """The second of the two is on the left."""
    payload: bytes


class Answer(NamedTuple):
    """What was said of a question, as it was asked: `left` is the first."""

    number: int
    choice: Choice
    who: str
    time: float
    """Seconds since 1970."""


class Store:
    """The file of a run."""

    def __init__(self, path: Path):
        """Opens a store that is there.

        Raises:
          UserError: there is none, or it is damaged, or of another version; `Busy`, as all calls,
            where another program has it locked.
        """
        self.path, self._unsaid = path, {}
        if not path.is_file():
            raise UserError(
                f'{path}: no questions; train with labeller.source: people first, which makes it'
            )
        with self._reading() as db:
            if (found := _one(db, 'pragma application_id')) != APPLICATION:
                raise UserError(f'{path}: not a store of labels (application id {found})')
            if (found := _one(db, 'pragma user_version')) != SCHEMA:
                raise UserError(f'{path}: form {found}; this version reads {SCHEMA}')
            if (state := _one(db, 'pragma quick_check(1)')) != 'ok':
                raise UserError(f'{path}: damaged: {" ".join(str(state).split())[:200]}')

    @classmethod
    def of_run(cls, path: Path, about: dict[str, Any]) -> 'Store':
        """Opens the store of a run that is trained, and makes it where there is none.

        Args:
          about: what the page says and draws, see `about`; takes the place of what was there, but
            only once its questions are known to be the run's.
        """
        if not path.exists():
            _make(path)
        store = cls(path)
        store._unsaid = about
        with store._writing() as db:
            if not _one(db, 'select count(*) from questions'):
                store._say(db)
        return store

    def _say(self, db: sqlite3.Connection) -> None:
        rows = [(key, json.dumps(value)) for key, value in self._unsaid.items()]
        db.executemany('insert or replace into about values (?, ?)', rows)

    def about(self) -> dict[str, Any]:
        """`kind` of payload, `task` and `instruction` for the page, `repeat_every`, and what the
        kind needs; `last`, that the run asks nothing after what there is; and `token`, which pages
        on other hosts have to know."""
        with self._reading() as db:
            return self._about(db)

    def ask(self, questions: Sequence[Question], last: bool = False) -> None:
        """Adds questions; those that are there already stay as they are.

        Args:
          last: the run asks nothing after them, see `about`.

        Raises:
          UserError: one of that number is another question.
        """
        with self._writing() as db:
            for number, round_, payload in questions:
                if len(payload) > MAX_PAYLOAD:
                    raise UserError(f'{self.path}: question {number}: over {MAX_PAYLOAD} bytes')
                digest = hashlib.sha256(payload).hexdigest()
                row = number, round_, payload, digest, time.time()
                db.execute('insert or ignore into questions values (?, ?, ?, ?, ?)', row)
                there = _one(db, 'select digest from questions where number = ?', number)
                if there != digest:
                    raise UserError(
                        f'{self.path}: question {number} is another one than this run asks; the '
                        'file is of another run, or the run went on with other devices'
                    )
            if questions:
                self._say(db)
            row = 'last', json.dumps(last)
            db.execute('insert or replace into about values (?, ?)', row)

    def next(self, client: str, who: str = '') -> ShownQuestion | None:
        """A question for a page: the one it has, or one that no other page has; None where nothing
        is to be answered now.

        Args:
          who: the page's name. What pages of that name were shown, which may be closed by now, it
            gets where nothing else is left.
        """
        with self._writing() as db:
            every = self._about(db)['repeat_every']
            ticket = queue.next_ticket(db, client, who, every, time.time())
            return None if ticket is None else self._shown(db, ticket)

    def answer(self, ticket: str, client: str, who: str, choice: Choice) -> None:
        """Takes an answer; one that is sent again, because its reply was lost, counts once.

        Args:
          choice: as it was shown.

        Raises:
          Refused: the ticket is not this page's; somebody else was faster; it was withdrawn, or
            was another answer.
        """
        if choice not in CHOICES:
            raise Refused(f'choice: expected one of {", ".join(CHOICES)}, got {choice!r:.80}')
        with self._writing() as db:
            held = queue.ticket_of(db, ticket, client)
            said = TURNED.get(choice, choice) if held.turned else choice
            earlier = db.execute(
                'select choice, withdrawn from answers where ticket = ?', (ticket,)
            ).fetchone()
            if earlier is not None:
                if earlier != (said, None):
                    raise Refused(f'question {held.question}: it has been answered already')
                return
            queue.require_open(db, held)
            db.execute(
                'insert into answers (question, ticket, choice, client, who, time, again)'
                ' values (?, ?, ?, ?, ?, ?, ?)',
                (held.question, ticket, said, client, who, time.time(), held.again),
            )

    def undo(self, client: str, yours: int, who: str = '') -> ShownQuestion | None:
        """Withdraws the newest answer of a page, and shows its question again.

        Args:
          yours: how many answers the page has, as it was told: with another number, as of a request
            that is sent again because its reply was lost, nothing is withdrawn.
          who: as of `next`.

        Raises:
          Refused: it has none; training has learned of it.
        """
        with self._writing() as db:
            live = 'select count(*) from answers where withdrawn is null and client = ?'
            if _one(db, live, client) == yours:
                return self._shown(db, queue.withdraw(db, client, time.time()))
        return self.next(client, who)

    def progress(self, client: str = '') -> Progress:
        """Of all answers, and of one page's."""
        with self._reading() as db:
            return progress.of(db, client)

    def has_answers(self, count: int) -> bool:
        """Whether all questions are answered whose numbers are below `count`."""
        with self._reading() as db:
            unanswered = f'questions where not {queue.ANSWERED} and number < ?'
            return not _one(db, f'select count(*) from {unanswered}', count)

    def take(self, step: int, count: int) -> list[Answer]:
        """The answers that training learns of after so many updates, by the number of question.

        The first time these are all that are new. A run that goes on from an earlier checkpoint
        gets what it got the first time, and nothing newer until it is where it was.

        Args:
          count: the questions that training has asked so far have numbers below it; who goes on
            from an earlier checkpoint has yet to ask those that are there beyond.
        """
        with self._writing() as db:
            newest = _one(db, 'select coalesce(max(taken), -1) from answers')
            if step > newest:
                db.execute(
                    'update answers set taken = ? where taken is null and withdrawn is null'
                    ' and again = 0 and question < ?',
                    (step, count),
                )
            return _answers(db, 'where taken = ?', step)

    def answers(self) -> list[Answer]:
        """All that count: not the withdrawn ones, nor those that check agreement."""
        with self._reading() as db:
            return _answers(db, 'where withdrawn is null and again = 0')

    def question(self, number: int) -> Question:
        """What was asked.

        Raises:
          UserError: there is no such question; it is damaged.
        """
        with self._reading() as db:
            return self._question(db, number)

    def payload(self, number: int) -> bytes:
        """What a question compares; raises as `question`."""
        return self.question(number).payload

    def _about(self, db: sqlite3.Connection) -> dict[str, Any]:
        try:
            about = {key: json.loads(value) for key, value in db.execute('select * from about')}
        except ValueError:
            about = {}
        known = {'repeat_every': int, 'token': str}
        if not all(isinstance(about.get(key), kind) for key, kind in known.items()):
            raise UserError(f'{self.path}: damaged: what it is about cannot be read')
        return about

    def _shown(self, db: sqlite3.Connection, ticket: Ticket) -> ShownQuestion:
        payload = self._question(db, ticket.question).payload
        return ShownQuestion(ticket.ticket, ticket.question, bool(ticket.turned), payload)

    def _question(self, db: sqlite3.Connection, number: int) -> Question:
        query = 'select round, payload, digest from questions where number = ?'
        row = db.execute(query, (number,)).fetchone()
        if row is None:
            raise UserError(f'{self.path}: there is no question {number}')
        round_, payload, digest = row
        if hashlib.sha256(payload).hexdigest() != digest:
            raise UserError(f'{self.path}: question {number} is damaged')
        return Question(number, round_, payload)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with _connected(self.path, 'rw' if writable(self.path) else _only_read(self.path)) as db:
            db.execute('begin')
            yield db

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction of one writer at a time, kept if nothing is raised within."""
        with _connected(self.path) as db:
            db.execute('begin immediate')
            yield db
            db.execute('commit')


def writable(path: Path) -> bool:
    """Whether answers can be given: SQLite writes files beside it too."""
    return all(os.access(place, os.W_OK) for place in (path, path.parent))


def _only_read(path: Path) -> str:
    """How SQLite opens a store on a disk that takes nothing. Unless told that nobody writes, it
    wants to write itself; somebody else does where answers are not all in the file yet."""
    return 'ro' if path.with_name(f'{path.name}-wal').exists() else 'ro&immutable=1'


@contextlib.contextmanager
def _connected(path: Path, mode: str = 'rw') -> Iterator[sqlite3.Connection]:
    """A connection of this call: it belongs to no thread, and closing it drops what is open."""
    try:
        uri = f'{path.resolve().as_uri()}?mode={mode}'
        db = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None)
        with contextlib.closing(db):
            db.execute('pragma synchronous = full')  # On the disk, not on its way there.
            db.execute('pragma foreign_keys = on')
            yield db
    except sqlite3.OperationalError as error:  # Locked, say, or a full disk.
        locked = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        why = str(error)
        if not os.path.exists(path):
            why = 'is gone'
        elif not locked and not writable(path):
            why = f'cannot be written ({error})'
        raise (Busy if locked else UserError)(f'{path}: {why}') from None
    except sqlite3.Error as error:
        raise UserError(f'{path}: {error}; it is damaged, or no store of labels') from None


def _make(path: Path) -> None:
    """A new store, which has its name once it is whole."""
    part = path.with_name(f'{path.name}.{secrets.token_hex(4)}.part')
    try:
        part.touch(mode=0o600)
        with _connected(part) as db:
            db.execute('pragma journal_mode = wal')
            db.executescript(f'begin; {TABLES} commit;')
            db.execute('insert into about values (?, ?)', ('repeat_every', '0'))
            token = json.dumps(secrets.token_urlsafe(24))
            db.execute('insert into about values (?, ?)', ('token', token))
            db.execute(f'pragma application_id = {APPLICATION}')
            db.execute(f'pragma user_version = {SCHEMA}')
        os.replace(part, path)
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from None


def _one(db: sqlite3.Connection, query: str, *values: Any) -> Any:
    """The only column of the only row; None where there is none."""
    row = db.execute(query, values).fetchone()
    return None if row is None else row[0]


def _answers(db: sqlite3.Connection, where: str, *values: Any) -> list[Answer]:
    query = f'select question, choice, who, time from answers {where} order by question'
    return [Answer(*row) for row in db.execute(query, values)]
