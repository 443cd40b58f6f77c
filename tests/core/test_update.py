"""Updates of a bandit: what is applied, skipped, refreshed, frozen, and in how many programs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sail_jax import config
from sail_jax.core import loss, update
from sail_jax.core.keys import UPDATE
from sail_jax.core.types import Batch, Hyper, Minibatch, Policies, Policy, Preferences, Route
from tests.support import bandit_workload, exact
from tests.support.bandit_workload import Inputs

PROBLEM = exact.problem(seed=1, contexts=8, responses=5, features=3)
PROBLEM = PROBLEM._replace(reward_XxY=PROBLEM.features_XxYxF @ np.array([2.0, -1.0, 1.0]))
ZERO, THETA = np.zeros(3, np.float32), np.array([0.7, -0.4, 0.3], np.float32)


def trajectory(run, updates, theta=ZERO, reference=None, **settings):
    """States before and after each of the updates, on the host, and the rows of metrics."""
    workload = bandit_workload.make(PROBLEM, run, **settings)
    state = bandit_workload.start(workload, run, theta, reference)
    dispatch = update.make_dispatch(workload, run, 1)
    states, rows = [jax.device_get(state)], []
    for _ in range(updates):
        state, metrics = dispatch(state)
        states.append(jax.device_get(state))
        rows.append(jax.tree.map(lambda x: x[0], jax.device_get(metrics)))
    return states, rows


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def moved(before, after):
    return not np.array_equal(before.policy.params['theta'], after.policy.params['theta'])


def exact_J(theta, beta):
    """The exact objective of SAIL with the reward's labels."""
    theta, features = np.asarray(theta, np.float64), PROBLEM.features_XxYxF
    logits = PROBLEM.reference_logp_XxY + features @ theta
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    D = beta * exact.difference(logp - PROBLEM.reference_logp_XxY)
    P = 1 / (1 + np.exp(-exact.difference(PROBLEM.reward_XxY)))
    f = -P * np.log1p(np.exp(-D)) - (1 - P) * np.log1p(np.exp(D))
    return np.einsum('xi,xj,xij->x', np.exp(logp), np.exp(logp), f).mean()


@pytest.fixture(scope='module')
def plain():
    """SAIL with default settings, one update a dispatch."""
    run = bandit_workload.run()
    workload = bandit_workload.make(PROBLEM, run)
    return workload, run, update.make_dispatch(workload, run, 1)


def test_updates_climb_the_exact_objective(plain):
    workload, run, dispatch = plain
    state = bandit_workload.start(workload, run, ZERO)
    for step in range(1, 61):
        state, rows = dispatch(state)
        # 8 rows with three pairs each.
        assert (rows['step'][0], rows['labels'][0]) == (step, 24 * step)
        if step == 1:
            np.testing.assert_allclose(rows['preference'], -np.log(2), atol=1e-6)
    before, after = (exact_J(theta, 1.0) for theta in (ZERO, state.policy.params['theta']))
    assert before == pytest.approx(-np.log(2))
    assert after > before + 0.1  # The maximum is 0.14 above.


def test_an_update_is_the_gradient_steps_written_out():
    run = bandit_workload.run(
        optimizer={'epochs': 2, 'minibatches': 4, 'clip': 0.2, 'max_grad_norm': 0.1},
        divergence={'coefficient': 0.5, 'states': 'reference'},
    )
    states, rows = trajectory(run, 1, THETA, reference=ZERO)
    workload = bandit_workload.make(PROBLEM, run)
    state = bandit_workload.start(workload, run, THETA, ZERO)

    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(run.seed), UPDATE), 1)
    batch = jax.jit(workload.sample)(state.policies, state.sampler, key, state.labels).batch
    held = jax.jit(workload.predict_reference)(state.policies, batch.inputs)
    adam, params, first = optax.adam(run.optimizer.learning_rate), state.policy.params, []
    adam_state = adam.init(params)

    @jax.jit
    def gradient(params, batch, held):
        minibatch = Minibatch(batch, held, loss.count(batch, workload, run))
        of = loss.make(workload, run)
        return jax.value_and_grad(of, has_aux=True)(params, state.policies, state.hyper, minibatch)

    for epoch, part in itertools.product(range(2), range(4)):
        rows_of_part = slice(part, None, 4)
        piece = jax.tree.map(lambda x: x[rows_of_part], (batch, held))  # noqa: B023
        (_, metrics), grads = gradient(params, *piece)
        norm = np.linalg.norm(grads['theta'])
        grads = {'theta': grads['theta'] * min(1, 0.1 / norm)}
        steps, adam_state = adam.update(grads, adam_state)
        params = optax.apply_updates(params, steps)
        if epoch == 0:
            first.append(metrics)
    np.testing.assert_allclose(states[1].policy.params['theta'], params['theta'], atol=1e-5)
    for name in ('objective', 'preference', 'kl'):
        mean = np.mean([metrics[name] for metrics in first])
        np.testing.assert_allclose(rows[0][name], mean, atol=1e-5)
    for name in ('margin', 'label_accuracy'):  # Over the pairs, which not every minibatch has.
        parts = [metrics[name] for metrics in first]
        mean = sum(part.total for part in parts) / sum(part.count for part in parts)
        np.testing.assert_allclose(rows[0][name], mean, atol=1e-5)


