"""Functions that settings call by name, a program's own among them."""

import difflib
from collections.abc import Mapping
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
        close = difflib.get_close_matches(name, registry, 1, 0.5)
        hint = f'did you mean {close[0]}? There are' if close else 'there are'
        raise UserError(
            f'{setting}: {name!r:.80}; {hint} {", ".join(registry)}, and what a program '
            f'adds to {where} before it trains'
        )
    return registry[name]
