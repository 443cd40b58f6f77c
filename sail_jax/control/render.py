"""One episode as a web page (Brax's viewer), and policies for Brax."""

from pathlib import Path

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from brax.envs.base import Env, PipelineEnv
from brax.io import html
from brax.training.agents.ppo import checkpoint as ppo_checkpoint
from brax.training.agents.ppo import networks as ppo_networks

from sail_jax import files
from sail_jax.control import contract, envs
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun
from sail_jax.errors import UserError
from sail_jax.update import Policy


def render(run: ControlRun, policy: Policy, path: Path, seed: int, stochastic: bool) -> float:
    """Writes an episode as HTML and returns its return under the true reward.

    Raises:
      UserError: the environment is not one of Brax's, or the file cannot be written.
    """
    env = envs.make(run.env)
    if not isinstance(env, PipelineEnv):
        raise UserError(f'render: only Brax environments have this viewer, not {run.env.backend}')
    networks = control_policy.make_networks(env, run)
    reset_key, noise_key = jax.random.split(jax.random.key(seed))

    def step(carry, t):
        state, done = carry
        dist = control_policy.actions(networks, policy, state.obs)
        noise = jax.random.normal(jax.random.fold_in(noise_key, t), dist.loc.shape)
        raw_action = dist.loc + dist.scale * noise * stochastic
        new = env.step(state, networks.parametric_action_distribution.postprocess(raw_action))
        return (new, done | (new.done > 0)), (state.pipeline_state, new.reward, done)

    @jax.jit
    def episode(key):
        start = (env.reset(jax.random.key_data(key)), jnp.zeros((), bool))
        return jax.lax.scan(step, start, jnp.arange(run.env.episode_length))[1]

    frames, reward, done = jax.device_get(episode(reset_key))
    length = int((~done).sum())
    states = [jax.tree.map(lambda x, t=t: x[t], frames) for t in range(length)]
    try:
        html.save(str(path), env.sys.tree_replace({'opt.timestep': env.dt}), states)
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from None
    return float(reward[:length].sum())


def export_brax(run: ControlRun, policy: Policy, path: Path, env: Env | None = None) -> Path:
    """Writes the policy as a Brax PPO checkpoint, for `ppo.checkpoint.load_policy`.

    Args:
      env: the environment that `train` was given, if it was.

    Returns:
      The checkpoint's directory.

    Raises:
      UserError: the directory exists, or there can be none.
      TrainingFailed: it cannot be written.
    """
    path = path.absolute()  # Orbax takes no other.
    env = envs.make(run.env) if env is None else contract.sound(env)
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
    params = policy.fixed, policy.params['policy'], value
    with files.writing(path), files.new_directory(path) as directory:
        ppo_checkpoint.save(directory, 0, params, settings)
    return path / f'{0:012d}'