def test_minibatches_partition_the_rows():
    parts = update.split_rows(jnp.arange(12).reshape(12, 1), 3)
    assert parts.shape == (3, 4, 1)
    np.testing.assert_array_equal(np.sort(parts.ravel()), np.arange(12))


FAULTS = {4: np.nan, 5: np.inf, 7: -np.inf}


@pytest.fixture(scope='module')
def eventful():
    """Nine updates with faults in some, a refresh after every third, and large steps in a ball."""
    run = bandit_workload.run(optimizer={'learning_rate': 0.5, 'param_bound': 0.7})
    faults = {update - 1: value for update, value in FAULTS.items()}
    return trajectory(run, 9, faults=faults, refresh_updates=3)


def test_gradients_that_are_not_finite_are_skipped_and_counted(eventful):
    states, rows = eventful
    for n in range(1, 10):
        before, after = states[n - 1 : n + 1]
        assert moved(before, after) == (n not in FAULTS)
        if n in FAULTS:
            assert_same(before.policy.params, after.policy.params)
            assert_same(before.optimizer, after.optimizer)
    skipped, in_a_row = [0, 0, 0, 1, 2, 2, 3, 3, 3], [0, 0, 0, 1, 2, 0, 1, 0, 0]
    assert [int(state.skipped) for state in states[1:]] == skipped
    assert [int(state.skipped_in_a_row) for state in states[1:]] == in_a_row
    assert [int(row['skipped']) for row in rows] == skipped
    assert [int(row['skipped_in_a_row']) for row in rows] == in_a_row


def test_reference_is_refreshed_at_its_period(eventful):
    states, _ = eventful
    assert [int(state.reference_step) for state in states] == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9]
    for state in states:
        # Parameters and what is not trained alike, both as they were after that update.
        assert_same(state.reference, states[int(state.reference_step)].policy)


def test_parameters_stay_in_the_ball(eventful):
    norms = [np.linalg.norm(state.policy.params['theta']) for state in eventful[0]]
    assert max(norms) <= 0.7 * (1 + 1e-6)
    assert max(norms) == pytest.approx(0.7)


def test_spent_label_budget_freezes_the_policy():
    # 24 pairs an update: the third has 2 left, the fourth none.
    run = bandit_workload.run(divergence={'coefficient': 1.0, 'states': 'reference'})
    teacher = config.Teacher(rationality=1.0, soft=True, max_labels=50)
    states, rows = trajectory(run, 5, THETA, reference=ZERO, teacher=teacher)
    assert [int(state.labels) for state in states] == [0, 24, 48, 50, 50, 50]
    assert [int(row['labels']) for row in rows] == [24, 48, 50, 50, 50]
    assert [moved(*pair) for pair in itertools.pairwise(states)] == [True] * 3 + [False] * 2
    for state in states[4:]:
        assert_same(state.policy.params, states[3].policy.params)
        assert_same(state.optimizer, states[3].optimizer)
        assert state.skipped == 0  # Nothing was wrong.
        assert_same(state.reference, states[0].reference)  # And nobody asked for a refresh.


def test_own_labels_cost_nothing_and_outlast_the_budget():
    run = bandit_workload.run(objective={'beta': 1.0, 'mixture': {'dpr': 0.0, 'dpp': 1.0}})
    teacher = config.Teacher(max_labels=1)
    states, _ = trajectory(run, 3, THETA, reference=ZERO, teacher=teacher)
    assert [int(state.labels) for state in states] == [0, 0, 0, 0]
    assert all(moved(*pair) for pair in itertools.pairwise(states))


