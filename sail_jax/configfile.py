"""Configurations from files and the command line, and back: every refusal is one line."""

import contextlib
import io
import itertools
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_origin

import pydantic
import tyro
import yaml
from pydantic import BaseModel

from sail_jax import files, refusals, terminal
from sail_jax.config import RunT, Settings, optional
from sail_jax.errors import UserError
from sail_jax.scalars import Dumper, Loader, parse

# A section that may be missing is set by its keys like any other.
TYRO = (tyro.conf.AvoidSubcommands,)

NUMBERS = tyro.constructors.ConstructorRegistry()


@NUMBERS.primitive_rule
def _number(
    field: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """Reads integers and numbers in the digits 0 to 9."""
    if field.type not in (int, float):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=field.type.__name__.upper(),
        instance_from_str=lambda words: parse(field.type, words[0]),
        is_instance=lambda value: type(value) in (int, field.type),
        str_from_instance=lambda value: [str(value)],
    )


SectionT = TypeVar('SectionT', bound=BaseModel)

MAX_YAML = 2**19
"""Bytes of a configuration."""

LENGTH = 'total_'
"""What the setting of a run's length begins with; `Task.unit`, what it is counted in, follows."""

# What `--resume` may change besides: a run can be prolonged, and logged or kept elsewhere.
FREE_ON_RESUME = (
    'logging.tensorboard',
    'logging.wandb',
    'logging.wandb_entity',
    'logging.wandb_group',
    'logging.wandb_tags',
    'checkpoints.every_updates',
    'checkpoints.keep',
    'checkpoints.keep_best',
)


def read_yaml(path: Path) -> tuple[dict[str, Any], yaml.Node | None]:
    """The file's mapping, and its node tree for line numbers.

    Raises:
      UserError: it cannot be read, is absurdly large, no mapping, or a run's that was emptied.
    """
    content = files.read(path, MAX_YAML)
    try:
        loader = _Loader(content)  # UTF-8, or by its mark UTF-16.
        node = loader.get_single_node()
        data = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f'{path}: not valid YAML: {" ".join(str(error).split())}') from None
    if data is None:
        if (path.parent / 'checkpoints').exists():
            raise UserError(f'{path}: empty, though a run writes its settings there; put it back')
        return {}, None
    if not isinstance(data, dict):
        raise UserError(f'{path}: expected "key: value" lines, got {type(data).__name__}')
    return data, node


class _Loader(Loader):
    """Without aliases, of which a few lines can stand for more values than fit into memory."""

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1
            raise ValueError(f'line {line}: *{event.anchor}: write the value out')
        return super().compose_node(parent, index)


def validate(
    model: type[SectionT],
    data: dict[str, Any] | SectionT,
    path: Path | None = None,
    node: yaml.Node | None = None,
) -> SectionT:
    """The typed configuration of a file's mapping, or of what comes from Python.

    Raises:
      UserError: the first problem, with file, line and key; of missing keys, all.
    """
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        first, *_ = problems = error.errors()
        line = refusals.line_of(node, first['loc'])
        where = '' if path is None else f'{path}:{line}: ' if line else f'{path}: '
        missing = [refusals.key_of(problem) for problem in problems if problem['type'] == 'missing']
        if first['type'] == 'missing':
            raise UserError(f'{where}missing: {", ".join(missing)}') from None
        raise UserError(where + refusals.explain(model, problems)) from None


def checked(run: RunT) -> RunT:
    """A configuration as Python gives it: `model_copy(update=...)` looks at nothing.

    Raises:
      UserError: as of `validate`; a dict in the place of a section, whose other keys are gone.
    """
    for key, value in _sections(run):
        if isinstance(value, dict):
            raise UserError(
                f'{key}: a dict in the place of the section; set its keys when loading: '
                f"sail_jax.load(path, **{{'{key}.KEY': value}})"
            )
    return validate(type(run), run)


