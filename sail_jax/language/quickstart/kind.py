"""The language quickstart as a workload of the registry."""

from pathlib import Path

from sail_jax.kind import Kind, Study, late
from sail_jax.language.quickstart.config import METHODS, QuickstartRun, check


def next_commands(run_dir: Path) -> tuple[tuple[str, ...], ...]:
    """The methods side by side, and what the last of them, SAIL-RevKL, has learnt to say."""
    *others, last = (str(run_dir / method) for method in METHODS)
    return (
        ('plot', *others, last),
        ('generate', last, 'Restaurant review: the soup was'),
        ('evaluate', last),
    )


QUICKSTART = Kind(
    name='language-quickstart',
    trains='a small language model, then aligns it by three methods',
    settings=QuickstartRun,
    check=check,
    study=Study(
        train=late('sail_jax.language.quickstart.study:run'),
        report=late('sail_jax.language.quickstart.study:report'),
        next_commands=next_commands,
    ),
)
