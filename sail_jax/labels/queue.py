"""Who is shown which question: one page at a time, unless agreement is checked.

Functions within a transaction of `sail_jax.labels.store`.
"""

import secrets
import sqlite3
from typing import Any, NamedTuple

from sail_jax.errors import UserError

LEASE_S = 600.0
"""A question that was shown and not answered goes to somebody else after that."""
RECENT = 3
"""Of a page's newest answers, none is asked for again at once."""

_SAID = (
    'exists (select 1 from answers a where a.question = number and a.withdrawn is null'
    ' and a.again = {})'
)
ANSWERED, REPEATED = _SAID.format(0), _SAID.format(1)
"""Of the row of `questions` at hand. A question can be repeated and not answered any more: its
answer was taken back after somebody else had confirmed it."""
_LENT = (
    'exists (select 1 from tickets t where t.question = number and t.until > :now and '
    't.until <= :lease and not exists (select 1 from answers a where a.ticket = t.ticket){})'
)
OF_NOBODY = f'not {_LENT.format("")}'
"""Beyond `:lease`, the end of one that begins now, it was given before the clock was set back, and
would keep everybody else waiting for as long as that."""
_ANOTHERS = (
    ' and not exists (select 1 from pages p where p.client = t.client and p.who = :who'
    " and p.who <> '')"
)
OF_NO_OTHER = f'not {_LENT.format(_ANOTHERS)}'
"""Nor is it lent to anybody but pages of the same name, which may be gone: closed, or crashed."""
PAGES = 'create table if not exists pages (client text primary key, who text not null) strict'
"""What name each page bears; stores of before have no such table."""
NAMED = (
    'insert into pages values (?, ?) on conflict (client) do update set who = excluded.who'
    ' where who <> excluded.who'
)
"""Writes nothing where it is as it was: a page without a question asks every two seconds."""


class Refused(UserError):
    """An answer, or its withdrawal, that is not taken."""


class Ticket(NamedTuple):
    """A question that a page was shown; a row of `tickets`."""

    ticket: str
    question: int
    client: str
    again: int
    turned: int
    until: float


def next_ticket(
    db: sqlite3.Connection, client: str, who: str, repeat_every: int, now: float
) -> Ticket | None:
    """The page's own question, a repeated one where that is due, or the oldest that is free; at
    last one that only other pages of its name have: the first answer counts."""
    db.execute(PAGES)
    db.execute(NAMED, (client, who))
    held = db.execute(
        'select t.* from tickets t join questions on number = t.question where client = ?'
        ' and until > ? and not exists (select 1 from answers a where a.ticket = t.ticket)'
        f' and not iif(t.again, {REPEATED}, {ANSWERED})',
        (client, now),
    ).fetchone()
    if held is not None:
        db.execute('update tickets set until = ? where ticket = ?', (now + LEASE_S, held[0]))
        return Ticket(*held)
    times = {'now': now, 'lease': now + LEASE_S}
    if _repeat_due(db, client, repeat_every):
        question = _number(
            db,
            f'select number from questions where {ANSWERED} and not {REPEATED}'
            f' and {OF_NOBODY} and number not in (select question from answers where'
            ' client = :client order by id desc limit :recent) order by number limit 1',
            times | {'client': client, 'recent': RECENT},
        )
        if question is not None:
            # The other way round, so that who always says "left" does not agree.
            return _new(db, client, question, again=1, turned=1, now=now)
    for free in (OF_NOBODY, OF_NO_OTHER):
        question = _number(
            db,
            f'select number from questions where not {ANSWERED} and {free} order by number limit 1',
            times | {'who': who},
        )
        if question is not None:
            return _new(db, client, question, again=0, turned=0, now=now)
    return None


def ticket_of(db: sqlite3.Connection, ticket: str, client: str) -> Ticket:
    """Raises:
    Refused: there is none, or it is another page's.
    """
    query = 'select * from tickets where ticket = ? and client = ?'
    row = db.execute(query, (ticket, client)).fetchone()
    if row is None:
        raise Refused('an answer to a question that this page was not shown')
    return Ticket(*row)


def require_open(db: sqlite3.Connection, held: Ticket) -> None:
    """Raises:
    Refused: it has been answered, by somebody else or at another page.
    """
    which = 'again' if held.again else 'not again'
    taken = db.execute(
        f'select who from answers where question = ? and withdrawn is null and {which}',
        (held.question,),
    ).fetchone()
    if taken is not None:
        raise Refused(f'question {held.question}: {taken[0]} has answered it meanwhile')


def withdraw(db: sqlite3.Connection, client: str, now: float) -> Ticket:
    """Takes a page's newest answer back; its question is the page's own again.

    Raises:
      Refused: it has none; training has learned of it.
    """
    row = db.execute(
        'select id, question, ticket, taken from answers where client = ? and withdrawn is null'
        ' order by id desc limit 1',
        (client,),
    ).fetchone()
    if row is None:
        raise Refused('there is no answer of this page to take back')
    answer, question, ticket, taken = row
    if taken is not None:
        raise Refused(f'question {question}: training has learned of this answer already')
    db.execute('update answers set withdrawn = ? where id = ?', (now, answer))
    db.execute('update tickets set until = 0 where client = ?', (client,))
    old = ticket_of(db, ticket, client)
    return _new(db, client, question, again=old.again, turned=old.turned, now=now)


def _repeat_due(db: sqlite3.Connection, client: str, every: int) -> bool:
    """Whether the page has answered so many new questions since the last repeated one."""
    query = 'select again from answers where client = ? and withdrawn is null order by id desc'
    said = [again for (again,) in db.execute(f'{query} limit ?', (client, every))]
    return every > 0 and len(said) == every and not any(said)


# parameters: the columns of a row
def _new(
    db: sqlite3.Connection, client: str, question: int, *, again: int, turned: int, now: float
) -> Ticket:
    ticket = Ticket(secrets.token_hex(16), question, client, again, turned, now + LEASE_S)
    db.execute('insert into tickets values (?, ?, ?, ?, ?, ?)', ticket)
    return ticket


def _number(db: sqlite3.Connection, query: str, values: dict[str, Any]) -> int | None:
    row = db.execute(query, values).fetchone()
    return None if row is None else row[0]
