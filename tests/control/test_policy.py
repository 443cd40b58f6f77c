"""Policies go to Brax and come back."""

import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from brax import envs as brax_envs
from brax.training.agents.ppo import checkpoint as ppo_checkpoint
from brax.training.agents.ppo import networks as ppo_networks
from brax.training.agents.ppo import train as ppo

import sail_jax
from sail_jax import configfile, runs
from sail_jax.control import envs, export, policy, reference
from sail_jax.control.config import ControlRun, Environment
from sail_jax.core.divergence import Gaussian
from sail_jax.errors import UserError
from tests.support.toy import SETTINGS, Point

HIDDEN = (8, 8)


def test_entropy_is_braxs_for_the_same_draw():
    """Of the actions after the squash; saturated ones, where tanh rounds to 1, too."""
    networks = ppo_networks.make_ppo_networks(3, 2)
    distribution = networks.parametric_action_distribution
    logits = jnp.array([[0.3, -1.0, 0.2, -2.0], [25.0, -30.0, 1.0, 0.1]])
    key = jax.random.key(5)
    dist = distribution.create_dist(logits)
    got = policy.entropy(Gaussian(dist.loc, dist.scale), dist.sample(seed=key))
    np.testing.assert_allclose(got, distribution.entropy(logits, key), rtol=1e-5)
    assert np.isfinite(got).all()


@pytest.fixture(scope='module')
def brax_checkpoint(tmp_path_factory):
    """A Brax PPO run on Brax's own test environment, checkpointed by Brax."""
    path = tmp_path_factory.mktemp('ppo')

    def factory(*args, policy_hidden_layer_sizes=HIDDEN, **kwargs):
        return ppo_networks.make_ppo_networks(
            *args, policy_hidden_layer_sizes=policy_hidden_layer_sizes, **kwargs
        )

    make_policy, params, _ = ppo.train(
        environment=brax_envs.get_environment('fast'),
        num_timesteps=64,
        episode_length=8,
        num_envs=4,
        batch_size=4,
        num_minibatches=1,
        unroll_length=4,
        normalize_observations=True,
        network_factory=factory,
        num_evals=1,
        run_evals=False,
        save_checkpoint_path=str(path),
    )
    return next(path.glob('0*')), make_policy, params


def make_run(**settings):
    return ControlRun.model_validate({**SETTINGS, 'policy': {'hidden': HIDDEN}, **settings})


def test_a_brax_checkpoint_is_the_same_policy(brax_checkpoint):
    path, make_policy, params = brax_checkpoint
    run = make_run(reference={'source': 'brax', 'path': str(path)})
    env = brax_envs.get_environment('fast')
    networks = policy.make_networks(env, run)
    loaded = reference.load(env, networks, run, 0)
    obs = jax.random.normal(jax.random.key(1), (5, env.observation_size))
    ours = jnp.tanh(policy.actions(networks, loaded, obs).loc)
    theirs, _ = make_policy(params, deterministic=True)(obs, jax.random.key(0))
    np.testing.assert_array_equal(ours, theirs)


def test_log_prob_differs_from_braxs_by_the_squash_alone(brax_checkpoint):
    _, make_policy, params = brax_checkpoint
    env = brax_envs.get_environment('fast')
    networks = policy.make_networks(env, make_run())
    obs = jax.random.normal(jax.random.key(1), (5, env.observation_size))
    _, extras = make_policy(params)(obs, jax.random.key(3))
    raw = extras['raw_action']
    ours = policy.log_prob(
        policy.actions(networks, policy.Policy({'policy': params[1]}, params[0]), obs), raw
    )
    squash = 2 * (np.log(2) - raw - np.logaddexp(0, -2 * raw)).sum(-1)
    np.testing.assert_allclose(extras['log_prob'], ours - squash, rtol=1e-4)


def test_another_shape_names_the_layer(brax_checkpoint):
    path = brax_checkpoint[0]
    run = make_run(policy={'hidden': (16, 8)}, reference={'source': 'brax', 'path': str(path)})
    env = brax_envs.get_environment('fast')
    with pytest.raises(UserError, match=r'policy of another shape: .*hidden_0'):
        reference.load(env, policy.make_networks(env, run), run, 0)


