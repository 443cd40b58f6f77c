"""A policy as a Brax PPO checkpoint."""

from pathlib import Path

import sail_jax.control.compat  # noqa: F401

import jax
from brax.envs.base import Env
from brax.training.agents.ppo import checkpoint as ppo_checkpoint
from brax.training.agents.ppo import networks as ppo_networks

from sail_jax import files
from sail_jax.control import envs
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun
from sail_jax.core.types import Policy
from sail_jax.training import quiet


def export_brax(run: ControlRun, policy: Policy, path: Path, env: Env | None = None) -> Path:
    """Writes the policy as a Brax PPO checkpoint, for `ppo.checkpoint.load_policy`.

    Args:
      env: the environment that `train` was given, if it was.

    Returns:
      The checkpoint's directory.

    Raises:
      UserError: the directory exists, or there can be none; see `files.check_checkpoint_path`.
      TrainingFailed: it cannot be written.
    """
    path = path.absolute()  # Orbax takes no other.
    files.check_checkpoint_path(path)
    env = envs.make(run.env, env)
    networks = control_policy.make_networks(env, run)
    value = policy.params.get('value') or networks.value_network.init(jax.random.key(0))

    shape = control_policy.observation_shape(env)
    settings = ppo_checkpoint.network_config(
        observation_size=shape[0] if isinstance(shape, tuple) else shape,
        action_size=env.action_size,
        normalize_observations=True,
        network_factory=ppo_networks.make_ppo_networks,
    )
    settings.network_factory_kwargs = control_policy.network_factory(run)
    params = policy.statistics, policy.params['policy'], value
    with files.writing(path), files.new_directory(path) as directory:
        quiet.saving(lambda: ppo_checkpoint.save(str(directory), 0, params, settings))
    return path / f'{0:012d}'
