"""Policies out of Brax's PPO checkpoints: used as Brax uses them, or refused by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from brax.training import types
from brax.training.acme.running_statistics import RunningStatisticsState
from brax.training.agents.ppo import checkpoint as ppo_checkpoint
from pydantic import BaseModel, ConfigDict

from sail_jax import files
from sail_jax.errors import UserError, one_line
from sail_jax.training import quiet

CONFIG = 'ppo_network_config.json'
MAX_CONFIG = 2**20
"""Bytes of it."""


class NetworkFactory(BaseModel):
    """Arguments of Brax's `make_ppo_networks`, its defaults where they matter.

    `Any` is what the actions of a tanh-normal policy do not depend on: how networks were
    initialised, what other distributions have, the value function. Sizes of layers stand in the
    parameters. An argument that is not here may change the policy.
    """

    model_config = ConfigDict(extra='forbid', frozen=True)

    distribution_type: Literal['tanh_normal'] = 'tanh_normal'
    activation: str = 'swish'
    policy_obs_key: str = 'state'
    policy_hidden_layer_sizes: Any = None
    value_hidden_layer_sizes: Any = None
    value_obs_key: Any = None
    noise_std_type: Any = None
    init_noise_std: Any = None
    state_dependent_std: Any = None
    policy_network_kernel_init_fn: Any = None
    policy_network_kernel_init_kwargs: Any = None
    value_network_kernel_init_fn: Any = None
    value_network_kernel_init_kwargs: Any = None
    mean_clip_scale: Any = None
    mean_kernel_init_fn: Any = None
    mean_kernel_init_kwargs: Any = None
    use_distributional_critic: Any = None
    num_quantiles: Any = None


class BraxSettings(BaseModel):
    """What Brax writes beside the parameters."""

    model_config = ConfigDict(extra='forbid', frozen=True)

    network_factory_kwargs: NetworkFactory
    normalize_observations: Literal[True]
    observation_size: Any = None
    action_size: Any = None


def read_settings(path: Path, observation: Any) -> NetworkFactory:
    """The settings of a checkpoint's policy.

    Args:
      path: of the checkpoint.
      observation: of the environment that the policy is for: an array's shape, or a dict of them.

    Raises:
      UserError: there is no checkpoint, or its policy is not one of ours.
    """
    try:
        if not (path / CONFIG).exists():
            raise UserError(f'reference.path: {path}: {_what_it_is(path)}')
    except OSError as error:
        raise UserError(f'reference.path: {path}: {error.strerror}') from None
    content = files.read(path / CONFIG, MAX_CONFIG)
    try:
        settings = BraxSettings.model_validate_json(content).network_factory_kwargs
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = '.'.join(map(str, first['loc']))
        if first['type'] == 'extra_forbidden':
            what = f'{key}: {first["input"]!r:.80}: may change the policy in a way unknown here'
        elif key:
            what = f'{key}: {first["msg"].removeprefix("Input ")}, got {first["input"]!r:.80}'
        else:
            what = one_line(first['msg'])
        raise UserError(f'reference.path: {path / CONFIG}: {what}') from None
    if isinstance(observation, Mapping) and settings.policy_obs_key != 'state':
        raise UserError(
            f'reference.path: {path / CONFIG}: network_factory_kwargs.policy_obs_key: '
            f'{settings.policy_obs_key!r:.80}; policies here read the observation "state"'
        )
    return settings


def read_policy(path: Path) -> tuple[RunningStatisticsState, Any]:
    """The observation normaliser and the policy's parameters, float32.

    The normaliser goes on as Brax's does in memory. Its mode is not in the checkpoint, and what
    `summed_variance` means depends on it: of `ema` it is the variance itself, of `welford` the
    variance times the count. The two are one function of what was seen, so that it is made anew of
    what both have, the standard deviation.

    Raises:
      UserError: damaged, a pipe or device in it, or something in it is not finite.
    """
    files.require_regular(path)
    quiet.silence_failed_saves()  # And what is left of a failed reading.
    try:
        # Orbax takes no relative path.
        fixed, policy = ppo_checkpoint.load(str(path.absolute()))[:2]
        seen, std_eps = _number(fixed.count), _number(fixed.std_eps)
        summed = lambda std: seen * np.maximum(np.float64(std) ** 2 - std_eps, 0)
        mean, std, summed_variance, policy = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float32),
            (fixed.mean, fixed.std, jax.tree.map(summed, fixed.std), policy),
        )
    except Exception as error:
        # Brax and Orbax raise whatever the damage happens to hit.
        reason = one_line(error)
        raise UserError(
            f'reference.path: {path}: no readable Brax PPO checkpoint ({reason})'
        ) from None
    checked = {'mean': mean, 'std': std, 'policy': policy, 'count': seen, 'std_eps': std_eps}
    for key, leaf in jax.tree_util.tree_leaves_with_path(checked):
        if not np.isfinite(leaf).all():
            where = jax.tree_util.keystr(key, simple=True, separator='.')
            raise UserError(f'reference.path: {path}: {where} is not finite')
    if not all((leaf > 0).all() for leaf in jax.tree.leaves(std)):
        raise UserError(f'reference.path: {path}: std is not positive')
    if not 0 <= seen < 2**64:
        raise UserError(f'reference.path: {path}: count is {seen:g}; expected 0 to 2^64')
    uint64: Any = types.UInt64
    count = uint64(hi=int(seen) >> 32, lo=int(seen) & (2**32 - 1))
    return RunningStatisticsState(
        count=count, mean=mean, std=std, summed_variance=summed_variance, std_eps=std_eps
    ), policy


def _number(x: Any) -> float:
    """Counts are in two halves, or in older checkpoints one number."""
    return float(int(x)) if isinstance(x, types.UInt64) else float(np.asarray(x).item())


def _what_it_is(path: Path) -> str:
    """What stands there instead of a checkpoint, and what to do about it."""
    if not path.exists():
        return 'no such directory'
    checkpoints = sorted(file.parent for file in path.glob(f'*/{CONFIG}'))
    if checkpoints:
        return (
            f'holds {len(checkpoints)} Brax PPO checkpoints and is none itself; '
            f'name one of them, the last is {checkpoints[-1]}'
        )
    if (path.parent / CONFIG).exists():
        return f'a part of a Brax PPO checkpoint; name {path.parent}'
    if (path / 'config.yaml').exists():
        return 'no Brax PPO checkpoint, but a run; did you mean reference.source: run?'
    if other := next(path.glob('*_network_config.json'), None):
        return f'no Brax PPO checkpoint, but another one ({other.name})'
    return f'no Brax PPO checkpoint: it has no {CONFIG}'
