"""A gradient step: targets by hand, gradients by differences, what is left out."""

import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from benchmarks import matrix_products
from sail_jax.control import policy as control_policy
from sail_jax.control.sac import learn, networks
from sail_jax.control.sac.learn import SacHyper
from sail_jax.core.types import Policy
from tests.support import sac
from tests.support.toy import Point

B, ENV = 6, Point()
RUN = sac.run(**{'critic.tau': 0.25, 'divergence.coefficient': 0.5})
NETS = networks.make(ENV, RUN)


@pytest.fixture(scope='module')
def there():
    """A learner whose slow copies are others than its critics, a batch, and a reference."""
    policy, reference = (networks.init_policy(jax.random.key(i), NETS) for i in range(2))
    learner = learn.init(RUN, NETS, policy, SacHyper.of(RUN), jax.random.key(2))
    learner = learner._replace(targets=NETS.q_network.init(jax.random.key(3)))
    batch = sac.batch(terminated_B=jnp.arange(B) == 1)
    return learner, batch, reference


@jax.jit
def drawn(policy, obs, key):
    """Squashed actions and their log-densities, by the change of variables."""
    dist = control_policy.actions(NETS, policy, obs)
    raw = dist.loc + dist.scale * jax.random.normal(key, dist.loc.shape)
    squash = jnp.log(1 - jnp.tanh(raw) ** 2)
    return jnp.tanh(raw), (norm.logpdf(raw, dist.loc, dist.scale) - squash).sum(-1)


def test_the_standard_deviation_is_the_authors_map():
    logits = jnp.asarray([[0.3, -0.4, -50.0, 50.0], [0.3, -0.4, 0.0, 0.5]])
    dist = NETS.parametric_action_distribution.create_dist(logits)
    np.testing.assert_allclose(jnp.log(dist.scale[0]), [-5, 2], rtol=1e-6)
    np.testing.assert_allclose(
        jnp.log(dist.scale[1]), -5 + 3.5 * (np.tanh([0, 0.5]) + 1), rtol=1e-5
    )


def test_matrices_begin_orthogonal_and_biases_as_0():
    policy = networks.init_policy(jax.random.key(0), NETS)
    kernel, bias = (policy.params['policy']['params']['hidden_0'][k] for k in ('kernel', 'bias'))
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(2), atol=1e-6)
    assert not bias.any()


def test_the_target_is_the_one_by_hand_and_a_time_limit_bootstraps(there):
    learner, batch, _ = there
    key = jax.random.key(9)
    action, logp = drawn(learner.policy, batch.next_obs, key)
    q = NETS.q_network.apply((), learner.targets, batch.next_obs, action)
    soft = np.minimum(q[:, 0], q[:, 1]) - RUN.temperature.initial * logp
    target = learn.critic_target(NETS, RUN, learner, batch, key)
    by_hand = batch.reward + 0.99 * soft * (np.arange(B) != 1)
    np.testing.assert_allclose(target, by_hand, rtol=1e-4, atol=1e-5)
    assert target[1] == batch.reward[1]
    again = learn.critic_target(NETS, RUN, learner, batch._replace(ended=jnp.zeros(B, bool)), key)
    np.testing.assert_array_equal(target, again)


def test_the_actors_loss_is_the_one_by_hand(there):
    learner, batch, reference = there
    key = jax.random.key(9)
    action, logp = drawn(learner.policy, batch.obs, key)
    q = NETS.q_network.apply((), learner.critics, batch.obs, action).min(-1)
    p, r = (control_policy.actions(NETS, x, batch.obs) for x in (learner.policy, reference))
    kl = jnp.log(p.scale / r.scale) + (r.scale**2 + (r.loc - p.loc) ** 2) / (2 * p.scale**2) - 0.5
    kl = kl.sum(-1).mean()
    loss, numbers = learn.actor_loss(
        NETS, learner, learner.actor, batch, reference, jnp.float32(0.5), key
    )
    np.testing.assert_allclose(loss, (0.1 * logp - q).mean() + 0.5 * kl, rtol=1e-5)
    np.testing.assert_allclose(numbers['kl'], kl, rtol=1e-5)
    np.testing.assert_allclose(numbers['entropy'], -logp.mean(), rtol=1e-5)
    assert kl > 0.1


def test_the_actors_gradient_is_that_of_differences(there):
    with jax.enable_x64(True):
        learner, batch, reference = jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, there
        )
        loss = jax.jit(
            lambda actor: learn.actor_loss(
                NETS, learner, actor, batch, reference, jnp.float64(0.5), jax.random.key(9)
            )[0]
        )
        grads = jax.grad(loss)(learner.actor)
        along = jax.tree.map(lambda x: jnp.sin(jnp.arange(x.size)).reshape(x.shape), grads)
        shifted = lambda h: loss(jax.tree.map(lambda x, d: x + h * d, learner.actor, along))
        slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
        dot = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), grads, along)))
        np.testing.assert_allclose(dot, slope, rtol=1e-6)
        assert abs(float(slope)) > 1e-2


@pytest.mark.parametrize(('entropy', 'target'), [(-1.0, -2.0), (-3.0, -2.0)])
def test_the_temperature_falls_where_there_is_too_much_entropy(entropy, target):
    log_temperature = jnp.log(0.3)
    slope = jax.grad(learn.temperature_loss)(log_temperature, jnp.float32(entropy), target)
    np.testing.assert_allclose(slope, 0.3 * (entropy - target), rtol=1e-5)


@pytest.fixture(scope='module')
def stepped(there):
    learner, batch, reference = there
    step = jax.jit(learn.make_gradient_step(NETS, RUN, ENV.action_size))
    return step, learner, batch, reference, jax.tree.map(jnp.asarray, SacHyper.of(RUN))