def test_several_updates_in_a_dispatch_are_the_same_bit_for_bit():
    run = bandit_workload.run(
        objective={'mixture': {'dpr': 0.4, 'dpp': 0.2, 'ddp': 0.2}},
        divergence={'coefficient': 0.1, 'states': 'reference'},
        optimizer={'epochs': 2, 'minibatches': 2, 'clip': 0.2, 'param_bound': 2.0},
    )
    workload = bandit_workload.make(PROBLEM, run, refresh_updates=3, faults={1: np.nan})
    state, together = update.make_dispatch(workload, run, 4)(
        bandit_workload.start(workload, run, ZERO)
    )
    one, apart = update.make_dispatch(workload, run, 1), []
    other = bandit_workload.start(workload, run, ZERO)
    for _ in range(4):
        other, metrics = one(other)
        apart.append(metrics)
    # Gradient steps are skipped and counted one by one; Adam counts those that were applied.
    assert (state.skipped, state.skipped_in_a_row) == (4, 0)
    assert optax.tree.get(state.optimizer, 'count') == 3 * 4
    assert_same(state, other)
    assert_same(together, jax.tree.map(lambda *x: np.concatenate(x), *apart))
    # And all of it in one program each, with nothing fetched or sent between the updates.
    assert one._cache_size() == 1
    with jax.transfer_guard('disallow'):
        other, _ = one(other)
    assert one._cache_size() == 1


def test_a_reference_that_keeps_a_share_is_a_moving_average():
    run = bandit_workload.run(divergence={'coefficient': 0.5})
    workload = bandit_workload.make(PROBLEM, run, refresh_updates=2)._replace(reference_kept=0.75)
    one = update.make_dispatch(workload, run, 1)
    state = bandit_workload.start(workload, run, THETA)
    expected = THETA
    for step in range(1, 6):
        state, _ = one(state)
        theta = np.asarray(state.policy.params['theta'])
        if step % 2 == 0:
            expected = 0.75 * expected + 0.25 * theta
            assert state.reference.statistics['batches'] == step
        np.testing.assert_allclose(state.reference.params['theta'], expected, rtol=1e-6)
        assert np.abs(expected - theta).max() > 1e-3
    assert state.reference_step == 4


