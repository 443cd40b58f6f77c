"""What chat templates are handed beside a conversation, as settings."""

import contextlib
import datetime
import json
import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator

LISTS = ('tools', 'documents')
"""Variables of a template that are lists of objects."""
SWITCH = re.compile(r'(enable|disable|use|add|keep|preserve)_.*|.*thinking')
"""Names of variables that templates take for switches: to them the text `no` is true."""
NO_SWITCHES = ('yes', 'no', 'on', 'off')
"""Switches to YAML 1.1, and text here."""
DAY = datetime.date(2024, 7, 26)
"""That templates are told where nobody says another: prompts do not depend on when they are made.
It is the one that Llama 3.1's writes by itself."""


def _day(value: Any) -> datetime.date:
    """Pydantic reads any number as a time since 1970."""
    with contextlib.suppress(ValueError):
        if isinstance(value, str):
            return datetime.date.fromisoformat(value)
    if type(value) is not datetime.date:
        raise ValueError('expected a day, 2024-07-26 for example')
    return value


def _variables(value: Any) -> Any:
    """Tools and documents, which are lists, as JSON: the command line has no other form."""
    if not isinstance(value, dict):
        return value
    for name, text in value.items():
        if SWITCH.fullmatch(str(name)) and str(text).lower() in NO_SWITCHES:
            raise ValueError(f'{name}: expected true or false, got {text!r:.80}')
    lists = {k: v for k, v in value.items() if k in LISTS and isinstance(v, list)}
    return value | {k: json.dumps(v, ensure_ascii=False) for k, v in lists.items()}


def _variable(value: Any) -> bool | int | float | str:
    """A template takes the text `false` for true."""
    is_scalar = isinstance(value, bool | int | float | str)
    if not is_scalar or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError('expected text, a number, true or false')
    return {'true': True, 'false': False}.get(str(value).lower(), value)


Day = Annotated[datetime.date, BeforeValidator(_day)]
Variables = Annotated[
    dict[str, Annotated[bool | int | float | str, BeforeValidator(_variable)]],
    BeforeValidator(_variables),
]