def test_another_activation_is_named(brax_checkpoint):
    path = brax_checkpoint[0]
    policy_settings = {'hidden': HIDDEN, 'activation': 'tanh'}
    run = make_run(policy=policy_settings, reference={'source': 'brax', 'path': str(path)})
    env = brax_envs.get_environment('fast')
    with pytest.raises(UserError, match=r'has policy\.activation swish, this run tanh'):
        reference.load(env, policy.make_networks(env, run), run, 0)


def test_missing_brax_checkpoint(tmp_path):
    run = make_run(reference={'source': 'brax', 'path': str(tmp_path / 'none')})
    env = brax_envs.get_environment('fast')
    with pytest.raises(UserError, match='none: no such directory'):
        reference.load(env, policy.make_networks(env, run), run, 0)


def test_a_sweep_is_no_reference(tmp_path):
    sweep = ControlRun.model_validate({**SETTINGS, 'seeds': [3, 5]})
    configfile.write(sweep, tmp_path / 'config.yaml')
    of_sweep = {'source': 'run', 'path': str(tmp_path)}
    run = ControlRun.model_validate({**SETTINGS, 'reference': of_sweep})
    with pytest.raises(UserError, match=r'a sweep; name one of its runs, e\.g\. .*/seed-3$'):
        reference.load(Point(), policy.make_networks(Point(), run), run, 0)


def test_a_run_is_anothers_reference_and_goes_to_brax(tmp_path, monkeypatch):
    settings = {**SETTINGS, 'env': {'name': 'inverted_pendulum', 'episode_length': 20}}
    monkeypatch.setattr(envs, 'make', lambda *_: Point())
    first = sail_jax.train(ControlRun.model_validate(settings), tmp_path / 'one', quiet=True)
    second = {**settings, 'reference': {'source': 'run', 'path': str(tmp_path / 'one')}, 'seed': 5}
    result = sail_jax.train(ControlRun.model_validate(second), tmp_path / 'two', quiet=True)
    jax.tree.map(np.testing.assert_array_equal, result.start, first.policy)

    wider = {**second, 'policy': {'hidden': [16]}}
    with pytest.raises(UserError, match=r'has policy\.hidden \(8,\), this run \(16,\)'):
        sail_jax.train(ControlRun.model_validate(wider), tmp_path / 'three', quiet=True)

    run, trained, start = runs.open_run(tmp_path / 'two')
    jax.tree.map(np.testing.assert_array_equal, start, first.policy)
    jax.tree.map(np.testing.assert_array_equal, trained, result.policy)
    exported = export.export_brax(run, trained, tmp_path / 'brax')
    obs = jax.random.normal(jax.random.key(1), (5, 2))
    theirs, _ = ppo_checkpoint.load_policy(exported)(obs, jax.random.key(0))
    networks = policy.make_networks(Point(), run)
    np.testing.assert_allclose(
        jnp.tanh(policy.actions(networks, trained, obs).loc), theirs, rtol=1e-6
    )
    assert yaml.safe_load((tmp_path / 'two' / 'config.yaml').read_text())['seed'] == 5


def test_ppo_on_the_spot():
    run = make_run(reference={'source': 'ppo', 'ppo_env_steps': 1})
    env = Point()
    networks = policy.make_networks(env, run)
    fresh = policy.init(jax.random.key(0), env, networks, run)
    trained = reference.load(env, networks, run, 0)
    assert jax.tree.structure(trained) == jax.tree.structure(fresh)
    assert jax.tree.map(jnp.shape, trained) == jax.tree.map(jnp.shape, fresh)
    # One PPO step: 128 segments of 20 steps in each of 8 minibatches.
    assert int(trained.statistics.count) == 128 * 20 * 8


@pytest.mark.parametrize('name', envs.NAMES)
def test_every_environment_is_there_by_name(name):
    backend = 'generalized' if name == 'swimmer' else 'spring'
    env = envs.make(Environment(name=name, backend=backend))
    assert env.action_size > 0
    assert env.backend == backend


@pytest.mark.slow
def test_swimmer_steps_despite_braxs_clip():
    env = envs.make(Environment(name='swimmer', backend='generalized'))
    shape = jax.eval_shape(
        lambda key: env.step(env.reset(key), jnp.zeros(env.action_size)).obs, jax.random.PRNGKey(0)
    )
    assert shape.shape == (env.observation_size,)


