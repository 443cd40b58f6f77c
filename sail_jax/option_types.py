"""What options of the command line take: numbers in bounds, names that can be."""

import argparse
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from sail_jax import scalars
from sail_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """Whose refusals are ours, which are printed in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def check(arguments: list[str]) -> None:
    """Refuses what no command could print, or argparse would misread.

    Raises:
      UserError: naming the argument.
    """
    for argument in arguments:
        if not scalars.is_text(argument):
            raise UserError(f'not UTF-8: {argument!r:.80}')
        if argument.startswith('--') and argument.endswith('=--'):
            # Which argparse reads as an empty list, whatever the option's type.
            raise UserError(f'argument {argument.removesuffix("=--")}: -- is no value')


def integer(at_least: int, at_most: int = scalars.INT_MAX) -> Callable[[str], int]:
    """The type of an option."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            if at_least <= (value := scalars.parse(int, text)) <= at_most:
                return value
        should = f'should be an integer from {at_least} to {at_most}'
        raise argparse.ArgumentTypeError(f'{should}, got {text!r:.80}')

    return read


def number(text: str) -> float:
    """The type of an option whose bounds are a setting's."""
    try:
        return scalars.parse(float, text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seconds(text: str) -> float:
    """The type of an option: from a second to a day."""
    with contextlib.suppress(ValueError):
        if 1 <= (value := scalars.parse(float, text)) <= 86_400:
            return value
    raise argparse.ArgumentTypeError(f'1 to 86400 seconds, got {text!r:.80}')


def given(text: str) -> str:
    """The type of an option. Nothing at all, an unset variable of a shell for example, would be the
    current directory, or all addresses of this host."""
    if not text:
        raise argparse.ArgumentTypeError('is empty')
    return text


def path(text: str) -> Path:
    """The type of an option."""
    return Path(given(text))


def file(text: str) -> Path:
    """The type of an option: a file to write."""
    place = path(text)
    if text.endswith(('/', '/.', '/..')) or os.path.isdir(place):
        raise argparse.ArgumentTypeError(f'{text!r} is a directory; name a file in it')
    return place
