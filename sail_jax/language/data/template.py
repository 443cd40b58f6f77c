"""The chat template of a checkpoint, and what it writes around a response."""

import functools
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sail_jax import files
from sail_jax.errors import UserError
from sail_jax.language.data.variables import LISTS

_LOG = logging.getLogger(__name__)

MAX_TEMPLATE = 2**20
"""Characters of a chat template."""
FILE = 'chat_template.jinja'
MORE_TEMPLATES = 'additional_chat_templates'
"""A directory of named templates."""
RESERVED = ('messages', 'add_generation_prompt')
"""Variables of a template that are not settings."""


def read(config: dict[str, Any], path: Path) -> tuple[str | None, str | None]:
    """The chat template, or why there is none: `chat_template.jinja`, and beside it a directory of
    named ones; else the one in the tokeniser's configuration, which may be named ones too.

    Args:
      config: of `tokenizer_config.json`.
      path: the checkpoint's directory.

    Raises:
      UserError: it is no text, or absurdly long.
    """
    file, more = path / FILE, path / MORE_TEMPLATES
    named = {one.stem: one for one in sorted(more.glob('*.jinja'))}
    if file.exists():
        named.setdefault('default', file)
    if named:
        source = {name: _read_template(f) if name == 'default' else '' for name, f in named.items()}
    else:
        source = config.get('chat_template')
    if isinstance(source, list):
        if not all(isinstance(one, dict) and isinstance(one.get('name'), str) for one in source):
            raise UserError(f'{path}: chat_template: expected text, or named templates')
        source = {one['name']: one.get('template') for one in source}
    if isinstance(source, dict) and 'default' not in source:
        listed = ', '.join(sorted(source))
        return None, (
            f'no chat template is the default; there are {listed:.200}; put the one to be used '
            f'there as {file.name}'
        )
    if isinstance(source, dict):
        source = source['default']
    if source is None:
        return None, f'no chat template, which a conversation needs; put a {file.name} there'
    if not isinstance(source, str):
        raise UserError(f'{path}: chat_template: expected text, got {type(source).__name__}')
    if len(source) > MAX_TEMPLATE:
        raise UserError(f'{path}: chat_template: {len(source)} characters; at most {MAX_TEMPLATE}')
    return source, None


def _read_template(file: Path) -> str:
    content = files.read(file, 4 * MAX_TEMPLATE)  # A character has up to four bytes.
    try:
        return content.decode().replace('\r\n', '\n')
    except UnicodeDecodeError as error:
        raise UserError(f'{file}: cannot be read: {error}') from None


def with_lists(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables with those that are lists, which are kept as JSON, as what they are.

    Raises:
      UserError: one is no list of objects.
    """
    lists = {name: variables[name] for name in LISTS if name in variables}
    for name, value in lists.items():
        try:
            lists[name] = json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            lists[name] = None
        if not isinstance(lists[name], list) or not all(
            isinstance(item, dict) for item in lists[name]
        ):
            raise UserError(f'chat_template_kwargs: {name}: expected a list of objects')
    return {**variables, **lists}


def check_variables(variables: Mapping[str, Any], names: Sequence[str] | None, path: Path) -> None:
    """Refuses variables that a template does not read.

    Args:
      names: of the variables that it reads; None where there is no template.

    Raises:
      UserError: naming the variable.
    """
    for name in variables:
        if name in RESERVED:
            raise UserError(f'chat_template_kwargs: {name}: not a setting of a template')
        if names is None or name not in names:
            raise UserError(
                f'chat_template_kwargs: {name}: the chat template of {path} has no such variable'
            )


def with_defaults(source: str, variables: Mapping[str, Any]) -> str:
    """A template that takes these values of variables where whoever renders it gives none, or gives
    `tools` and `documents` as none, which `transformers` always does.

    It writes nothing more: the line break behind a tag is left out (`trim_blocks`, which
    `transformers` sets).
    """
    tags = (
        f'{{%- set {name} = {name} | default({_literal(value)}{_even_if_none(value)}) %}}\n'
        for name, value in with_lists(variables).items()
    )
    return ''.join(tags) + source


def _literal(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else ascii(value)


def _even_if_none(value: Any) -> str:
    return ', true' if isinstance(value, list) else ''


def after_thoughts(before: str, whole: str, response: str) -> str | None:
    """The assistant's turn where `before` ends within it, behind thoughts or at their beginning.

    Templates of models that think begin a turn with `<think>`, or with `<think></think>` where
    they shall not; of turns that are over many show no thoughts. A response without thoughts then
    ends them at once, as those templates do that show them.

    Args:
      before: a conversation with the beginning of the assistant's turn.
      whole: the same with the turn.
      response: what is said in the turn.

    Returns:
      What follows `before`; None if it cannot.
    """
    tag = re.search(r'<([\w:]+)>\s*(</\1>\s*)?$', before)
    if tag is None or not whole.startswith(before[: tag.start()]):
        return None
    rest = whole[tag.start() :]
    opening, closing = f'<{tag[1]}>', f'</{tag[1]}>'
    if tag[2]:  # No thoughts are wanted.
        return None if opening in rest or closing in rest else rest
    if rest.startswith(opening):
        return rest.removeprefix(opening).lstrip('\n')
    if closing not in response:
        return f'\n{closing}\n\n{rest}'
    if closing in rest:
        return rest
    thoughts, _, answer = response.rpartition(closing)
    thoughts = thoughts.lstrip().removeprefix(opening).lstrip('\n')
    blanks = answer[: len(answer) - len(answer.lstrip())]
    return f'{thoughts}{closing}{blanks}{rest.lstrip()}'


def say_if_silent(text: str, contents: Sequence[str], path: Path) -> None:
    """Says once of a template that it writes nothing of what a conversation says, as those of
    models that see, whose contents come in parts alone."""
    begins = [content.strip()[:16] for content in contents]
    if any(begins) and not any(begin and begin in text for begin in begins):
        _warn_of_silence(path)


@functools.cache
def _warn_of_silence(path: Path) -> None:
    _LOG.warning(
        '%s: chat template: writes nothing of what a conversation says; the model sees none of the '
        'prompts that are chats (is it a template for contents in parts?)',
        path,
    )
