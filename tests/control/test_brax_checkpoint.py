"""Brax's PPO checkpoints: the actions that Brax's own `load_policy` gives, or a refusal by name."""

import functools
import inspect
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.envs.base import State
from brax.training import types
from brax.training.acme import running_statistics
from brax.training.agents.ppo import checkpoint as ppo_checkpoint
from brax.training.agents.ppo import networks as ppo_networks

import sail_jax
from sail_jax.control import brax_checkpoint, policy, reference
from sail_jax.control.config import ControlRun
from sail_jax.errors import UserError
from tests.support.toy import SETTINGS, Point

HIDDEN = (8, 8)


class Observed(Point):
    """A point that is observed twice: as it is, and turned by half a circle."""

    def reset(self, rng: jax.Array) -> State:
        return self._observe(super().reset(rng))

    def step(self, state: State, action: jax.Array) -> State:
        return self._observe(super().step(state.replace(obs=state.pipeline_state), action))

    def _observe(self, state: State) -> State:
        both = {'state': state.pipeline_state, 'privileged_state': -state.pipeline_state}
        return state.replace(obs=both)


def make_run(path, **settings):
    base = SETTINGS | {'policy': {'hidden': HIDDEN}}
    return ControlRun.model_validate(
        base | {'reference': {'source': 'brax', 'path': str(path)}} | settings
    )


def write(path, env=None, mode='welford', std_eps=0.0, count=None, updates=3, **arguments):
    """A checkpoint that Brax writes, of a policy as `ppo.train` has it in memory."""
    env = env or Point()
    arguments = {'policy_hidden_layer_sizes': HIDDEN, 'value_hidden_layer_sizes': (4,)} | arguments
    factory = functools.partial(ppo_networks.make_ppo_networks, **arguments)
    shape = policy.observation_shape(env)
    sizes = {name: size[0] for name, size in shape.items()} if isinstance(shape, dict) else shape[0]
    made = factory(sizes, env.action_size, running_statistics.normalize)
    example = env.reset(jax.random.PRNGKey(0)).obs
    normaliser = running_statistics.init_state(example, std_eps, mode)
    for update in range(updates):
        normaliser = running_statistics.update(normaliser, batch(example, update))
    # Before the first update a policy is all but the same for every observation.
    params = jax.tree.map(lambda x: x + 0.1, made.policy_network.init(jax.random.PRNGKey(1)))
    saved = normaliser if count is None else normaliser.replace(count=count)
    config = ppo_checkpoint.network_config(sizes, env.action_size, True, factory)
    value = made.value_network.init(jax.random.PRNGKey(2))
    ppo_checkpoint.save(path, 7, (saved, params, value), config)
    return path / f'{7:012d}', normaliser, params


def batch(example, seed):
    """Observations [5, 3, ...]; none is centred or of size 1."""
    draw = np.random.default_rng(seed).normal
    return jax.tree.map(lambda x: jnp.asarray(draw(2, 3, (5, 3, *x.shape)), jnp.float32), example)


def load(path, env=None, **settings):
    env, run = env or Point(), make_run(path, **settings)
    networks = policy.make_networks(env, run)
    return networks, reference.load(env, networks, run, 0)


def edit(path, change):
    file = path / brax_checkpoint.CONFIG
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


ARGUMENTS = {
    'policy_hidden_layer_sizes': (8, 16),
    'value_hidden_layer_sizes': (3, 3),
    'activation': jax.nn.relu,
    'policy_obs_key': 'privileged_state',
    'value_obs_key': 'privileged_state',
    'distribution_type': 'normal',
    'noise_std_type': 'log',
    'init_noise_std': 0.3,
    'state_dependent_std': True,
    'policy_network_kernel_init_fn': jax.nn.initializers.lecun_normal,
    'policy_network_kernel_init_kwargs': {'in_axis': -2},
    'value_network_kernel_init_fn': jax.nn.initializers.lecun_normal,
    'value_network_kernel_init_kwargs': {'in_axis': -2},
    'mean_clip_scale': 0.01,
    'mean_kernel_init_fn': jax.nn.initializers.lecun_normal,
    'mean_kernel_init_kwargs': {'in_axis': -2},
    'use_distributional_critic': True,
    'num_quantiles': 7,
}
REFUSED = {
    'policy_hidden_layer_sizes': 'policy.hidden',
    'activation': 'policy.activation relu',
    'policy_obs_key': 'policy_obs_key',
    'distribution_type': 'distribution_type',
}


def test_every_argument_of_braxs_networks_is_known():
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(ppo_networks.make_ppo_networks).parameters.items()
        if parameter.default is not parameter.empty
    }
    defaults.pop('preprocess_observations_fn')
    assert set(defaults) == set(ARGUMENTS) == set(brax_checkpoint.NetworkFactory.model_fields)
    assert all(ARGUMENTS[name] != value for name, value in defaults.items())


