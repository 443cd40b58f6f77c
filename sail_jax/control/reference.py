"""Where the policy that training starts from, and is kept close to, comes from."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from brax.envs.base import Env
from brax.training import networks as brax_networks
from brax.training.agents.ppo import networks as ppo_networks
from brax.training.agents.ppo import train as ppo
from brax.training.agents.ppo.networks import PPONetworks

from sail_jax import configfile, sweep
from sail_jax.control import brax_checkpoint, envs
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun, Environment
from sail_jax.core import precision
from sail_jax.core.keys import START, stream
from sail_jax.core.types import Policy
from sail_jax.errors import UserError
from sail_jax.training import checkpoint

PPO = {
    'num_envs': 256,
    'batch_size': 128,
    'num_minibatches': 8,
    'num_updates_per_batch': 4,
    'unroll_length': 20,
    'learning_rate': 3e-4,
    'entropy_cost': 1e-3,
    'discounting': 0.97,
    'reward_scaling': 1.0,
    'normalize_observations': True,
}
"""Settings of `ppo.train` that suit most of Brax's environments."""
OURS = (
    'num_timesteps',
    'num_evals',
    'num_resets_per_eval',
    'episode_length',
    'action_repeat',
    'network_factory',
)
"""Of Playground's settings those that the run says, or that nobody needs."""


def load(env: Env, networks: PPONetworks, run: ControlRun, seed: int) -> Policy:
    """The starting policy of a seed, as `reference.source` says.

    Raises:
      UserError: if the file is missing, damaged, or of another shape.
    """
    fresh = control_policy.init(stream(seed, START), env, networks, run)
    match run.reference.source:
        case 'init':
            return fresh
        case 'run':
            statistics, policy = _from_run(env, run)
        case 'brax':
            statistics, policy = _from_brax(env, run)
        case 'ppo':
            statistics, policy = train_ppo(env, run, run.reference.ppo_env_steps, seed)
    _check_shapes(fresh, statistics, policy, run.reference.path)
    return Policy(params={**fresh.params, 'policy': policy}, statistics=statistics)


def _from_run(env: Env, run: ControlRun) -> tuple[Any, Any]:
    path = run.reference.path
    assert path is not None  # Or the configuration is refused.
    data, node = configfile.read_yaml(path / 'config.yaml')
    other = configfile.validate(ControlRun, data, path / 'config.yaml', node)
    sweep.require_alone(other, path)
    _require_same(path, 'policy.activation', other.policy.activation, run.policy.activation)
    _require_same(path, 'policy.hidden', other.policy.hidden, run.policy.hidden)
    _require_same(path, 'env.name', other.env.name, run.env.name)
    abstract = jax.eval_shape(
        lambda key: control_policy.init(key, env, control_policy.make_networks(env, other), other),
        jax.random.key(0),
    )
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = checkpoint.abstract_like(abstract, jax.tree.map(lambda _: device, abstract))
    restored = checkpoint.restore_policy(path / 'checkpoints', abstract, run.reference.best)
    return restored.statistics, restored.params['policy']


def _from_brax(env: Env, run: ControlRun) -> tuple[Any, Any]:
    path = run.reference.path
    assert path is not None  # Or the configuration is refused.
    settings = brax_checkpoint.read_settings(path, control_policy.observation_shape(env))
    functions = brax_networks.ACTIVATION  # Some have two names.
    if functions.get(settings.activation) is not functions[run.policy.activation]:
        _require_same(path, 'policy.activation', settings.activation, run.policy.activation)
    return brax_checkpoint.read_policy(path)


def suited(env: Environment) -> dict[str, Any]:
    """Settings of `ppo.train` that are known to suit an environment: of Playground's those that it
    was tuned with."""
    if env.backend != 'playground':
        return PPO
    from mujoco_playground import dm_control_suite, locomotion, manipulation
    from mujoco_playground.config import (
        dm_control_suite_params,
        locomotion_params,
        manipulation_params,
    )

    suites = {
        dm_control_suite_params: dm_control_suite,
        locomotion_params: locomotion,
        manipulation_params: manipulation,
    }
    tuned = next(tuned for tuned, suite in suites.items() if env.name in suite.ALL_ENVS)
    settings = tuned.brax_ppo_config(env.name).to_dict()
    return {key: x for key, x in settings.items() if key not in OURS}


class Watch(NamedTuple):
    """Who looks on while PPO trains."""

    note: Callable[[int, tuple[Any, Any]], None]
    """Takes the env steps so far, and what `train_ppo` would return now."""
    times: int
    """How often, evenly spaced."""


def train_ppo(
    env: Env,
    run: ControlRun,
    env_steps: int,
    seed: int,
    watch: Watch | None = None,
    **settings: Any,
) -> tuple[Any, Any]:
    """Brax PPO on the true reward.

    Args:
      run: says the environment's kind, the episode's length and the networks.
      env_steps: how long, rounded up to whole batches of PPO.
      settings: arguments of `ppo.train` in the place of those that are known to suit.

    Returns:
      The observation normaliser and the policy's parameters, on the host: Brax leaves them on the
      first device, where no program for several takes them.
    """

    def factory(*args: Any, **kwargs: Any) -> PPONetworks:
        return ppo_networks.make_ppo_networks(
            *args, **kwargs, **control_policy.network_factory(run)
        )

    wrap = None
    bases = type(envs.bare(env)).__mro__
    if any(base.__module__.startswith('mujoco_playground') for base in bases):
        from mujoco_playground import wrapper

        wrap = wrapper.wrap_for_brax_training

    def note(step: int, _: Any, params: Any) -> None:
        if watch is not None:
            watch.note(step, jax.device_get(params[:2]))

    settings = suited(run.env) | settings
    train = precision.traced_at(precision.resolved(run))(ppo.train)
    _, params, _ = train(
        environment=env,
        wrap_env_fn=wrap,
        num_timesteps=env_steps,
        episode_length=run.env.episode_length,
        max_devices_per_host=math.gcd(settings['num_envs'], jax.local_device_count()),
        network_factory=factory,
        seed=seed,
        num_evals=(watch.times if watch else 0) + 1,
        run_evals=False,
        policy_params_fn=note,
        **settings,
    )
    return jax.device_get(params[:2])


def _require_same(path: Path, key: str, loaded: Any, needed: Any) -> None:
    if loaded != needed:
        raise UserError(f'reference.path: {path}: has {key} {loaded}, this run {needed}')


def _check_shapes(fresh: Policy, statistics: Any, policy: Any, path: Path | None) -> None:
    shapes = lambda tree: {
        jax.tree_util.keystr(key): jnp.shape(leaf)
        for key, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    # Of the normaliser its mean, its standard deviation and what that is updated by.
    normaliser = lambda x: (x.mean, x.std, x.summed_variance)
    needed = shapes((fresh.params['policy'], *normaliser(fresh.statistics)))
    loaded = shapes((policy, *normaliser(statistics)))
    if needed != loaded:
        key = next(key for key in sorted(needed | loaded) if needed.get(key) != loaded.get(key))
        raise UserError(
            f'reference.path: {path}: policy of another shape: {key} is {loaded.get(key)}, '
            f'this environment and policy.hidden need {needed.get(key)}'
        )
