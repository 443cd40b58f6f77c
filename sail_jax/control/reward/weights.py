"""A fitted reward as a file of its own: safetensors, by the names of the network's parameters."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sail_jax import files
from sail_jax.control.reward.config import RewardEnsemble
from sail_jax.errors import UserError, one_line

FORMAT = 'sail_jax reward ensemble'


def save(path: Path, params: Any, settings: RewardEnsemble, environment: str) -> None:
    """Writes all members of an ensemble.

    Args:
      environment: whose observations it takes, for whoever finds the file.

    Raises:
      TrainingFailed: it cannot be written.
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
        save_file(contiguous, path, metadata)


def load(path: Path, abstract: Any) -> Any:
    """Reads the members of a file of `save`, on the host.

    Args:
      abstract: shapes of the parameters that are needed.

    Raises:
      UserError: it cannot be read, is something else, or of other shapes.
    """
    metadata, tensors = _read(path)
    needed = traverse_util.flatten_dict(abstract, sep='.')
    shapes = lambda tree: {name: tuple(value.shape) for name, value in tree.items()}
    ours, theirs = shapes(needed), shapes(tensors)
    if ours != theirs:
        name = next(n for n in sorted(ours | theirs) if ours.get(n) != theirs.get(n))
        raise UserError(
            f'{path}: a reward of {metadata.get("environment")}: {name} is {theirs.get(name)}; '
            f'this environment, reward.members and reward.hidden need {ours.get(name)}'
        )
    if bad := [name for name, value in tensors.items() if not np.isfinite(value).all()]:
        raise UserError(f'{path}: {bad[0]}: NaN or infinity')
    return traverse_util.unflatten_dict(tensors, sep='.')


def settings(path: Path) -> RewardEnsemble:
    """The sizes of the ensemble in a file of `save`.

    Raises:
      UserError: as of `load`.
    """
    metadata, _ = _read(path)
    try:
        sizes = {key: json.loads(metadata[key]) for key in ('members', 'hidden')}
        return RewardEnsemble.model_validate(sizes)
    except (ValueError, KeyError) as error:  # Pydantic's is a ValueError.
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
