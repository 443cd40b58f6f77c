"""Pages of the reference that are made out of the code: settings, commands, the Python API.

Docstrings here are Markdown, so they are handed to MyST as they are; Google's sections (Args,
Returns, Raises) become lists.
"""

import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sphinx.pycode import ModuleAnalyzer

import sail_jax
from sail_jax import runs
from sail_jax.meanings import MEANINGS

ROOT = Path(__file__).parents[1]
KINDS = {
    'control': ('Control', 'quickstart.yaml'),
    'sac': ('Soft actor-critic', 'control/sac/cheetah_run.yaml'),
    'language': ('Language', 'language/qwen2.5-0.5b-ultrafeedback.yaml'),
    'sft': ('Supervised stage', 'language/sft.yaml'),
    'reward': ('Reward model', 'language/reward.yaml'),
    'language-quickstart': ('Language quickstart', 'language/quickstart.yaml'),
    'landscape': ('Bandit: landscape', 'bandit/landscape.yaml'),
    'sample-complexity': ('Bandit: sample complexity', 'bandit/sample_complexity.yaml'),
}
"""Each kind of configuration file: its title, and a file of it."""
EXTENSION = (
    'sail_jax.kind',
    'sail_jax.workloads',
    'sail_jax.training.task',
    'sail_jax.language.model.families',
)
COMMANDS = (
    'plan',
    'evaluate',
    'plot',
    'render',
    'generate',
    'export',
    'label',
    'labels export',
    'reward export',
    'reward evaluate',
    'metrics',
    'doctor',
)
INT_MAX = 2**31 - 1
"""The bound of every integer; not worth a word."""
SECTIONS = ('Args', 'Returns', 'Raises', 'Attributes', 'Yields')


def write(directory: Path) -> None:
    """Writes every page that has changed."""
    pages = {f'configuration-{name}': configuration(*kind) for name, kind in KINDS.items()}
    pages |= {'commands': commands(), 'api': api(), 'core': core(), 'extension': extension()}
    pages |= {'meanings': meanings()}
    directory.mkdir(exist_ok=True)
    for path in directory.glob('*.md'):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        path = directory / f'{name}.md'
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def configuration(title: str, file: str) -> str:
    """Every setting of a kind of file, from the docstrings under its fields."""
    schema = type(runs.load(ROOT / 'configs' / file)).model_json_schema()
    lines = [f'# {title}', '', f'A file of this kind: `configs/{file}`.', '']
    for name, section in _sections(schema, schema.get('$defs', {})):
        rows = [
            f'| `{key}` | {_type(field)} | {_default(section, key, field)} | {_cell(field)} |'
            for key, field in section['properties'].items()
            if _target(field) is None
        ]
        heading = f'`{name}`' if name else 'The file itself'
        lines += [f'## {heading}', '', section.get('description', ''), '']
        lines += ['| key | value | default | |', '|---|---|---|---|', *rows, ''] if rows else []
    return '\n'.join(lines)


def _sections(
    section: dict[str, Any], known: dict[str, Any], name: str = ''
) -> Iterator[tuple[str, dict[str, Any]]]:
    yield name, section
    for key, field in section['properties'].items():
        if target := _target(field):
            yield from _sections(known[target], known, f'{name}.{key}'.strip('.'))


def _target(field: dict[str, Any]) -> str | None:
    """The section that a field is, or can be."""
    for option in (field, *field.get('allOf', ()), *field.get('anyOf', ())):
        if '$ref' in option:
            return option['$ref'].rpartition('/')[2]
    return None


def _type(field: dict[str, Any]) -> str:
    if 'anyOf' in field:
        return ', or '.join(_type(option) for option in field['anyOf'])
    if 'enum' in field:
        return ', '.join(f'`{value}`' for value in field['enum'])
    if 'const' in field:
        return f'`{field["const"]}`'
    if field.get('type') == 'array':
        return f'list of {_type(field["items"])}' if 'items' in field else 'list'
    names = {'null': 'none', 'string': 'text', 'boolean': 'true or false', 'object': 'mapping'}
    kind = field.get('type', 'text')
    bounds = [
        f'{sign} {_number(field[key])}'
        for key, sign in (
            ('exclusiveMinimum', 'above'),
            ('minimum', 'from'),
            ('maximum', 'to'),
            ('exclusiveMaximum', 'below'),
            ('multipleOf', 'multiple of'),
        )
        if key in field and field[key] != INT_MAX
    ]
    return ' '.join([names.get(kind, kind), *bounds])


def _number(value: float) -> str:
    """A bound; the large ones are powers of two."""
    power = int(value).bit_length() - 1
    return f'2^{power}' if value >= 2**15 and value == 2**power else f'{value:g}'


def _default(section: dict[str, Any], key: str, field: dict[str, Any]) -> str:
    if key in section.get('required', ()):
        return '*needed*'
    value = field.get('default')
    match value:
        case None:
            return 'none'
        case bool():
            return str(value).lower()
        case []:
            return 'empty'
    return f'`{value}`'


