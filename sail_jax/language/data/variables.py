"""What chat templates are handed beside a conversation, as settings."""

import contextlib
import datetime
import math
from typing import Annotated, Any

from pydantic import BeforeValidator

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


def _variable(value: Any) -> bool | int | float | str:
    """A template takes the text `false` for true."""
    is_scalar = isinstance(value, bool | int | float | str)
    if not is_scalar or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError('expected text, a number, true or false')
    return {'true': True, 'false': False}.get(str(value).lower(), value)


Day = Annotated[datetime.date, BeforeValidator(_day)]
Variables = dict[str, Annotated[bool | int | float | str, BeforeValidator(_variable)]]
