"""SAIL-RevKL: online alignment of policies from preferences, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

from sail_jax.errors import Interrupted, TrainingFailed, UserError, for_python

if TYPE_CHECKING:
    from sail_jax.core.labellers import LABELLERS
    from sail_jax.core.pair_losses import PAIR_LOSSES
    from sail_jax.kind import Kind
    from sail_jax.language.reward.protocols import Judge, Reward
    from sail_jax.runs import evaluate, load, open_run, train
    from sail_jax.training.result import Result
    from sail_jax.workloads import register

__all__ = [
    'LABELLERS',
    'PAIR_LOSSES',
    'Interrupted',
    'Judge',
    'Kind',
    'Result',
    'Reward',
    'TrainingFailed',
    'UserError',
    'evaluate',
    'load',
    'open_run',
    'register',
    'train',
]

MODULES = {
    'LABELLERS': 'sail_jax.core.labellers',
    'PAIR_LOSSES': 'sail_jax.core.pair_losses',
    'Judge': 'sail_jax.language.reward.protocols',
    'Kind': 'sail_jax.kind',
    'Result': 'sail_jax.training.result',
    'Reward': 'sail_jax.language.reward.protocols',
    'register': 'sail_jax.workloads',
}
"""Where what is not in `runs` comes from."""


def __getattr__(name: str) -> Any:
    """The rest, once it is asked for: JAX and Brax take seconds, which a refusal need not cost."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    found = getattr(importlib.import_module(MODULES.get(name, 'sail_jax.runs')), name)
    is_function = callable(found) and not isinstance(found, type)
    return for_python(found) if is_function else found