def _cell(field: dict[str, Any]) -> str:
    return _escaped(' '.join(field.get('description', '').split()))


def _escaped(text: str) -> str:
    return text.replace('|', r'\|')


def commands() -> str:
    """What `--help` of every command prints."""
    lines = ['# What `--help` prints', '']
    for name in ((), *map(str.split, COMMANDS)):
        done = subprocess.run(
            [sys.executable, '-m', 'sail_jax.cli', *name, '--help'],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, 'COLUMNS': '90', 'PYTHONPATH': str(ROOT)},
        )
        title = ' '.join(('sail-jax', *name))
        lines += [f'## `{title}`', '', '```text', done.stdout.strip(), '```', '']
    return '\n'.join(lines)


def meanings() -> str:
    """The table of `sail-jax metrics`."""
    rows = [
        f'| {", ".join(f"`{key}`" for key in one.metrics)} | {one.good} | {_escaped(one.text)} |'
        for one in MEANINGS
    ]
    return '\n'.join(['| number | good | what it says |', '|---|---|---|', *rows, ''])


def api() -> str:
    """What `import sail_jax` gives."""
    lines = ['# `sail_jax`', '', sail_jax.__doc__.strip(), '']
    names = sorted(sail_jax.__all__, key=lambda name: (name[0].isupper(), name))
    for name in names:
        lines += _described(f'sail_jax.{name}', getattr(sail_jax, name))
    return '\n'.join(lines)


def core() -> str:
    """The pure part."""
    package = importlib.import_module('sail_jax.core')
    names = [info.name for info in pkgutil.iter_modules(package.__path__, 'sail_jax.core.')]
    title = ['# `sail_jax.core`', '', 'Pure functions and the types that they pass on.', '']
    return '\n'.join([*title, *(line for name in names for line in _module(name))])


def extension() -> str:
    """What those meet who add a workload or a family of models."""
    title = ['# What extensions are made of', '', 'See [Extend](../../extend/index.md).', '']
    return '\n'.join([*title, *(line for name in EXTENSION for line in _module(name))])


def _module(where: str) -> list[str]:
    """A section: the module's docstring, its public classes and functions."""
    module = importlib.import_module(where)
    lines = [f'## `{where}`', '', _markdown(module.__doc__ or ''), '']
    for name, value in vars(module).items():
        public = inspect.isfunction(value) or inspect.isclass(value)
        if public and value.__module__ == where and not name.startswith('_'):
            lines += _described(f'{where}.{name}', value)
    return lines


def _described(name: str, value: Any) -> list[str]:
    """A function, class or constant with its signature, docstring and documented fields."""
    if isinstance(value, Mapping):
        known = ', '.join(f'`{key}`' for key in value)
        return [f'````{{py:data}} {name}', f'A registry, by name: {known}.', '````', '']
    body = [_markdown(inspect.getdoc(value) or '')]
    if not inspect.isclass(value):
        return [f'`````{{py:function}} {name}{_signature(value)}', *body, '`````', '']
    for field, text in _fields(value):
        body += ['', f'````{{py:attribute}} {field}', _markdown(text), '````']
    return [f'`````{{py:class}} {name}', *body, '`````', '']


def _signature(function: Any) -> str:
    """Names and defaults; the annotations of long signatures would hide them."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    bare = signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    return re.sub(r'<[^>]*>', '...', str(bare))


def _fields(value: type) -> Iterator[tuple[str, str]]:
    """Fields of a class with the docstrings under them, and its public methods."""
    try:
        comments = ModuleAnalyzer.for_module(value.__module__).find_attr_docs()
    except Exception:  # Of a class that is not written in Python.
        comments = {}
    for name in getattr(value, '__annotations__', ()):
        if not name.startswith('_'):
            yield name, '\n'.join(comments.get((value.__qualname__, name), ()))
    for name, method in vars(value).items():
        called = name == '__call__' or not name.startswith('_')
        public = inspect.isfunction(method) and called and method.__doc__
        if public and method.__module__ == value.__module__:
            yield f'{name}{_signature(method)}', inspect.getdoc(method)


def _markdown(docstring: str) -> str:
    """A docstring with its sections as lists, and what is indented as code."""
    lines, section = [], None
    for line in docstring.strip().splitlines():
        title = line.rstrip(':')
        if line.endswith(':') and title in SECTIONS:
            section = title
            lines += ['', f'**{title}**', '']
        elif section and line.startswith('  '):
            entry = re.match(r'  (\*{0,2}[\w, *]+): (.*)', line)
            listed = section in ('Args', 'Raises', 'Attributes')
            if listed and entry:
                lines.append(f'- `{entry[1]}`: {entry[2]}')
            elif listed:
                lines.append(f'  {line.strip()}')
            else:
                lines.append(line.strip())
        else:
            section = section if not line else None
            lines.append(line)
    return '\n'.join(lines)