def test_coefficients_fall_to_0_and_the_state_keeps_what_they_fall_from():
    first = {'response_grad': np.float32(0.8), 'coefficient': np.float32(0.3)}
    ends = {'response_grad': 4, 'coefficient': 2}
    sections = {'response_grad': 'objective', 'coefficient': 'divergence'}
    settings = {section: {key: float(first[key])} for key, section in sections.items()}
    constant = bandit_workload.run(**settings)
    for key, section in sections.items():
        settings[section][f'{key}_updates'] = ends[key]
    states, rows = trajectory(bandit_workload.run(**settings), 5)
    dispatch = update.make_dispatch(bandit_workload.make(PROBLEM, constant), constant, 1)
    for step, (before, after) in enumerate(itertools.pairwise(states)):
        assert_same(after.hyper, before.hyper)
        now = {key: first[key] * np.float32(max(1 - step / ends[key], 0)) for key in first}
        wanted, metrics = dispatch(before._replace(hyper=before.hyper._replace(**now)))
        theta = wanted.policy.params['theta']
        np.testing.assert_allclose(after.policy.params['theta'], theta, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(rows[step]['objective'], metrics['objective'][0], rtol=1e-5)
    assert states[0].hyper.coefficient == first['coefficient']


def test_the_learning_rate_has_its_share_and_the_state_keeps_the_whole():
    run, shares = bandit_workload.run(), (0.5, 1.0, 0.25)
    workload = bandit_workload.make(PROBLEM, run)
    scheduled = workload._replace(step_size=lambda step: jnp.asarray(shares)[step])
    dispatches = [update.make_dispatch(each, run, 1) for each in (scheduled, workload)]
    state = bandit_workload.start(workload, run, ZERO)
    for share in shares:
        before = jax.device_get(state)
        state, metrics = dispatches[0](state)
        rate = before.hyper.learning_rate * np.float32(share)
        wanted, _ = dispatches[1](before._replace(hyper=before.hyper._replace(learning_rate=rate)))
        assert metrics['learning_rate'] == rate
        assert_same(jax.device_get(state.policy), jax.device_get(wanted.policy))
        assert_same(jax.device_get(state.hyper), before.hyper)


def test_state_is_donated_also_when_made_outside_of_jit(plain):
    workload, run, dispatch = plain
    policy = Policy({'theta': jnp.zeros(3)}, {'batches': jnp.zeros(())})
    state = update.init(workload, run, Policies(policy, policy))
    after, _ = dispatch(state)
    assert after.step == 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_the_seed_decides_the_samples(plain):
    workload, run, dispatch = plain

    def first(seed):
        state = bandit_workload.start(workload, run, ZERO)._replace(seed=jnp.uint32(seed))
        return jax.device_get(dispatch(state)[0])

    assert_same(first(0), first(0))
    assert moved(first(0), first(1))


# Two rows: the first with the policy's responses, the second with the data's; K = 2, and a third
# lane drawn from the reference.
RESPONSES = np.array([[0, 3, 1], [2, 4, 0]])
ROUTE = Route(np.array([True, False]), np.array([False, False]))


def loss_of_two_rows(**settings):
    """Metrics of the loss with its gradient, how policy and reference compare, and both tables of
    log-probabilities, [2, Y]."""
    run = bandit_workload.run(divergence={'coefficient': 0.25, **settings})
    workload = bandit_workload.make(PROBLEM, run, group_size=2)
    inputs = Inputs(np.arange(2), RESPONSES, np.ones(2, np.float32))
    policy, start = (Policy({'theta': theta}, None) for theta in (THETA, 0 * THETA))

    @jax.jit
    def results():
        policies = Policies(policy, start)
        theirs = workload.predict_reference(policies, inputs)
        ours = workload.predict_reference(Policies(start, policy), inputs)
        compared = workload.compare(policies, theirs, inputs)
        labels = Preferences(np.full((2, 2, 2), 0.5), np.ones((2, 2, 2)))
        batch = Batch(inputs, compared.logp, jnp.ones((2, 3, 1)), ROUTE, labels)
        minibatch = Minibatch(batch, theirs, loss.count(batch, workload, run))
        gradient, metrics = jax.grad(loss.make(workload, run), has_aux=True)(
            policy.params, policies, Hyper.of(run), minibatch
        )
        return {**metrics, 'gradient': gradient['theta']}, compared, (ours, theirs)

    return jax.device_get(results())


@pytest.mark.parametrize('direction', ['ref_to_policy', 'policy_to_ref'])
@pytest.mark.parametrize('states', ['policy', 'data', 'reference'])
def test_exact_penalty_is_taken_where_the_states_say(states, direction):
    metrics, _, (q, p) = loss_of_two_rows(states=states, direction=direction)
    if direction == 'policy_to_ref':
        p, q = q, p
    kl_B = (np.exp(p) * (p - q)).sum(-1)
    assert abs(kl_B[0] - kl_B[1]) > 1e-3
    wanted = {'policy': kl_B[0], 'data': kl_B[1], 'reference': kl_B.mean()}[states]
    np.testing.assert_allclose(metrics['kl'], wanted, atol=1e-6)
    np.testing.assert_allclose(
        metrics['objective'], metrics['preference'] - 0.25 * wanted, atol=1e-6
    )


@pytest.mark.parametrize(
    ('states', 'direction', 'rows', 'lanes'),
    [
        ('policy', 'policy_to_ref', [0], [0, 1]),
        ('data', 'ref_to_policy', [1], [0, 1]),
        ('reference', 'ref_to_policy', [0, 1], [2]),
    ],
)
def test_sampled_penalty_is_taken_on_its_lanes(states, direction, rows, lanes):
    metrics, compared, _ = loss_of_two_rows(states=states, direction=direction, estimator='sampled')
    log_ratio = (compared.logp - compared.reference_logp)[..., 0]
    sign = 1 if direction == 'policy_to_ref' else -1
    wanted = sign * log_ratio[np.ix_(rows, lanes)].mean()
    np.testing.assert_allclose(metrics['kl'], wanted, atol=1e-6)


def test_lambda_0_is_sail():
    # Whatever else the penalty's settings say.
    plain, *_ = loss_of_two_rows(coefficient=0.0)
    np.testing.assert_allclose(plain['objective'], plain['preference'], atol=1e-7)
    for settings in (
        {'states': 'reference', 'estimator': 'sampled'},
        {'direction': 'policy_to_ref', 'visitation_grad': True},
    ):
        other, *_ = loss_of_two_rows(coefficient=0.0, **settings)
        np.testing.assert_allclose(other['gradient'], plain['gradient'], atol=1e-7)
    assert np.abs(plain['gradient']).max() > 1e-3
    with_penalty, *_ = loss_of_two_rows()
    assert np.abs(with_penalty['gradient'] - plain['gradient']).max() > 1e-3
