"""What `render` gives back: an episode that a browser, or a notebook's cell, shows."""

import dataclasses
import html
from pathlib import Path

from sail_jax import files
from sail_jax.errors import UserError

HEIGHT = 480
"""Pixels of a notebook's output."""


@dataclasses.dataclass(frozen=True)
class Episode:
    """An episode of a policy as a web page that needs nothing else."""

    page: str = dataclasses.field(repr=False)
    """HTML."""
    episode_return: float
    """Under the true reward."""
    length: int
    """In env steps."""

    def write(self, path: str | Path) -> None:
        """Writes the page; the directory is made.

        Raises:
          UserError: the file cannot be written.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f'{path}: {error.strerror}') from None
        files.write(path, self.page.encode())

    def _repr_html_(self) -> str:
        """The page in a frame of its own, whose script reaches nothing of the notebook."""
        return (
            f'<iframe srcdoc="{html.escape(self.page)}" sandbox="allow-scripts" '
            f'style="width: 100%; height: {HEIGHT}px; border: 0"></iframe>'
        )