def gap(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(abs(x - y).max()), a, b)))


def test_the_slow_copies_move_every_second_step(stepped):
    step, learner, batch, reference, hyper = stepped
    one, numbers = step(learner, batch, reference, hyper, jax.random.key(1))
    two, _ = step(one, batch, reference, hyper, jax.random.key(2))
    assert gap(one.targets, learner.targets) == 0
    moved = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, one.targets, two.critics)
    assert gap(two.targets, moved) < 1e-6
    assert gap(two.targets, one.targets) > 1e-2
    # Adam's first step is the learning rate, whatever the gradient.
    np.testing.assert_allclose(
        gap(one.actor, learner.actor), RUN.optimizer.learning_rate, rtol=1e-2
    )
    slope = float(numbers['entropy']) + 2  # The target is minus the number of entries.
    moved_by = float(one.log_temperature - learner.log_temperature)
    np.testing.assert_allclose(moved_by, -1e-4 * np.sign(slope), rtol=1e-2)
    assert int(two.gradient_steps) == 2


def test_what_is_not_finite_is_skipped_and_counted(stepped):
    step, learner, batch, reference, hyper = stepped
    bad = batch._replace(reward=batch.reward.at[2].set(jnp.nan))
    after, _ = step(learner, bad, reference, hyper, jax.random.key(1))
    assert (int(after.skipped), int(after.skipped_in_a_row)) == (1, 1)
    assert int(after.gradient_steps) == 0
    for name in ('actor', 'critics', 'targets', 'log_temperature', 'optimizers'):
        assert gap(getattr(after, name), getattr(learner, name)) == 0
    good, _ = step(after, batch, reference, hyper, jax.random.key(1))
    assert (int(good.skipped), int(good.skipped_in_a_row)) == (1, 0)


def test_nothing_is_learned_from_steps_that_broke_the_simulator(stepped):
    step, learner, batch, reference, hyper = stepped
    some = batch._replace(sound=jnp.arange(B) != 2)
    other = some._replace(reward=some.reward.at[2].set(1e3), obs=some.obs.at[2].set(7.0))
    a, b = (step(learner, x, reference, hyper, jax.random.key(1))[0] for x in (some, other))
    assert gap(a.critics, b.critics) == gap(a.actor, b.actor) == 0


def test_the_penalty_holds_to_the_reference(stepped):
    step, learner, batch, reference, _ = stepped

    def kl_after(coefficient):
        hyper = SacHyper(coefficient=jnp.float32(coefficient), learning_rate=jnp.float32(1e-2))
        now = learner
        for i in range(20):
            now, numbers = step(now, batch, reference, hyper, jax.random.key(i))
        return float(numbers['kl'])

    assert kl_after(10.0) < 0.5 * kl_after(0.0)


def test_new_critics_have_learned_nothing(stepped):
    step, learner, batch, reference, hyper = stepped
    after, _ = step(learner, batch, reference, hyper, jax.random.key(1))
    fresh = learn.with_new_critics(after, NETS, jax.random.key(11))
    assert gap(fresh.critics, NETS.q_network.init(jax.random.key(11))) == 0
    assert gap(fresh.targets, fresh.critics) == 0
    assert gap(fresh.optimizers.critics, learner.optimizers.critics) == 0
    assert gap(fresh.actor, after.actor) == gap(fresh.optimizers.actor, after.optimizers.actor) == 0


def test_members_critics_are_made_one_after_the_other():
    keys = jax.random.split(jax.random.key(12), 3)
    init = jax.jit(jax.vmap(partial(networks.init_critics, networks=NETS), spmd_axis_name='seed'))
    # Batched ones wait for ever for threads of the pool that they hold.
    calls = re.findall(r'@lapack_sgeqrf.*num_batch_dims = "(\d)"', init.lower(keys).as_text())
    assert set(calls) == {'0'}
    alone = [NETS.q_network.init(key) for key in keys]
    assert gap(init(keys), jax.tree.map(lambda *x: jnp.stack(x), *alone)) == 0


def test_of_a_dict_of_observations_the_state_is_seen(there):
    learner, batch, _ = there
    both = lambda obs: {'state': obs, 'privileged_state': jnp.ones(5)}

    class Privileged(Point):
        def reset(self, rng):
            state = super().reset(rng)
            return state.replace(obs=both(state.obs))

    nets = networks.make(Privileged(), RUN)
    dist = control_policy.actions(nets, learner.policy, both(batch.obs))
    expected = control_policy.actions(NETS, learner.policy, batch.obs)
    np.testing.assert_array_equal(dist.loc, expected.loc)


def test_what_is_a_policy_is_what_the_commands_take(there):
    learner = there[0]
    assert isinstance(learner.policy, Policy)
    assert learner.policy.statistics == ()


def test_the_products_that_the_benchmark_takes_for_a_gradient_step_are_its_own(stepped):
    step, *arguments = stepped
    text = step.lower(*arguments, jax.random.key(1)).as_text()
    matrix = r'tensor<(\d+)x(\d+)xf32>'
    form = rf'dot_general .*contracting_dims = \[(\d)\] .*\({matrix}, .* -> {matrix}'
    formed = Counter()
    for found in re.findall(form, text):
        axis, *left, rows, columns = map(int, found)
        formed[left[axis], *sorted((rows, columns))] += 1  # Some are formed transposed.
    told = matrix_products.gradient_step(B, obs=2, action=2, hidden=list(RUN.actor.hidden))
    counted = Counter()
    for product, times in told.items():
        counted[product.inner, *sorted((product.rows, product.columns))] += times
    assert formed == counted
