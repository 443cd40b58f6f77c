"""A fitted reward as a file of its own: safetensors, by the names of the network's parameters."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util
from safetensors import SafetensorError, safe_open

from sail_jax import files
from sail_jax.control.reward.config import RewardEnsemble
from sail_jax.errors import UserError, one_line
from sail_jax.training import hosts

FORMAT = 'sail_jax reward ensemble'


def save(path: Path, params: Any, settings: RewardEnsemble, environment: str) -> None:
    """Writes all members of an ensemble.

    Args:
      environment: whose observations it takes, for whoever finds the file.

    Raises:
      UserError, TrainingFailed: it cannot be written; no part of it stays.
    """
    tensors = traverse_util.flatten_dict(jax.device_get(params), sep='.')
    metadata = {
        'format': FORMAT,
        'members': json.dumps(settings.members),
        'hidden': json.dumps(settings.hidden),
        'environment': environment,
    }
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # Not by `save_file`, which puts a new file in the place of whatever is there, a device too.
    files.write(path, safetensors.numpy.save(contiguous, metadata))


def load(path: Path, abstract: Any, environment: str) -> Any:
    """Reads the members of a file of `save`, on the host.

    Args:
      abstract: shapes and types of the parameters that are needed.
      environment: whose observations they will see; see `say_if_other`.

    Raises:
      UserError: it cannot be read, is something else, or of other shapes.
    """
    metadata, tensors = _read(path)
    needed: dict[Any, Any] = traverse_util.flatten_dict(abstract, sep='.')
    shapes = lambda tree: {name: tuple(value.shape) for name, value in tree.items()}
    ours, theirs = shapes(needed), shapes(tensors)
    if ours != theirs:
        name = next(n for n in sorted(ours | theirs) if ours.get(n) != theirs.get(n))
        raise UserError(
            f'{path}: a reward of {metadata.get("environment")}: {name} is {theirs.get(name)}; '
            f'this environment, reward.members and reward.hidden need {ours.get(name)}'
        )
    with np.errstate(over='ignore'):  # Infinity, which is refused.
        tensors = {name: x.astype(needed[name].dtype) for name, x in tensors.items()}
    if bad := [name for name, value in tensors.items() if not np.isfinite(value).all()]:
        raise UserError(f'{path}: {bad[0]}: NaN or infinity')
    say_if_other(path, metadata.get('environment'), environment)
    return traverse_util.unflatten_dict(tensors, sep='.')


def say_if_other(path: Path, environment: str | None, used_on: str) -> None:
    """Says that a reward is used on another environment than it was learned on, whose sizes may be
    the same."""
    if environment != used_on:
        hosts.say(f'{path}: a reward of {environment}, used on {used_on}')


def settings(path: Path) -> RewardEnsemble:
    """The sizes of the ensemble in a file of `save`.

    Raises:
      UserError: as of `load`.
    """
    metadata, _ = _read(path)
    try:
        sizes = {key: json.loads(metadata[key]) for key in ('members', 'hidden')}
        return RewardEnsemble.model_validate(sizes)
    except (ValueError, KeyError, RecursionError) as error:  # Pydantic's is a ValueError.
        raise UserError(f'{path}: its sizes cannot be read ({one_line(error)})') from None


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors."""
    files.check(path)
    try:
        with safe_open(path, 'numpy') as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f'{path}: cannot be read ({one_line(error)})') from None
    if metadata.get('format') != FORMAT:
        raise UserError(f'{path}: not a reward that `sail-jax reward export` wrote')
    return metadata, tensors
