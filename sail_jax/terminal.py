"""What is printed. Whatever others wrote, in files, names, options or a model's responses, reaches
the terminal as text: it sets no title, moves no cursor, hides nothing, and is no markup."""

import contextlib
import logging
import os
import sys
import textwrap
import unicodedata
from collections.abc import Iterable
from typing import IO, Any, Literal

from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from sail_jax import streams

MAX_LINE = 2000
"""Characters of an error; what is quoted in one may be of any length."""
MAX_NAME = 26
"""Characters in a line of the first column of a table that is wider than the terminal."""
MIN_NAME, MIN_VALUE = 8, 4
"""Characters of the first column and the others that a table keeps in the narrowest terminal."""
JOINERS = '\u200c\u200d'
"""Of letters and emoji: of all invisible characters those that text needs."""


def escaped(text: str, keep: str = '') -> str:
    """Text in which nothing acts on a terminal or hides: control characters, bidirectional
    overrides, invisible characters and lone surrogates are written as Python escapes them.

    Args:
      keep: of those, what is left as it is.
    """

    def of(character: str) -> str:
        if character.isprintable() or character in keep or character in JOINERS:
            return character
        if unicodedata.category(character) == 'Zs':  # A space of another width.
            return character
        return character.encode('unicode_escape').decode()

    return ''.join(map(of, text))


def shown(text: str, at_most: int = 80) -> str:
    """What a file says, for a message of ours: escaped, and not long."""
    return escaped(text[:at_most])


def one_line(text: str) -> str:
    """Escaped, on one line, and of bounded length."""
    line = escaped(' '.join(text.split()))
    return line if len(line) <= MAX_LINE else f'{line[: MAX_LINE - 300]} ... {line[-300:]}'


def error(text: str) -> None:
    """An error, on one line of stderr. That it cannot be written is no error of its own."""
    with contextlib.suppress(OSError, ValueError):
        print(f'sail-jax: {one_line(text)}', file=sys.stderr, flush=True)


def out(text: str) -> None:
    """What a command is asked for, on stdout; lines and tabs are its own."""
    print(escaped(text, '\n\t').encode(_encoding(), 'backslashreplace').decode(_encoding()))


def _encoding() -> str:
    return getattr(sys.stdout, 'encoding', None) or 'utf-8'


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


def log_to_stderr() -> None:
    """Warnings of ours as errors are printed; of Orbax, which says in many lines what we say in
    one, nothing."""
    for name in ('absl', 'asyncio'):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # `training.accelerator` says that an accelerator is idle, and what to do about it.
    logging.getLogger('jax._src.xla_bridge').addFilter(
        lambda record: 'may be present' not in record.getMessage()
    )
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine('sail-jax: %(message)s'))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


class Console(RichConsole):
    """Rich's, which reads markup and emoji codes out of nothing, escapes every string, and goes on
    where its stream does not."""

    def __init__(self, **settings: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    @RichConsole.file.getter
    def file(self) -> IO[str]:
        """Where it prints."""
        return streams.of(super().file)

    def render_str(self, text: str, **settings: Any) -> Text:
        settings |= {'markup': False, 'emoji': False, 'highlight': False}
        return super().render_str(escaped(text, '\n'), **settings)


console = Console(stderr=True)
"""Of what is said beside the results."""


def say(text: str) -> None:
    """A message on stderr, above the progress bar where there is one."""
    console.print(text, soft_wrap=True)


def print_table(
    title: str,
    columns: Iterable[str],
    rows: Iterable[Iterable[str]],
    justify: Literal['left', 'right'] = 'right',
) -> None:
    """A table on standard output; `justify` is of all columns but the first. Nothing is cut: what
    is too wide for a terminal goes on below, and a file has no width."""
    names, rows = list(columns), [list(row) for row in rows]

    def table(name_width: int | None = None) -> Table:
        made = Table()
        made.add_column(names[0], justify='left', overflow='fold', no_wrap=name_width is not None)
        for name in names[1:]:
            made.add_column(name, justify=justify, overflow='fold')
        for first, *others in rows:
            if name_width:  # Of a directory: hyphens stand between its parts.
                first = textwrap.fill(first, name_width)
            made.add_row(first, *others)
        return made

    console, needed = Console(), Console(width=2**16).measure(table()).maximum
    values = 1 + (len(names) - 1) * (MIN_VALUE + 3)  # With the lines and blanks between columns.
    if not console.is_terminal and 'COLUMNS' not in os.environ:
        console = Console(width=needed)
    elif console.width < values + MIN_NAME + 3:  # Rich would leave columns without a character.
        console = Console(width=values + MIN_NAME + 3)
    if title:  # Not the table's own, which is padded with blanks to its width.
        console.print(title, style='bold', soft_wrap=True)
    name_width = min(MAX_NAME, console.width - values - 3)
    console.print(table(None if needed <= console.width else name_width))
