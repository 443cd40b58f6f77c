"""Settings that another one makes useless are refused where they are set."""

from collections.abc import Set

from sail_jax.config import Section
from sail_jax.errors import UserError


def refuse(key: str, section: Section, by: str, names: Set[str] | None = None) -> None:
    """Refuses what would be without effect.

    Args:
      key: of the section.
      by: which setting it is that does not use them.
      names: of the section's settings that are not used; None is all.

    Raises:
      UserError: one of them is not as by default; naming it.
    """
    default = type(section)()
    for name in sorted(type(section).model_fields if names is None else names):
        if getattr(section, name) != getattr(default, name):
            raise UserError(f'{key}.{name}: not used by {by}')
