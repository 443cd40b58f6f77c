"""An accelerator of this host that JAX does not use: mostly an extra that was not installed."""

import logging
import os
from typing import NamedTuple

import jax

log = logging.getLogger(__name__)


class Accelerator(NamedTuple):
    """A kind of accelerator, as the system shows it."""

    name: str
    files: tuple[str, ...]
    """Devices of the system; any of them is one."""
    extra: str
    """Of sail-jax, that has its compiler."""


KINDS = (
    Accelerator('an NVIDIA GPU', ('/dev/nvidia0', '/dev/dxg'), 'cuda12'),
    Accelerator('a TPU', ('/dev/accel0', '/dev/vfio/0'), 'tpu'),
)


def idle() -> str | None:
    """A line on the accelerator that JAX does not use; None where there is none, or where
    JAX_PLATFORMS says that it should be so. Starts JAX."""
    if jax.default_backend() != 'cpu' or os.environ.get('JAX_PLATFORMS'):
        return None
    for kind in KINDS:
        if there := [file for file in kind.files if os.path.exists(file)]:
            return (
                f'{kind.name} of this host ({there[0]}) is idle, JAX computes on the CPU: install '
                f"its compiler, pip install 'sail-jax[{kind.extra}]', or say that it is meant, "
                'JAX_PLATFORMS=cpu'
            )
    return None


def warn_if_idle() -> None:
    """Says it, of every process that trains."""
    if line := idle():
        log.warning(line)
