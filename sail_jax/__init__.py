"""SAIL-RevKL: online alignment of policies from preferences, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

from sail_jax import forked  # noqa: F401 - from the first import on.
from sail_jax.errors import Interrupted, TrainingFailed, UserError, for_python

if TYPE_CHECKING:
    from sail_jax.core.labellers import LABELLERS
    from sail_jax.core.pair_losses import PAIR_LOSSES
    from sail_jax.episode import Episode
    from sail_jax.kind import Kind
    from sail_jax.language.reward.protocols import Judge, Reward
    from sail_jax.plots import plot
    from sail_jax.runs import evaluate, load, open_run, train
    from sail_jax.saved import (
        evaluate_reward,
        export,
        export_labels,
        export_reward,
        generate,
        load_policy,
        render,
    )
    from sail_jax.training.result import Result
    from sail_jax.workloads import register

__all__ = [
    'LABELLERS',
    'PAIR_LOSSES',
    'Episode',
    'Interrupted',
    'Judge',
    'Kind',
    'Result',
    'Reward',
    'TrainingFailed',
    'UserError',
    'evaluate',
    'evaluate_reward',
    'export',
    'export_labels',
    'export_reward',
    'generate',
    'load',
    'load_policy',
    'open_run',
    'plot',
    'register',
    'render',
    'train',
]

MODULES = {
    'LABELLERS': 'sail_jax.core.labellers',
    'PAIR_LOSSES': 'sail_jax.core.pair_losses',
    'Episode': 'sail_jax.episode',
    'Judge': 'sail_jax.language.reward.protocols',
    'Kind': 'sail_jax.kind',
    'Result': 'sail_jax.training.result',
    'Reward': 'sail_jax.language.reward.protocols',
    'evaluate_reward': 'sail_jax.saved',
    'export': 'sail_jax.saved',
    'export_labels': 'sail_jax.saved',
    'export_reward': 'sail_jax.saved',
    'generate': 'sail_jax.saved',
    'load_policy': 'sail_jax.saved',
    'plot': 'sail_jax.plots',
    'register': 'sail_jax.workloads',
    'render': 'sail_jax.saved',
}
"""Where what is not in `runs` comes from."""


def __getattr__(name: str) -> Any:
    """The rest, once it is asked for: JAX and Brax take seconds, which a refusal need not cost."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(importlib.import_module(MODULES.get(name, 'sail_jax.runs')), name)
    is_function = callable(value) and not isinstance(value, type)
    return for_python(value) if is_function else value


def __dir__() -> list[str]:
    """What there is, whether it was asked for before or not: for completion in a notebook."""
    return sorted({*globals(), *__all__})
