"""Functions that settings call by name, a program's own among them."""

import difflib
from collections.abc import Collection, Mapping
from typing import TypeVar

from sail_jax.errors import UserError

Entry = TypeVar('Entry')


def named(registry: Mapping[str, Entry], name: str, setting: str, where: str) -> Entry:
    """What a setting names.

    Args:
      setting: its key in the configuration.
      where: what the registry is called in Python.

    Raises:
      UserError: nobody has given anything that name.
    """
    if name not in registry:
        more = f', and what a program adds to {where} before it trains'
        raise UserError(f'{setting}: {name!r:.80}; {there_are(registry, name)}{more}')
    return registry[name]


def there_are(names: Collection[str], name: str) -> str:
    """The names that there are, the one first that was probably meant."""
    close = difflib.get_close_matches(name, names, 1, 0.5)
    hint = f'did you mean {close[0]}? There are' if close else 'there are'
    return f'{hint} {", ".join(names)}'
