"""What ends a run early. The command line prints the message, one line, and exits with `status`."""

import functools
import re
import shlex
from collections.abc import Callable
from typing import ParamSpec, TypeVar


class UserError(Exception):
    """Bad input: says what is wrong, where, and what would be right."""

    status = 2


class NotJoined(UserError):
    """The processes of a run did not find each other in time."""


class Busy(UserError):
    """Another program has what is needed, and will leave it."""


class TrainingFailed(Exception):
    """The run cannot go on: says why, where to look, and what is kept."""

    status = 1


class Interrupted(Exception):
    """Stopped by a signal after saving: says how to resume. 130 for Ctrl-C; 75 for SIGTERM."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple:
        """Of a worker of `multiprocessing`, whose pool waits for ever for what is not read back."""
        return type(self), (str(self), self.status)


def one_line(error: BaseException | str) -> str:
    """What an error of somebody else's code says, for a message of ours."""
    try:
        return ' '.join(str(error).split())[:200]
    except Exception:  # Of its `__str__`.
        return ''


ARGUMENTS = {
    '--adapter': 'adapter=True',
    '--best': 'best=True',
    '--dtype': 'dtype',
    '--episodes': 'episodes',
    '--max-tokens': 'max_tokens',
    '--private': 'private=True',
    '--quiet': 'quiet=True',
    '--resume': 'resume=True',
    '--run-dir': 'run_dir',
    '--samples': 'samples',
}
"""Options of the command line, and what they are in Python."""

Given = ParamSpec('Given')
Returned = TypeVar('Returned')


def for_python(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """The function, with errors that name arguments where the command line has options."""

    @functools.wraps(function)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
        try:
            return function(*args, **kwargs)
        except (UserError, TrainingFailed, Interrupted) as error:
            error.args = (in_python(str(error)),)
            raise

    return call


def in_python(message: str) -> str:
    """A message of the command line as Python's functions say it."""
    command = r'sail-jax train (.+)/config\.yaml --run-dir \1 --resume'

    def call(match: re.Match) -> str:
        where = ''.join(shlex.split(match[1]))
        return f'sail_jax.train({where + "/config.yaml"!r}, {where!r}, resume=True)'

    message = re.sub(command, call, message)
    return re.sub(r'--[a-z][a-z-]*', lambda option: ARGUMENTS.get(option[0], option[0]), message)
