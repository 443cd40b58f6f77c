"""The numbers of an evaluation, by hand; whose episodes they are of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.control import envs, evaluate, rollout
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun, Environment, Success
from sail_jax.control.lanes import World
from sail_jax.control.rollout import Episodes
from sail_jax.control.sac import evaluate as of_sac
from sail_jax.core.types import Hyper, Policies
from sail_jax.errors import UserError
from sail_jax.training import devices
from tests.support.toy import SETTINGS, Point

N = 6


def episodes(seed):
    draw = np.random.default_rng(seed).normal
    sums = [draw(size=(N, 3)).astype(np.float32) for _ in Episodes._fields]
    length = np.random.default_rng(seed).integers(3, 9, (N, 3)).astype(np.float32)
    return Episodes(*sums)._replace(length=length, not_finite=np.zeros((N, 3), bool))


def test_numbers_are_those_of_the_definitions():
    ours, theirs, beta = episodes(0), episodes(1), 0.3
    got = jax.device_get(evaluate.summarise(ours, theirs, beta))
    returns, mode, other = ours.episode_return[:, :2], ours.episode_return[:, 2], theirs[0][:, :2]
    wins = [a > b for n in range(N) for a in returns[n] for b in other[n]]
    implicit = beta * (ours.logp - ours.reference_logp)
    signed = [
        (implicit[n, 0] - implicit[n, 1]) * np.sign(returns[n, 0] - returns[n, 1]) for n in range(N)
    ]
    wanted = {
        'return': returns.mean(),
        'return_std': returns.std(),
        'return_se': returns.mean(1).std(ddof=1) / np.sqrt(N),
        'return_q10': np.percentile(returns, 10),
        'return_q90': np.percentile(returns, 90),
        'length': ours.length[:, :2].mean(),
        'deterministic_return': mode.mean(),
        'deterministic_return_se': mode.std(ddof=1) / np.sqrt(N),
        'deterministic_return_q50': np.median(mode),
        'deterministic_length': ours.length[:, 2].mean(),
        # Each over the states that the first distribution visits, per step.
        'kl_policy_to_start': ours.kl_policy_to_start[:, :2].sum() / ours.length[:, :2].sum(),
        'kl_start_to_policy': theirs.kl_start_to_policy[:, :2].sum() / theirs.length[:, :2].sum(),
        'success_rate': (ours.succeeded[:, :2] > 0).mean(),
        'deterministic_success_rate': (ours.succeeded[:, 2] > 0).mean(),
        'action_std': ours.action_std[:, :2].sum() / ours.length[:, :2].sum(),
        'entropy': ours.entropy[:, :2].sum() / ours.length[:, :2].sum(),
        'win_rate': np.mean(wins),
        'margin': np.mean(signed),
        'label_accuracy': np.mean(np.asarray(signed) > 0),
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)


class Walked(Point):
    """Counts its steps, in a metric."""

    def reset(self, rng):
        return super().reset(rng).replace(metrics={'steps': jnp.zeros(())})

    def step(self, state, action):
        return super().step(state, action).replace(metrics={'steps': state.metrics['steps'] + 1})


def test_an_episode_is_a_success_from_the_step_that_makes_it_one():
    run = ControlRun.model_validate(SETTINGS)
    env = Walked(drift=0.1)  # Most leave the disc.
    networks = control_policy.make_networks(env, run)
    policy = control_policy.init(jax.random.key(0), env, networks, run)
    succeeded = evaluate.make_succeeded(env, Success(metric='steps', at_least=9))
    world = World(env, networks, 20, succeeded)
    key_B = jax.random.split(jax.random.key(1), 8)
    got = rollout.episodes(world, Policies(policy, policy), policy, jnp.zeros(2, bool), key_B)
    assert 0 < (got.length < 9).sum() < 16
    np.testing.assert_array_equal(got.succeeded, np.maximum(got.length - 8, 0))


@pytest.mark.parametrize('summarised', [lambda x: evaluate.summarise(x, x, 0.1), of_sac.summarise])
def test_an_episode_that_broke_the_simulator_is_no_success(summarised):
    broken = episodes(0)._replace(succeeded=np.ones((N, 3)), not_finite=np.eye(N, 3) > 0)
    numbers = summarised(broken)
    assert numbers['success_rate'] == pytest.approx(5 / 6)
    assert numbers['deterministic_success_rate'] == pytest.approx(5 / 6)
    none = summarised(broken._replace(succeeded=None))
    assert not [name for name in none if 'success' in name]


@pytest.mark.parametrize(('env', 'known'), [(Walked(), 'it has steps'), (Point(), 'none at all')])
def test_a_metric_that_the_environment_does_not_have_is_refused(env, known):
    wanted = Success(metric='opened', at_least=1)
    with pytest.raises(UserError, match=rf"no metric 'opened'; .*{known}"):
        evaluate.make_succeeded(env, wanted)


class Odd(Walked):
    """With observations that are made right, and metrics of other shapes."""

    def _odd(self, state):
        metrics = {
            'one': state.metrics['steps'][None],
            'two': jnp.zeros(2),
            'parts': {'a': jnp.zeros(())},
            'spin': jnp.zeros((), complex),
            **state.metrics,
        }
        return state.replace(obs={'where': state.pipeline_state}, metrics=metrics)

    def reset(self, rng):
        return self._odd(super().reset(rng))

    def step(self, state, action):
        own = {'obs': state.obs['where'], 'metrics': {'steps': state.metrics['steps']}}
        return self._odd(super().step(state.replace(**own), action))


@pytest.mark.parametrize('metric', ['steps', 'one'])
@pytest.mark.parametrize('repeat', [1, 2])
def test_metrics_of_an_environment_that_is_made_right_are_its_own(metric, repeat):
    env = envs.make(Environment(action_repeat=repeat), Odd())
    succeeded = evaluate.make_succeeded(env, Success(metric=metric, at_least=2 * repeat))
    keys = jax.random.split(jax.random.key(0), 3)
    state = rollout.reset(env, keys)
    said = []
    for _ in range(2):
        state = jax.vmap(env.step)(state, jnp.zeros((3, 2)))
        said.append(succeeded(state).tolist())
    assert said == [[False] * 3, [True] * 3]


@pytest.mark.parametrize(
    ('metric', 'said'),
    [('two', r'float32\[2\]'), ('parts', 'a dict'), ('spin', r'complex64\[\]')],
)
def test_a_metric_that_is_no_number_is_refused(metric, said):
    env = envs.make(Environment(), Odd())
    with pytest.raises(UserError, match=f"success.metric: '{metric}' is {said}; expected one"):
        evaluate.make_succeeded(env, Success(metric=metric))


def test_policy_and_reference_are_not_mixed_up():
    # The reference pushes to the right, and leaves the disc; the policy hardly moves.
    run = ControlRun.model_validate(SETTINGS)
    env = Point()
    networks = control_policy.make_networks(env, run)
    policy = control_policy.init(jax.random.key(0), env, networks, run)
    still = jax.tree.map(jnp.zeros_like, policy.params)
    last = {**still['policy']['params']}
    name = sorted(last)[-1]
    last[name] = {**last[name], 'bias': jnp.asarray([3.0, 0.0, -3.0, -3.0])}
    right = {**still, 'policy': {'params': last}}
    last = {**last, name: {**last[name], 'bias': jnp.asarray([0.0, 0.0, -3.0, -3.0])}}
    still = {**still, 'policy': {'params': last}}
    measure = evaluate.make(env, networks, run, devices.make_mesh(1))
    ours, theirs = (policy._replace(params=params) for params in (still, right))
    numbers = jax.device_get(measure(ours, theirs, (), jnp.uint32(0), Hyper.of(run)))
    assert numbers['length'] == run.env.episode_length
    assert numbers['return'] > 10
    assert numbers['win_rate'] == 1
    # A normal each, of the same size and 3 apart: a KL of 3^2 / (2 s^2) in either direction.
    scale = np.log1p(np.exp(-3.0)) + 0.001
    for direction in ('kl_policy_to_start', 'kl_start_to_policy'):
        np.testing.assert_allclose(numbers[direction], 4.5 / scale**2, rtol=1e-4)
    np.testing.assert_allclose(numbers['action_std'], scale, rtol=1e-5)
    # Around 0 the squash takes next to nothing from two normals of that size.
    normals = 2 * np.log(scale * np.sqrt(2 * np.pi * np.e))
    assert normals - 0.1 < numbers['entropy'] < normals
