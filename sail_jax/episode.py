"""What `render` gives back: an episode that a browser, or a notebook's cell, shows."""

import dataclasses
import html
import importlib.util
from collections.abc import Callable
from pathlib import Path

from sail_jax import files
from sail_jax.errors import UserError

HEIGHT = 480
"""Pixels of a notebook's output."""
FILMS = {'.mp4': 'av', '.gif': 'PIL'}
"""What a film's name ends in, in any case, and the package that writes it."""
PAGES = ('', '.html', '.htm')
"""What a page's name ends in."""


def check(path: str | Path) -> None:
    """Refuses what nothing here could write, before there is an episode.

    Raises:
      UserError: naming what is missing, or what a name may end in.
    """
    suffix = files.named(path, 'out').suffix.lower()
    if suffix not in FILMS and suffix not in PAGES:
        raise UserError(f'{path}: a page ends in .html, a film in .mp4 or .gif')
    package = FILMS.get(suffix)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"{path}: needs {package}; pip install 'sail-jax[video]'")


@dataclasses.dataclass(frozen=True)
class Episode:
    """An episode of a policy as a web page that needs nothing else, or as a film."""

    page: str = dataclasses.field(repr=False)
    """HTML."""
    episode_return: float
    """Under the true reward."""
    length: int
    """In env steps."""
    film: Callable[[Path], None] = dataclasses.field(repr=False, compare=False)
    """Writes it as a film, `.mp4` or `.gif`."""

    def write(self, path: str | Path) -> None:
        """Writes the page, or a film where the name ends in `.mp4` or `.gif`; the directory is
        made.

        Raises:
          UserError: the file cannot be written, or nothing here can draw a film.
        """
        path = Path(path)
        check(path)
        try:
            files.make_directory(path.parent)
            if path.suffix.lower() in FILMS:
                self.film(path)
                return
        except OSError as error:
            raise UserError(f'{path}: {error.strerror or error}') from None
        files.write(path, self.page.encode())

    def _repr_html_(self) -> str:
        """The page in a frame of its own, whose script reaches nothing of the notebook."""
        return (
            f'<iframe srcdoc="{html.escape(self.page)}" sandbox="allow-scripts" '
            f'style="width: 100%; height: {HEIGHT}px; border: 0"></iframe>'
        )
