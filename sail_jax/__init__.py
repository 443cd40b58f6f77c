"""SAIL-RevKL: online alignment of policies from preferences, in JAX."""

from sail_jax.control import compat as compat  # Before anything else imports Brax.
from sail_jax.errors import Interrupted, TrainingFailed, UserError
from sail_jax.runs import evaluate, load, open_run, train
from sail_jax.trainer import Result

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
