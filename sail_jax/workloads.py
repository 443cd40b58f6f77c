"""The registry of workloads: a new one is a folder with a `Kind`, and a line here."""

from pathlib import Path
from typing import Any

from sail_jax.bandit.kind import BANDIT
from sail_jax.config import Settings
from sail_jax.control.kind import CONTROL
from sail_jax.control.sac.kind import SAC
from sail_jax.errors import UserError
from sail_jax.kind import Command, Kind
from sail_jax.language.kind import LANGUAGE
from sail_jax.language.quickstart.kind import QUICKSTART
from sail_jax.language.reward.stage.kind import REWARD
from sail_jax.language.sft.kind import SFT

KINDS = (CONTROL, SAC, BANDIT, SFT, REWARD, LANGUAGE, QUICKSTART)
"""Those of this package; a file that names no workload is of the first."""

_registered: dict[str, Kind] = {}


def kinds() -> tuple[Kind, ...]:
    """All workloads: those of this package, then those that were registered."""
    return (*KINDS, *_registered.values())


def register(kind: Kind) -> None:
    """Makes a workload of your own known by its name: to `sail_jax.train`, `load`, `evaluate` and
    the commands of this process.

    A name that you registered before is taken over, as when a notebook's cell runs again.

    Raises:
      UserError: it is no `Kind`; the name is no text, or that of one of this package's workloads;
        its settings are not of that workload; it has not exactly one of `task` and `study`.
    """
    if not isinstance(kind, Kind):
        raise UserError(f'register: expected a sail_jax.Kind, got {kind!r:.80}')
    if not isinstance(kind.name, str) or not kind.name.isprintable() or not kind.name.strip():
        raise UserError(f'register: name: expected a word, got {kind.name!r:.80}')
    if any(kind.name == known.name for known in KINDS):
        raise UserError(f'workload {kind.name}: the name of one of sail_jax; take another')
    if (kind.task is None) == (kind.study is None):
        raise UserError(f'workload {kind.name}: give either task or study')
    if not isinstance(kind.settings, type) or not issubclass(kind.settings, Settings):
        raise UserError(
            f'workload {kind.name}: settings: expected a class that extends '
            f'sail_jax.config.Trained, or another there, got {kind.settings!r:.80}'
        )
    field = kind.settings.model_fields.get('workload')
    if kind.choose is None and (field is None or field.default != kind.name):
        raise UserError(
            f'workload {kind.name}: {kind.settings.__name__} needs the field '
            f'workload: Literal[{kind.name!r}] = {kind.name!r}'
        )
    _registered[kind.name] = kind


def named(name: Any) -> Kind | None:
    """The workload of that name."""
    return next((kind for kind in kinds() if kind.name == name), None)


def of_file(data: dict[str, Any], path: Path) -> Kind:
    """The workload of a file's mapping; the rest of it may be wrong.

    Raises:
      UserError: it names none that there is.
    """
    name = data.get('workload', KINDS[0].name)
    kind = named(name)
    if kind is None:
        known = ', '.join(kind.name for kind in kinds())
        raise UserError(
            f'{path}: workload: {name!r:.80}; known: {known}, and what a program registers '
            '(sail_jax.register) before it reads the file'
        )
    return kind


def settings(data: dict[str, Any], path: Path) -> type[Settings]:
    """The class of the configuration that a file's mapping is; errors as of `of_file`."""
    kind = of_file(data, path)
    return kind.settings if kind.choose is None else kind.choose(data, path)


def of(run: Any) -> Kind:
    """The workload of a configuration.

    Raises:
      UserError: it is no configuration of one.
    """
    kind = named(getattr(run, 'workload', None))
    if kind is None or not isinstance(run, kind.settings):
        raise UserError(f'run: a configuration or the path of one, got {type(run).__name__}')
    return kind


def names(command: Command) -> str:
    """The workloads that know a command."""
    return ', '.join(kind.name for kind in kinds() if kind.knows(command))
