"""Conversations as rows have them: lists of messages, and transcripts."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from sail_jax.errors import UserError, one_line

Raw = Mapping[str, Any]


TOOLS = 'tools'
"""The role of a turn before a conversation which holds the tools that its chat template is told."""


class Message(NamedTuple):
    """A turn of a conversation; or before its first, of role `TOOLS`, a row's own tools as JSON."""

    role: str
    content: str


class Missing(UserError):
    """A column that is needed and not there."""


def is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether a value is a list, and no text."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def says(value: Any) -> bool:
    """Whether a value is more than an empty place of a table; False and 0 are values."""
    return value is not None and value != '' and not (is_list(value) and len(value) == 0)


def text(raw: Raw, name: str) -> str:
    """A column of text.

    Raises:
      UserError: it is missing, or no text.
    """
    value = raw.get(name)
    if value is None:
        raise Missing(f'{name}: missing')
    if not isinstance(value, str):
        raise UserError(f'{name}: expected text, got {type(value).__name__}')
    return value


def messages(value: Any, name: str) -> tuple[Message, ...]:
    """A list of messages.

    Raises:
      UserError: naming the message that is none.
    """
    if value is None:
        raise Missing(f'{name}: missing')
    if not is_list(value):
        raise UserError(f'{name}: expected a list of messages, got {type(value).__name__}')
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise UserError(f'{name}[{i}]: expected a message, got {type(message).__name__}')
        if message.get('tool_calls'):
            raise UserError(f'{name}[{i}]: tool calls are not supported')
        if 'role' not in message and 'from' in message:
            raise UserError(f'{name}[{i}]: from and value; call them role and content')
        if message.get('role') == TOOLS:
            raise UserError(f'{name}[{i}].role: {TOOLS}; they are a column of the row')
        try:
            messages.append(Message(text(message, 'role'), _content(message)))
        except UserError as error:
            raise UserError(f'{name}[{i}].{error}') from None
    return tuple(messages)


def tools(value: Any) -> Message | None:
    """A row's own tools, a list of objects or JSON of one; None of an empty one, or of null. Of a
    list what is null is left out: Arrow gives every object the keys of all.

    Raises:
      UserError: they are something else.
    """
    listed = _without_null(value)
    if isinstance(value, str):
        try:
            listed = json.loads(value)
        except (ValueError, RecursionError):
            listed = value
    if not says(listed):
        return None
    if not is_list(listed) or not all(isinstance(tool, Mapping) for tool in listed):
        raise UserError(f'{TOOLS}: expected a list of objects, or JSON of one, got {value!r:.80}')
    try:
        return Message(TOOLS, json.dumps(listed, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f'{TOOLS}: {one_line(error)}') from None


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [*map(_without_null, value)] if is_list(value) else value


def told(
    messages: tuple[Message, ...],
) -> tuple[list[dict[str, Any]] | None, tuple[Message, ...]]:
    """A row's own tools, if it has any, and the conversation itself."""
    if messages and messages[0].role == TOOLS:
        return json.loads(messages[0].content), messages[1:]
    return None, messages


def _content(message: Raw) -> str:
    """A turn's text; where it comes in parts, as for models that see, all of them are text."""
    parts = message.get('content')
    if not is_list(parts):
        return text(message, 'content')
    texts = []
    for i, part in enumerate(parts):
        kind = part.get('type') if isinstance(part, Mapping) else type(part).__name__
        if kind != 'text':
            raise UserError(f'content[{i}]: a part of type {kind!r:.40}; only text is read')
        try:
            texts.append(text(part, 'text'))
        except UserError as error:
            raise UserError(f'content[{i}].{error}') from None
    return ''.join(texts)


def transcript(raw: Raw, name: str) -> tuple[Message, ...]:
    """Of turns `\\n\\nHuman:` and `\\n\\nAssistant:`.

    Raises:
      UserError: it does not begin with one.
    """
    parts = re.split(r'\n\n(Human|Assistant):', text(raw, name))
    if len(parts) < 3 or parts[0].strip():
        raise UserError(f'{name}: expected a transcript that begins with "\\n\\nHuman:"')
    roles = {'Human': 'user', 'Assistant': 'assistant'}
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return tuple(Message(roles[speaker], text.strip()) for speaker, text in turns)