@pytest.mark.parametrize(
    ('name', 'backend', 'message'),
    [
        ('hoper', 'spring', "unknown environment 'hoper'; did you mean hopper"),
        ('hopper', 'sprin', "unknown backend 'sprin'; did you mean spring"),
        ('swimmer', 'spring', 'swimmer has no spring; it has generalized'),
    ],
)
def test_unknown_environments(name, backend, message):
    with pytest.raises(UserError, match=message):
        envs.make(Environment(name=name, backend=backend))


def test_playground_environment():
    pytest.importorskip('mujoco_playground')
    env = envs.make(Environment(name='CheetahRun', backend='playground'))
    assert policy.observation_shape(env) == (17,)
    with pytest.raises(UserError, match='unknown Playground environment'):
        envs.make(Environment(name='CheetahRum', backend='playground'))


@pytest.mark.parametrize(
    ('whole', 'said'),
    [
        (
            False,
            r'raised CalledProcessError: .*from the internet .* copy .*/menagerie from a machine',
        ),
        (True, r'raised .*; if .*menagerie is not whole, delete it'),
    ],
)
def test_playgrounds_robots_that_are_not_there_are_one_line(
    whole, said, tmp_path, monkeypatch, capfd
):
    pytest.importorskip('mujoco_playground')
    from mujoco_playground._src import mjx_env

    def clone(*_):
        print('Cloning into ...')
        raise subprocess.CalledProcessError(128, ['git', 'clone'])

    path = tmp_path / 'menagerie'
    if whole:  # As far as Playground looks.
        path.mkdir()
    monkeypatch.setattr(mjx_env, 'EXTERNAL_DEPS_PATH', tmp_path)
    monkeypatch.setattr(mjx_env, 'MENAGERIE_PATH', path)
    monkeypatch.setattr(mjx_env, '_clone_with_progress', clone)
    for name in ('Go1JoystickFlatTerrain', 'LeapCubeReorient'):
        with pytest.raises(UserError, match=rf'env.name: {name}: Playground {said}') as caught:
            envs.make(Environment(name=name, backend='playground'))
        assert '\n' not in str(caught.value)
    assert 'Cloning' not in ''.join(capfd.readouterr())


def test_playground_without_a_choice_of_simulator(monkeypatch):
    pytest.importorskip('mujoco_playground')
    from mujoco_playground import registry

    asked = []
    monkeypatch.setattr(registry, 'get_default_config', lambda name: {})
    monkeypatch.setattr(
        registry, 'load', lambda name, config_overrides: asked.append(config_overrides)
    )
    envs.make(Environment(name='AeroCubeRotateZAxis', backend='playground'))
    assert asked == [None], 'its locked configuration has no impl'


OVERRIDES = [
    ({'ctrl_df': 0.02}, r"env\.overrides: CheetahRun: unknown key 'ctrl_df'; did you mean ctrl_dt"),
    ({'ctrl_dt': 'much'}, r"env\.overrides\.ctrl_dt: 'much'; CheetahRun has 0\.01 there"),
    ({'episode_length': 5}, r'env\.overrides\.episode_length: is the setting env\.episode_length'),
    ({'action_repeat': 2}, r'env\.overrides\.action_repeat: is the setting env\.action_repeat'),
    ({'vision': True}, 'Playground raised NotImplementedError: Vision not'),
    ({'impl': 'wrap'}, "Playground raised ValueError: 'wrap'"),
    (
        {'ctrl_dt': True},
        r'env\.overrides\.ctrl_dt: True; CheetahRun has 0\.01 there, of another type',
    ),
    ({'ctrl_dt': None}, r'env\.overrides\.ctrl_dt: None; CheetahRun has 0\.01 there'),
    ({'vision': None}, r'env\.overrides\.vision: None; CheetahRun has False there'),
    ({'sim_dt': 0.0}, r'env\.overrides: ctrl_dt: 0\.01 is not a whole number of times sim_dt: 0 '),
    ({'sim_dt': 0.03}, r'ctrl_dt: 0\.01 is not a whole number of times sim_dt: 0\.03 '),
    ({'ctrl_dt': -0.01}, r'ctrl_dt: -0\.01 is not a whole number of times sim_dt: 0\.01 '),
    ({'ctrl_dt': 0.015}, r'ctrl_dt: 0\.015 is not a whole number of times sim_dt: 0\.01 '),
    ({'ctrl_dt': 1e308, 'sim_dt': 1e-9}, r'ctrl_dt: 1e\+308 is not a whole number of times'),
]