@pytest.mark.parametrize('name', ARGUMENTS)
def test_an_argument_is_used_as_brax_uses_it_or_refused_by_name(name, tmp_path):
    env = Observed()
    path, _, _ = write(tmp_path, env, **{name: ARGUMENTS[name]})
    if name in REFUSED:
        with pytest.raises(UserError, match=REFUSED[name]) as caught:
            load(path, env)
        assert '\n' not in str(caught.value)
        return
    networks, ours = load(path, env)
    obs = batch(env.reset(jax.random.PRNGKey(0)).obs, 9)
    actions = jnp.tanh(policy.actions(networks, ours, obs).loc)
    theirs, _ = ppo_checkpoint.load_policy(path)(obs, jax.random.PRNGKey(0))
    np.testing.assert_allclose(actions, theirs, rtol=1e-6, atol=1e-7)
    assert np.ptp(actions) > 0.1


def test_which_observation_it_reads_is_no_matter_where_there_is_one(tmp_path):
    path, _, _ = write(tmp_path, policy_obs_key='privileged_state')
    networks, ours = load(path)
    obs = batch(jnp.zeros(2), 9)
    theirs, _ = ppo_checkpoint.load_policy(path)(obs, jax.random.PRNGKey(0))
    np.testing.assert_allclose(jnp.tanh(policy.actions(networks, ours, obs).loc), theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (lambda c: c['network_factory_kwargs'].update(layer_norm=True), 'kwargs.layer_norm: True'),
        (lambda c: c['network_factory_kwargs'].update(a={'b': 1}), 'network_factory_kwargs.a: {'),
        (lambda c: c['network_factory_kwargs'].update(activation='sine'), 'activation sine, this'),
        (lambda c: c['network_factory_kwargs'].update(activation=None), 'activation: should be'),
        (lambda c: c['network_factory_kwargs'].update(distribution_type='beta'), "got 'beta'"),
        (lambda c: c.update(normalize_observations=False), 'normalize_observations: .*got False'),
        (lambda c: c.pop('normalize_observations'), 'normalize_observations: Field required'),
        (lambda c: c.pop('network_factory_kwargs'), 'network_factory_kwargs: Field required'),
        (lambda c: c.update(network_factory_kwargs=3), 'network_factory_kwargs: should be'),
        (lambda c: c.update(normalizer='mine'), "normalizer: 'mine': may change the policy"),
    ],
)
def test_what_else_stands_in_the_settings_is_refused_by_name(change, said, tmp_path):
    path, _, _ = write(tmp_path)
    edit(path, change)
    with pytest.raises(UserError, match=said) as caught:
        load(path)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'\xff\xfe', b'[' * 100_000])
def test_damaged_settings_are_one_line(content, tmp_path):
    path, _, _ = write(tmp_path)
    (path / brax_checkpoint.CONFIG).write_bytes(content)
    with pytest.raises(UserError, match=r'reference\.path: .*ppo_network_config\.json: ') as caught:
        load(path)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('std_eps', [0.0, 0.5])
@pytest.mark.parametrize('mode', ['welford', 'ema'])
def test_the_normaliser_goes_on_as_braxs_does_in_memory(mode, std_eps, tmp_path):
    path, theirs, _ = write(tmp_path, mode=mode, std_eps=std_eps)
    ours = load(path)[1].statistics
    for seed in (10, 11):
        np.testing.assert_allclose(ours.std, theirs.std, rtol=1e-5)
        np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-5)
        assert int(ours.count) == int(theirs.count)
        more = batch(jnp.zeros(2), seed)
        weights = jnp.ones((5, 3))
        ours = running_statistics.update(ours, more, weights=weights)
        theirs = running_statistics.update(theirs, more)


def test_a_normaliser_that_has_seen_nothing(tmp_path):
    path, theirs, _ = write(tmp_path, updates=0)
    ours = load(path)[1].statistics
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    ('count', 'number'),
    [
        (np.float32(45), 45),
        (np.int32(45), 45),
        (np.float32([45]), 45),
        (types.UInt64(hi=2, lo=3), 2 * 2**32 + 3),
    ],
)
def test_counts_of_all_versions_train(count, number, tmp_path):
    path, _, _ = write(tmp_path / 'brax', count=count)
    fixed = load(path)[1].statistics
    fresh = policy.init(jax.random.key(0), Point(), *load(path)[:1], make_run(path)).statistics
    assert int(fixed.count) == number
    assert jax.tree.structure(fixed) == jax.tree.structure(fresh)
    types_of = lambda tree: jax.tree.map(lambda x: jnp.asarray(x).dtype, tree)
    assert types_of(fixed) == types_of(fresh)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'count': np.float32(np.nan)}, 'count is not finite'),
        ({'count': np.float32(-1)}, 'count is -1'),
        ({'count': np.float32([1, 2])}, 'no readable Brax PPO checkpoint'),
        ({'mean': np.float32([1, np.inf])}, 'mean is not finite'),
        ({'std': np.float32([1, 0])}, 'std is not positive'),
        ({'std': np.float32([1, -1])}, 'std is not positive'),
        ({'std': np.float32([1, 1, 1])}, 'another shape'),
        ({'mean': np.float32([1])}, 'another shape'),
        ({'std_eps': np.float32(np.nan)}, 'std_eps is not finite'),
    ],
)
def test_a_normaliser_that_is_none_is_refused(change, said, tmp_path):
    path, normaliser, params = write(tmp_path / 'one')
    config = ppo_checkpoint.load_config(path)
    ppo_checkpoint.save(tmp_path / 'two', 7, (normaliser.replace(**change), params, {}), config)
    with pytest.raises(UserError, match=said):
        load(tmp_path / 'two' / path.name)


