"""Integers, numbers and switches of configurations: each is what it is written as, and what the
devices compute with can hold it."""

import contextlib
import operator
import re
from collections.abc import Callable
from typing import Any, LiteralString, TypeVar

import numpy as np
import yaml
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from sail_jax.errors import UserError

INT_MAX = 2**31 - 1
"""Of a setting without a smaller or larger bound of its own: int32's largest."""
FLOAT_MAX = float(np.finfo(np.float32).max)
FLOAT_TINY = float(np.finfo(np.float32).tiny)
"""Below it float32 is subnormal, which devices take for 0."""
MAX_DEPTH = 32
"""Of lists and mappings of YAML in one another."""
MAX_DIGITS = 1000
"""Of an integer in a file; every setting's bound is far below."""


def guarded(schema: Any) -> CoreSchema:
    """The schema of a section with its scalars guarded, in place; sections in it guard their own.

    An integer or number is no text and no switch, a switch nothing else, an integer has a largest
    value, and a number is neither infinite, nor 0, nor at its bound for being rounded to float32.

    Args:
      schema: a `CoreSchema`, a union of mappings that have no key but `type` in common.
    """
    match schema.get('type'):
        case 'int':
            if not {'le', 'lt'} & schema.keys():
                schema['le'] = INT_MAX
            return core_schema.no_info_before_validator_function(
                _refuse_other('int_type', 'Input should be a valid integer'), schema
            )
        case 'float':
            return core_schema.no_info_after_validator_function(
                _fits_float32(schema.get('lt')),
                core_schema.no_info_before_validator_function(
                    _refuse_other('float_type', 'Input should be a valid number'), schema
                ),
            )
        case 'bool':
            return core_schema.custom_error_schema(
                schema | {'strict': True},
                custom_error_type='switch_type',
                custom_error_message='Input should be true or false',
            )
    for key in ('schema', 'choices', 'items_schema'):
        match schema.get(key):
            case dict() as inner:
                schema[key] = guarded(inner)
            case list() as inner:
                schema[key] = [
                    guarded(choice) if isinstance(choice, dict) else choice for choice in inner
                ]
    for field in schema.get('fields', {}).values():
        field['schema'] = guarded(field['schema'])
    return schema


class Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: `yes`, `12:30:45` and `2026-01-31` are text, `1e-5` is a number.

    An integer may have underscores, `1_000`. `010`, 8 in YAML 1.1 and 10 in 1.2, is text.

    A ValueError where nesting, which takes time with the cube of its depth, is too deep, a value is
    not what its tag says, and a key stands twice in a mapping, of which PyYAML takes the last, or
    is no text, for which it has a traceback.
    """

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        if self._depth == MAX_DEPTH:
            line = self.peek_event().start_mark.line + 1
            raise ValueError(f'line {line}: nested over {MAX_DEPTH} deep')
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f'line {line}: a {key.id} as key; expected text')
            if key.value in seen:
                raise ValueError(f'line {line}: second {key.value!r:.80}')
            seen.add(key.value)
        return node

    def construct_document(self, node: yaml.Node) -> Any:
        try:
            return super().construct_document(node)
        except (AttributeError, KeyError):  # PyYAML's, of `!!timestamp x` and `!!bool x`.
            raise ValueError('a value is not what its tag says') from None


Loader.yaml_implicit_resolvers = {}  # None of YAML 1.1's.


class Dumper(yaml.SafeDumper):
    """Quotes text that readers of YAML 1.1 or of 1.2 would take for something else."""


IMPLICIT = {
    'null': ('~|null|Null|NULL|', ['~', 'n', 'N', '']),
    'bool': ('true|True|TRUE|false|False|FALSE', 'tTfF'),
    'int': (r'[-+]?(?:0|[1-9]\d*(?:_\d+)*)|0x[\da-fA-F]+|0o[0-7]+', '-+0123456789'),
    'float': (
        r'[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))'
        r'|\.(?:nan|NaN|NAN)',
        '-+.0123456789',
    ),
}
"""What a scalar without quotes or tag can be, and the characters that it begins with."""

for _tag, (_pattern, _first) in IMPLICIT.items():
    for _kind in (Loader, Dumper):
        _kind.add_implicit_resolver(
            f'tag:yaml.org,2002:{_tag}', re.compile(rf'(?:{_pattern})\Z', re.ASCII), list(_first)
        )


def _construct_int(loader: Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    if len(text) > MAX_DIGITS:  # What Python reads in hexadecimal it may not write in decimal.
        line = node.start_mark.line + 1
        raise ValueError(f'line {line}: an integer of {len(text)} digits; at most {MAX_DIGITS}')
    return int(text, 0)


Loader.add_constructor('tag:yaml.org,2002:int', _construct_int)


Number = TypeVar('Number', int, float)


def parse(kind: type[Number], text: str) -> Number:
    """A number of the command line, in the digits 0 to 9: Python reads other scripts' too.

    Raises:
      ValueError: it is none.
    """
    with contextlib.suppress(ValueError):
        if text.isascii():
            return kind(text)
    what = 'an integer' if kind is int else 'a number'
    raise ValueError(f'should be {what}, got {text!r:.80}')


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8. What arguments and file names have of other bytes Python
    holds as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_other(kind: LiteralString, message: LiteralString) -> Callable[[Any], Any]:
    """Before pydantic makes `'3'` and `true` into numbers."""

    def check(value: Any) -> Any:
        if isinstance(value, str | bytes):
            raise PydanticCustomError(kind, f'{message}, not text')
        if isinstance(value, bool | np.bool_):
            raise PydanticCustomError(kind, f'{message}, not true or false')
        return value

    return check


def _fits_float32(below: float | None) -> Callable[[float], float]:
    def check(value: float) -> float:
        if abs(value) > FLOAT_MAX:
            raise ValueError(f'should be at most {FLOAT_MAX:.2g}, the largest of float32')
        if 0 < abs(value) < FLOAT_TINY:
            raise ValueError(f'should be 0 or at least {FLOAT_TINY:.3g}, the least of float32')
        if below is not None and np.float32(value) >= below:
            raise ValueError(f'should be less than {below:g}, as float32 rounds it too')
        return value

    return check


def integer(name: str, value: Any, at_least: int = 0) -> int:
    """An argument, checked.

    Raises:
      UserError: it is no integer, or out of bounds.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if isinstance(value, bool) or not at_least <= number <= INT_MAX:
        should = f'should be an integer from {at_least} to {INT_MAX}'
        raise UserError(f'{name}: {should}, got {value!r:.80}')
    return number
