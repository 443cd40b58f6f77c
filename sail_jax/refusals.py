"""What is wrong with settings, in one line: out of what pydantic and tyro say."""

import difflib
import re
import typing
from collections.abc import Collection
from typing import Any

import pydantic
import yaml
from pydantic import BaseModel

from sail_jax.other_names import OTHERS

SCALARS = frozenset({'bool', 'int', 'float', 'str'})
"""What `config.Argument` can be, as the last part of a problem's place."""
SLIP = 0.8
"""How near a name is to one that was mistyped, rather than another."""


def fields(model: type[BaseModel], prefix: str = '') -> dict[str, Any]:
    """All fields by their dotted names."""
    by_name = {}
    for name, field in model.model_fields.items():
        by_name[prefix + name] = field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            by_name |= fields(field.annotation, f'{prefix}{name}.')
    return by_name


def setting(option: str) -> str:
    """The setting that an option is of."""
    return option.removeprefix('--').replace('-', '_')


def _nearest(model: type[BaseModel], key: str) -> str:
    last = {name: name.rpartition('.')[2] for name in fields(model)}
    section, _, leaf = key.rpartition('.')
    start = section and f'{section}.'
    siblings = [last[name] for name in last if name == start + last[name]]

    def beside(least: float) -> list[str]:
        return [start + x for x in difflib.get_close_matches(leaf, siblings, 1, least)]

    def called(leaves: Collection[str]) -> list[str]:
        found = [name for name in last if last[name] in leaves]
        # Those of a sweep are lists.
        return [name for name in found if not name.startswith('sweep.')] or found

    others = [name for name in OTHERS.get(leaf, ()) if name in last]
    close = (
        beside(SLIP)
        or list(dict.fromkeys([*others, *called([leaf])]))
        or called(difflib.get_close_matches(leaf, set(last.values()), 1, SLIP))
        or beside(0.5)
        or difflib.get_close_matches(key, last, 1, 0.5)
    )
    return f'; did you mean {" or ".join(close)}?' if close else '; see sail-jax train --help'


def _first(problems: list[Any]) -> Any:
    """The first problem; where a value could have been one of several things, with what it came
    nearest to."""
    loc = _place(problems[0])
    key = loc[: next((i for i, part in enumerate(loc) if _is_kind(part)), len(loc))]
    near = (x for x in problems if x['loc'][: len(key)] == key)
    return max(near, key=lambda x: (len(x['loc']), not x['type'].endswith('_type')))


def key_of(problem: Any) -> str:
    """The dotted key of one of pydantic's problems."""
    unknown = problem['type'] == 'extra_forbidden'
    loc = problem['loc'] if unknown else _place(problem)
    return '.'.join(str(part) for part in loc if unknown or not _is_kind(part))


def _place(problem: Any) -> tuple[int | str, ...]:
    """Where a problem is, without which of `SCALARS` the value is not."""
    return problem['loc'][: -1 if problem['loc'][-1] in SCALARS else None]


def _is_kind(part: int | str) -> bool:
    """Whether it is no key, but which of several things a value could have been."""
    return '[' in str(part)


def explain(model: type[BaseModel], problems: list[Any], prefix: str = '') -> str:
    """Pydantic's problems in one line; `prefix` is of the section that they are in."""
    problem = _first(problems)
    key = prefix + key_of(problem)
    if problem['type'] == 'extra_forbidden':
        if problem['loc'][-1] == key and key in fields(model) and '.' in key:
            return f'{key}: a dotted name; write it as {_nested(key)}'
        return f'unknown key {key}{_nearest(model, key)}'
    if problem['type'] in ('model_type', 'model_attributes_type'):
        got = problem['input']
        how = 'nothing; leave it out for its defaults' if got is None else _shown(got)
        return f'{key}: a section; expected keys and values, got {how}'
    if problem['loc'][-1] in SCALARS and problem['type'].endswith('_type'):
        return f'{key}: expected text, a number, true or false, got {_shown(problem["input"])}'
    text = problem['msg'].removeprefix('Input ').removeprefix('Value error, ')
    value = problem.get('input')
    got = '' if isinstance(value, dict) else f', got {_shown(value)}'
    return f'{key}: {text}{got}'


def _nested(key: str) -> str:
    first, *rest = key.split('.')
    return f'{first}: {{{_nested(".".join(rest))}}}' if rest else f'{first}: VALUE'


def _shown(value: Any) -> str:
    try:
        return f'{value!r:.80}'
    except ValueError:  # Python writes no integer of more than 4,300 digits.
        return 'too many digits'


def line_of(node: yaml.Node | None, loc: tuple[int | str, ...]) -> int | None:
    """Line of the file on which a key stands, from 1."""
    line = None
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                break
        else:
            break
    return line


def _named_values(model: type[BaseModel], key: str) -> str | None:
    """How values with names of the user's own are given, where a key is or lies in such a field."""
    for name, field in fields(model).items():
        if typing.get_origin(field.annotation) is dict and f'{key}.'.startswith(f'{name}.'):
            value = typing.get_args(field.annotation)[1]
            if isinstance(value, type) and issubclass(value, BaseModel):
                return f'{name}: write it into the file, {name}: {{NAME: {{KEY: VALUE}}}}'
            return f'{name}: names and values in turn, e.g. --{name} NAME VALUE'
    return None


def values(model: type[BaseModel], stop: SystemExit) -> str | None:
    """What pydantic said of the values that tyro read, in one line."""
    error, section = stop.__context__, ''
    while error is not None and not isinstance(error, pydantic.ValidationError):
        if isinstance(argument := getattr(error, 'arg', None), str):
            section = f'{argument}.'
        error = error.__context__
    return error and explain(model, error.errors(), section)


def arguments(model: type[BaseModel], printed: str) -> str:
    """One line out of what tyro prints: a box on a terminal, in colours, dashed text elsewhere."""
    plain = re.sub(r'\x1b\[[\d;]*m', '', printed)
    text = ' '.join(re.sub(r'[│╭╮╰╯]|[─-]{3,}', ' ', plain).split())
    if unknown := re.search(r'Unrecognized options: --([\w.-]+)', text):
        key = unknown[1].replace('-', '_')
        if named := _named_values(model, key):
            return named
        if key in fields(model):
            return f'{key}: a section; set one of its keys, e.g. --{key}.KEY VALUE'
        return f'unknown key {key}{_nearest(model, key)}'
    if wrong := re.search(
        r'Error parsing --(\S+): no type matching (.*?) could be instantiated from (\[.*?\])\. Got',
        text,
    ):
        return f'{wrong[1].replace("-", "_")}: should be {wrong[2]}, got {wrong[3]:.80}'
    if pairs := re.search(r'Error parsing --(\S+): Failed to parse key-value pairs', text):
        return _named_values(model, setting(pairs[1])) or text
    if wrong := re.search(r'Error parsing --(\S+): Could not find .*?: (\[.*?\]) Argument', text):
        several = f'; values stand one after the other, e.g. --{wrong[1]} A B'
        listed = re.search(r'[],\[]', wrong[2][1:-1])
        return f'{setting(wrong[1])}: cannot be {wrong[2]:.80}{several if listed else ""}'
    if wrong := re.search(
        r"choice ('.*') for argument '--(\S+)'\. Expected one of \((.*?),?\)", text
    ):
        return f'{setting(wrong[2])}: should be one of {wrong[3]}, got {wrong[1]:.80}'
    if other := re.search(
        r'(?:Error parsing --|(?=Missing value|Unrecognized options:))(.*?) (?:Argument|For full)',
        text,
    ):
        return other[1]
    return text
