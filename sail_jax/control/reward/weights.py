"""A fitted reward as a file of its own: safetensors, by the names of the network's parameters."""

import json
from pathlib import Path
from typing import Any, NamedTuple

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


class FittedReward(NamedTuple):
    """An ensemble that was fitted, and what it takes to use it."""

    params: Any
    """On the host."""
    sizes: RewardEnsemble
    """Of its settings those that its shapes depend on, at the least."""
    environment: str
    """Whose observations it takes."""
    source: Path
    """A file, or a run."""

    def write(self, path: Path) -> Path:
        """Writes all members to a file.

        Raises:
          UserError: it cannot be written; what is there stays as it is.
        """
        tensors = traverse_util.flatten_dict(jax.device_get(self.params), sep='.')
        metadata = {
            'format': FORMAT,
            'members': json.dumps(self.sizes.members),
            'hidden': json.dumps(self.sizes.hidden),
            'environment': self.environment,
        }
        contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        # Not by `save_file`, which puts a new file in the place of whatever is there, a device too.
        files.write(path, safetensors.numpy.save(contiguous, metadata))
        return path


def load(path: Path, abstract: Any, environment: str) -> Any:
    """The members in a file; arguments and errors as of `read` and `used`."""
    return used(read(path), abstract, environment)


def used(reward: FittedReward, abstract: Any, environment: str) -> Any:
    """The parameters, for observations of an environment.

    That it is another than the reward was learned on, whose sizes may be the same, is said.

    Args:
      abstract: shapes and types of the parameters that are needed.

    Raises:
      UserError: the reward's are of other shapes, or not finite.
    """
    tensors: dict[Any, Any] = traverse_util.flatten_dict(reward.params, sep='.')
    needed: dict[Any, Any] = traverse_util.flatten_dict(abstract, sep='.')
    shapes = lambda tree: {name: tuple(value.shape) for name, value in tree.items()}
    ours, theirs = shapes(needed), shapes(tensors)
    if ours != theirs:
        name = next(n for n in sorted(ours | theirs) if ours.get(n) != theirs.get(n))
        raise UserError(
            f'{reward.source}: a reward of {reward.environment}: {name} is {theirs.get(name)}; '
            f'this environment, reward.members and reward.hidden need {ours.get(name)}'
        )
    with np.errstate(over='ignore'):  # Infinity, which is refused.
        tensors = {name: x.astype(needed[name].dtype) for name, x in tensors.items()}
    if bad := [name for name, value in tensors.items() if not np.isfinite(value).all()]:
        raise UserError(f'{reward.source}: {bad[0]}: NaN or infinity')
    if reward.environment != environment:
        hosts.say(f'{reward.source}: a reward of {reward.environment}, used on {environment}')
    return traverse_util.unflatten_dict(tensors, sep='.')


def read(path: Path) -> FittedReward:
    """Reads a file that was written, on the host.

    Raises:
      UserError: it cannot be read, or is something else.
    """
    metadata, tensors = _read(path)
    try:
        sizes = {key: json.loads(metadata[key]) for key in ('members', 'hidden')}
        settings = RewardEnsemble.model_validate(sizes)
    except (ValueError, KeyError, RecursionError) as error:  # Pydantic's is a ValueError.
        raise UserError(f'{path}: its sizes cannot be read ({one_line(error)})') from None
    params = traverse_util.unflatten_dict(tensors, sep='.')
    return FittedReward(params, settings, metadata.get('environment', 'an unknown one'), path)


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
