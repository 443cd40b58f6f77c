"""Every setting of every kind of configuration, for tests of all of them."""

import typing
from typing import Any, NamedTuple

from pydantic import BaseModel

from sail_jax.bandit.config import Landscape, SampleComplexity
from sail_jax.config import Settings
from sail_jax.control.config import ControlRun
from sail_jax.language.config import LanguageRun
from sail_jax.language.quickstart.config import QuickstartRun
from sail_jax.language.reward.stage.config import RewardRun
from sail_jax.language.sft.config import SftRun

MODELS = (ControlRun, LanguageRun, SftRun, RewardRun, QuickstartRun, Landscape, SampleComplexity)


class Setting(NamedTuple):
    """A setting that is no section."""

    model: type[Settings]
    keys: tuple[str, ...]
    kinds: frozenset[type]
    """int, float, bool, str and so on: what it can be, or what its items can be."""
    many: bool
    """Whether it can have several items."""

    @property
    def key(self) -> str:
        return '.'.join(self.keys)

    def data(self, value: Any) -> dict[str, Any]:
        """A file's mapping with it alone."""
        for key in reversed(self.keys):
            value = {key: value}
        return value

    def problems(self, value: Any) -> list[str]:
        """What validation says of the value, without what it says of other keys."""
        try:
            self.model.model_validate(self.data(value))
        except ValueError as error:
            depth = len(self.keys)
            return [x['msg'] for x in error.errors() if x['loc'][:depth] == self.keys]
        return []


def settings(model: type[BaseModel], root: type[Settings] | None = None, above=()):
    """All of them."""
    for name, field in model.model_fields.items():
        kinds, many = _kinds(field.annotation)
        sections = [kind for kind in kinds if issubclass(kind, BaseModel)]
        for section in sections:
            yield from settings(section, root or model, (*above, name))
        if not sections:
            yield Setting(root or model, (*above, name), frozenset(kinds), many)


def _kinds(annotation: Any) -> tuple[set[type], bool]:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return {annotation} - {type(None)}, False
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return {type(value) for value in arguments}, False
    if origin is typing.Annotated:
        arguments = arguments[:1]
    found = [_kinds(argument) for argument in arguments if argument is not Ellipsis]
    kinds = set().union(*(kinds for kinds, _ in found))
    return kinds, origin is tuple or any(many for _, many in found)


ALL = [setting for model in MODELS for setting in settings(model)]
