"""Functions that settings call by name, a program's own among them."""

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

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


def require_switches(what: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuses arguments that are no switch where the function has one, and a switch where it has
    none: to Python `no`, which is text in YAML, is as good as true, and true as good as 1.

    Args:
      what: names the arguments.

    Raises:
      UserError: naming the argument.
    """
    parameters = inspect.signature(function).parameters
    for name in arguments.keys() & parameters.keys():
        value, is_switch = arguments[name], isinstance(parameters[name].default, bool)
        if isinstance(value, bool) and name.endswith('mask'):
            continue  # One of Optax's, for all parameters.
        if isinstance(value, bool) != is_switch:
            expected = 'true or false' if is_switch else 'a number or text'
            raise UserError(f'{what}: {name}: {value!r:.80}; expected {expected}')