def test_parameters_that_are_not_finite_are_named(tmp_path):
    path, normaliser, params = write(tmp_path / 'one')
    params['params']['hidden_1']['bias'] = params['params']['hidden_1']['bias'].at[3].set(np.nan)
    config = ppo_checkpoint.load_config(path)
    ppo_checkpoint.save(tmp_path / 'two', 7, (normaliser, params, {}), config)
    with pytest.raises(UserError, match=r'policy\.params\.hidden_1\.bias is not finite'):
        load(tmp_path / 'two' / path.name)


def test_parameters_of_half_the_width_are_the_same_policy(tmp_path):
    path, normaliser, params = write(tmp_path / 'one')
    config = ppo_checkpoint.load_config(path)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    ppo_checkpoint.save(tmp_path / 'two', 7, (normaliser, half, {}), config)
    networks, ours = load(tmp_path / 'two' / path.name)
    obs = batch(jnp.zeros(2), 9)
    theirs, _ = ppo_checkpoint.load_policy(tmp_path / 'two' / path.name)(obs, jax.random.PRNGKey(0))
    np.testing.assert_allclose(jnp.tanh(policy.actions(networks, ours, obs).loc), theirs, rtol=1e-6)
    assert {x.dtype for x in jax.tree.leaves(ours.params)} == {jnp.dtype('float32')}


def test_relative_paths(tmp_path, monkeypatch):
    path, _, _ = write(tmp_path / 'ppo')
    monkeypatch.chdir(tmp_path)
    relative, absolute = load(path.relative_to(tmp_path))[1], load(path)[1]
    jax.tree.map(np.testing.assert_array_equal, relative, absolute)


def test_what_is_no_checkpoint_says_what_it_is_and_what_to_do(tmp_path):
    path, _, _ = write(tmp_path / 'ppo')
    (tmp_path / 'ppo' / f'{30:012d}').symlink_to(path)
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.yaml').write_text('seed: 1\n')
    (tmp_path / 'sac').mkdir()
    (tmp_path / 'sac' / 'sac_network_config.json').write_text('{}')
    for place, said in {
        tmp_path / 'ppo': r'holds 2 Brax PPO checkpoints .* the last is \S*/ppo/000000000030$',
        path / 'd': rf'a part of a Brax PPO checkpoint; name {path}$',
        path / brax_checkpoint.CONFIG: rf'a part of a Brax PPO checkpoint; name {path}$',
        tmp_path / 'run': r'but a run; did you mean reference\.source: run\?',
        tmp_path / 'sac': r'another one \(sac_network_config\.json\)',
        tmp_path / 'gone': 'no such directory',
        tmp_path: r'it has no ppo_network_config\.json',
    }.items():
        with pytest.raises(UserError, match=rf'reference\.path: {place}: .*{said}'):
            load(place)


def test_of_a_damaged_one_nothing_but_the_error_reaches_the_terminal(tmp_path):
    path, _, _ = write(tmp_path / 'ppo')
    shutil.rmtree(path / 'd')  # What manifests speak of.
    program = (
        'import pathlib, sys\n'
        'from sail_jax.control import brax_checkpoint\n'
        'try:\n'
        '    brax_checkpoint.read_policy(pathlib.Path(sys.argv[1]))\n'
        'except Exception as error:\n'
        '    print(type(error).__name__, error)\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', program, str(path)], capture_output=True, text=True, timeout=100
    )
    assert done.stdout.startswith(f'UserError reference.path: {path}: no readable Brax PPO checkp')
    assert 'Event loop' not in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('name', ['_METADATA', 'manifest.ocdbt', brax_checkpoint.CONFIG])
def test_a_pipe_in_it_is_not_waited_for(tmp_path, name):
    path, _, _ = write(tmp_path / 'ppo')
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(UserError, match=f'{path / name}: not a regular file'):
        load(path)


@pytest.mark.slow
def test_a_run_starts_from_it_and_keeps_its_epsilon(tmp_path):
    path, normaliser, _ = write(tmp_path / 'ppo', mode='ema', std_eps=0.5, count=np.float32(45))
    result = sail_jax.train(make_run(path), tmp_path / 'run', env=Point(), quiet=True)
    np.testing.assert_allclose(result.start.statistics.std, normaliser.std, rtol=1e-5)
    assert float(result.policy.statistics.std_eps) == 0.5
    assert int(result.policy.statistics.count) > 45
