"""How far the answers of a store are."""

import sqlite3
from typing import NamedTuple

LIVE = 'from answers where withdrawn is null'
TWICE = (
    'from answers a join answers b using (question) where a.again = 0 and b.again = 1 and'
    " a.withdrawn is null and b.withdrawn is null and 'skip' not in (a.choice, b.choice)"
)
"""Questions with an answer and the answer to its repetition."""


class Progress(NamedTuple):
    """How far the answers are."""

    asked: int
    answered: int
    yours: int
    """Answers of this page, those to repeated questions included."""
    repeated: int
    """Questions that were answered twice, neither time with `skip`, which says nothing to agree
    with."""
    agreed: int
    """Those of them with the same answer twice. `equal` is another one than a side: training
    learns something else from it."""
    people: tuple[tuple[str, int], ...]
    """By name, how many of `answered` each gave; who gave most comes first."""

    @property
    def waiting(self) -> int:
        return self.asked - self.answered


def of(db: sqlite3.Connection, client: str) -> Progress:
    """Of all answers, and of one page's; within a transaction of `sail_jax.labels.store`."""

    def count(what: str, *values: str) -> int:
        return db.execute(f'select count(*) {what}', values).fetchone()[0]

    return Progress(
        asked=count('from questions'),
        answered=count(f'{LIVE} and again = 0'),
        yours=count(f'{LIVE} and client = ?', client),
        repeated=count(TWICE),
        agreed=count(f'{TWICE} and a.choice = b.choice'),
        people=tuple(
            db.execute(
                f'select who, count(*) {LIVE} and again = 0 group by who'
                ' order by count(*) desc, who'
            )
        ),
    )