@pytest.mark.parametrize(('overrides', 'message'), OVERRIDES)
def test_overrides_that_playground_does_not_take(overrides, message):
    pytest.importorskip('mujoco_playground')
    with pytest.raises(UserError, match=message) as caught:
        envs.make(Environment(name='CheetahRun', backend='playground', overrides=overrides))
    assert '\n' not in str(caught.value)


def test_overrides_reach_playground(caplog):
    pytest.importorskip('mujoco_playground')
    settings = {'overrides': {'ctrl_dt': 0.02}, 'action_repeat': 2, 'episode_length': 400}
    env = envs.make(Environment(name='CheetahRun', backend='playground', **settings))
    assert envs.bare(env).n_substeps == 2
    assert env.dt == 0.04
    assert "CheetahRun's own episodes have 1000 of its steps, this run's 800" in caplog.text


def test_what_overrides_make_is_tried_before_anything_is_written():
    pytest.importorskip('mujoco_playground')
    settings = {'name': 'CartpoleBalance', 'backend': 'playground', 'overrides': {'vision': True}}
    with pytest.raises(UserError, match=r'env\.overrides: vision: env: .*reset: raised NotImpl'):
        envs.make(Environment(**settings))


def test_overrides_are_playgrounds():
    for where in ({}, {'env': Point()}):
        with pytest.raises(UserError, match=r'env\.overrides: only environments of backend play'):
            envs.make(Environment(overrides={'ctrl_dt': 0.02}), **where)


def test_a_repeated_action_sums_rewards_up_to_the_end():
    point, three = Point(), envs.make(Environment(action_repeat=3), Point())
    state = point.reset(jax.random.PRNGKey(0))
    state = state.replace(pipeline_state=jnp.asarray([0.75, 0.0]), obs=jnp.asarray([0.75, 0.0]))
    step = jax.jit(three.step)
    first = step(state, jnp.asarray([0.5, 0.0]))  # To 0.8, 0.85 and 0.9.
    np.testing.assert_allclose(first.reward, 0.2 + 0.15 + 0.1, rtol=1e-5)
    np.testing.assert_allclose(first.obs, [0.9, 0], rtol=1e-6)
    last = step(first, jnp.asarray([1.5, 0.0]))  # To 1.05, which is outside.
    assert last.done == 1
    np.testing.assert_allclose(last.reward, -0.05, rtol=1e-4)
    np.testing.assert_allclose(last.obs, [1.05, 0], rtol=1e-6)


@pytest.mark.slow
def test_training_on_playground(tmp_path):
    pytest.importorskip('mujoco_playground')
    run = make_run(env={'name': 'CheetahRun', 'backend': 'playground', 'episode_length': 20})
    result = sail_jax.train(run, tmp_path / 'run', quiet=True)
    assert result.after['eval/length'] == 20
    assert result.after['eval/kl_policy_to_start'] > 0


PAIRS = [
    (name, backend)
    for name in envs.NAMES
    for backend in envs.BACKENDS
    if name != 'swimmer' or backend == 'generalized'
]


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'backend'), PAIRS)
def test_training_on_every_environment_and_backend(name, backend, tmp_path):
    run = make_run(
        env={'name': name, 'backend': backend, 'episode_length': 8},
        rollout={'contexts': 2, 'group_size': 2, 'segment_length': 4},
        total_env_steps=32,
        updates_per_dispatch=1,
        evaluation={'episodes': 2, 'every_updates': 2},
    )
    result = sail_jax.train(run, tmp_path / 'run', quiet=True)
    # Of pairs that all tie, as of a pendulum that nothing lets fall in 8 steps, there are none.
    of_pairs = {'eval/margin', 'eval/label_accuracy'}
    tie = result.after['eval/return_std'] == 0
    numbers = [value for key, value in result.after.items() if not (tie and key in of_pairs)]
    assert np.isfinite(numbers).all()
    assert result.after['eval/kl_policy_to_start'] > 0
