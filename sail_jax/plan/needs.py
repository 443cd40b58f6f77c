"""What has to be installed for a target; asked before JAX is imported."""

import importlib.util

from sail_jax.errors import UserError
from sail_jax.plan.targets import Target

EXTRAS = {'tpu': 'tpu', 'cuda': 'cuda12'}
"""Of the package: what brings a platform's compiler."""
MODULES = {'tpu': ('libtpu',), 'cuda': ('jax_plugins.xla_cuda12', 'jax_plugins.xla_cuda13')}


def require(target: Target) -> None:
    """Refuses a target whose compiler is not here.

    Raises:
      UserError: says what to install.
    """
    platform = target.chip.platform
    if not any(map(_installed, MODULES[platform])):
        raise UserError(
            f'--on {target}: needs the compiler of that chip: '
            f"pip install 'sail-jax[{EXTRAS[platform]}]'"
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # Of the package that it would be in.
        return False
