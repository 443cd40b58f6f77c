"""SAIL-RevKL: online alignment of policies from preferences, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

from sail_jax.errors import Interrupted, TrainingFailed, UserError, for_python

if TYPE_CHECKING:
    from sail_jax.runs import evaluate, load, open_run, train
    from sail_jax.training.result import Result

__all__ = [
    'Interrupted',
    'Result',
    'TrainingFailed',
    'UserError',
    'evaluate',
    'load',
    'open_run',
    'train',
]


def __getattr__(name: str) -> Any:
    """The rest, once it is asked for: JAX and Brax take seconds, which a refusal need not cost."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    if name == 'Result':
        return importlib.import_module('sail_jax.training.result').Result
    return for_python(getattr(importlib.import_module('sail_jax.runs'), name))
