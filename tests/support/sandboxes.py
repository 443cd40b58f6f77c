"""Questions to the process of tokenisers and templates, and the lines that refuse them."""

from collections.abc import Callable, Iterator
from typing import Any

from sail_jax.errors import UserError
from sail_jax.language.data import sandbox


def bounded(monkeypatch, seconds: float) -> Iterator[None]:
    """Bounds that a test can wait for: the same code with other numbers."""
    monkeypatch.setattr(sandbox, 'LIMITS', sandbox.Limits(memory=2**29, seconds=seconds))
    sandbox.stop()
    yield
    sandbox.stop()


def ask(lines: list[str], question: Callable, *arguments: Any, longest: int) -> Any:
    """The answer; None where it is refused, and the line that says so goes to `lines`."""
    try:
        return question(*arguments)
    except UserError as error:
        line = str(error)
    assert '\n' not in line
    assert len(line) <= longest
    lines.append(line)
    return None