def _sections(section: BaseModel, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """What lies at every key, sections too; but for what is a dict by its type. Keys that there are
    not, which only `model_copy` sets, are left to pydantic."""
    for key, value in vars(section).items():
        field = type(section).model_fields.get(key)
        if field is None or get_origin(field.annotation) is dict:
            continue
        yield f'{prefix}{key}', value
        if isinstance(value, BaseModel):
            yield from _sections(value, f'{prefix}{key}.')


def update(run: RunT, overrides: Mapping[str, Any]) -> RunT:
    """A configuration with other values, which are checked as the command line's are.

    Args:
      overrides: by dotted keys, `{'objective.beta': 0.2}`; a mapping sets the keys that it has.

    Raises:
      UserError: as of `validate`; no mapping.
    """
    if not isinstance(overrides, Mapping):
        kind = type(overrides).__name__
        raise UserError(f"overrides: expected a mapping, {{'seed': 3}} for example, got {kind}")
    data = run.model_dump()
    for key, value in overrides.items():
        for part in reversed(str(key).split('.')):
            value = {part: value}
        data = _merge(data, value)
    return validate(type(run), data)


def _merge(old: Any, new: Any) -> Any:
    if isinstance(new, os.PathLike):
        return os.fspath(new)
    if hasattr(new, 'ndim'):  # An array, of seeds for example, or what is taken out of one.
        return new.tolist()
    if not isinstance(new, Mapping):
        return new
    old = old if isinstance(old, dict) else {}
    return old | {key: _merge(old.get(key), value) for key, value in new.items()}


def wants_help(arguments: list[str]) -> bool:
    """Whether they ask for the fields instead of setting them."""
    return any(argument in ('-h', '--help') for argument in arguments)


def print_help(model: type[Settings], prog: str, description: str) -> NoReturn:
    """Prints every field of a configuration that there is none of, and exits."""
    with _room(HELP_COLUMNS):
        tyro.cli(model, args=['--help'], prog=prog, description=description, config=TYRO)
    raise SystemExit  # tyro has done so.


HELP_COLUMNS = 20
"""tyro's help does not end where a terminal has fewer than five."""
ERROR_COLUMNS = 80
"""The most that its errors take; in fewer it cuts names in two."""


@contextlib.contextmanager
def _room(least: int) -> Iterator[None]:
    """A terminal of so many columns, for tyro."""
    before = os.environ.get('COLUMNS')
    os.environ['COLUMNS'] = str(max(shutil.get_terminal_size().columns, least))
    try:
        yield
    finally:
        del os.environ['COLUMNS']
        if before is not None:
            os.environ['COLUMNS'] = before


def override(run: RunT, arguments: list[str], prog: str, description: str) -> RunT:
    """Applies `--section.key VALUE` arguments; `--help` prints every field and exits.

    Raises:
      UserError: an unknown key, a value of the wrong type or out of bounds.
    """
    if wants_help(arguments):  # Which shows the file's values; tyro prints them as they are.
        run = type(run).model_validate(_printable(run.model_dump()))
    _refuse_values_of_switches(type(run), arguments)
    printed, helps = io.StringIO(), wants_help(arguments)
    with (
        _room(HELP_COLUMNS if helps else ERROR_COLUMNS),
        contextlib.nullcontext() if helps else contextlib.redirect_stderr(printed),
    ):
        try:
            return tyro.cli(
                type(run),
                default=run,
                args=_spell_none(type(run), arguments),
                prog=prog,
                description=description,
                config=TYRO,
                registry=NUMBERS,
            )
        except SystemExit as stop:
            if not stop.code:
                raise
            refused = refusals.values(type(run), stop)
    raise UserError(refused or refusals.arguments(type(run), printed.getvalue()))


def _printable(value: Any) -> Any:
    match value:
        case str() | Path():
            return type(value)(terminal.escaped(str(value)))
        case dict():
            return {key: _printable(inner) for key, inner in value.items()}
        case tuple() | list():
            return type(value)(map(_printable, value))
    return value


def to_yaml(run: Settings) -> str:
    """The resolved configuration; reading it back gives an equal one."""
    return yaml.dump(run.model_dump(mode='json'), Dumper=Dumper, sort_keys=False)


def write(run: Settings, path: Path) -> None:
    """Writes the resolved configuration, whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    part = path.with_suffix('.part')
    try:
        part.write_text(to_yaml(run), encoding='utf-8')
        part.replace(path)
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from None


def differences(ours: BaseModel, theirs: BaseModel, ignore: tuple[str, ...] = ()) -> list[str]:
    """Dotted keys, with both values, in which two configurations differ."""
    a, b = flatten(ours), flatten(theirs)
    return [
        f'{key} ({b.get(key)!r} -> {a.get(key)!r})'
        for key in sorted(a | b)
        if a.get(key) != b.get(key) and key not in ignore
    ]


def free_on_resume(keys: Iterable[str]) -> tuple[str, ...]:
    """Of dotted keys those that `--resume` may change."""
    return tuple(key for key in keys if key in FREE_ON_RESUME or key.startswith(LENGTH))


def another_runs(saved: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """What tells the settings that a checkpoint was saved with from a run's, by dotted key; None
    where it may be the run's own.

    Another version has other keys, and `--resume` may change some.
    """
    theirs, ours = (_flatten(settings, whole=WHOLE) for settings in (saved, ours))
    free = {*free_on_resume(ours)}
    if ours.get('env.backend') == 'python' and 'segment_reward' not in theirs:
        free |= {'env.name', 'env.backend'}  # Saved when environments from Python had no name.
    for key in sorted(theirs.keys() & ours.keys() - free):
        if theirs[key] != ours[key]:
            return f'{key} {theirs[key]!r:.80} instead of {ours[key]!r:.80}'
    return None


def flatten(run: BaseModel) -> dict[str, Any]:
    """Every setting by its dotted key."""
    return _flatten(run.model_dump(mode='json'))


WHOLE = ('arguments', 'overrides', 'schedule_arguments', 'chat_template_kwargs', 'rewards')
"""Settings whose keys are the user's: of two runs they compare as a whole."""


def _flatten(data: dict[str, Any], prefix: str = '', whole: Collection[str] = ()) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and key not in whole:
            flat |= _flatten(value, f'{prefix}{key}.', whole)
        else:
            flat[prefix + key] = value
    return flat


def _spell_none(model: type[BaseModel], arguments: list[str]) -> list[str]:
    """`--key none` as tyro wants it, `--key None`, for keys that can be null."""
    fields, spelled = refusals.fields(model), []
    for option, argument in zip(['', *arguments], arguments, strict=False):
        name, equals, value = argument.partition('=')
        if argument == 'none' and optional(fields.get(refusals.setting(option))):
            argument = 'None'
        elif equals and value == 'none' and optional(fields.get(refusals.setting(name))):
            argument = f'{name}=None'
        spelled.append(argument)
    return spelled


def _refuse_values_of_switches(model: type[BaseModel], arguments: list[str]) -> None:
    """tyro would name the value, and not whose it is."""
    switches = {key for key, field in refusals.fields(model).items() if field.annotation is bool}
    for argument, following in itertools.pairwise([*arguments, '--']):
        option, equals, value = argument.partition('=')
        section, dot, name = refusals.setting(option).rpartition('.')
        key = f'{section}{dot}{name.removeprefix("no_")}'
        value = value if equals else following
        if argument.startswith('--') and key in switches and (equals or value[:1] != '-'):
            off = f'--{section}{dot}no-{key.rpartition(".")[2]}'
            raise UserError(
                f'{key}: a switch, --{key} or {off}, without a value; got {value!r:.80}'
            )
