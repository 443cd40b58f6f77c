"""Who acts in which row and lane of control, and whose pairs the labeller is asked about."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.control import policy as control_policy
from sail_jax.control import workload
from sail_jax.control.config import ControlRun
from sail_jax.core.types import Policies
from sail_jax.training import devices
from tests.support.toy import SETTINGS, Point

B, K, T, BUDGET = 24, 3, 3, 17
PAIRS = list(itertools.combinations(range(K), 2))


@pytest.fixture(scope='module')
def drawn():
    """A batch of all four members with a lane of the reference, for labels asked before it."""
    run = ControlRun.model_validate(
        SETTINGS
        | {
            'rollout': {'contexts': B, 'group_size': K, 'segment_length': T},
            'objective': {'mixture': {'dpr': 0.3, 'dpp': 0.2, 'ddp': 0.2}},
            'divergence': {'coefficient': 1.0, 'states': 'reference'},
            'labeller': {'max_labels': BUDGET},
        }
    )
    env = Point()
    networks = control_policy.make_networks(env, run)
    made = workload.make(env, networks, run, devices.make_mesh(B))
    init = lambda seed: control_policy.init(jax.random.key(seed), env, networks, run)
    policy, reference = init(0), init(1)
    contexts = made.init(jax.random.key(2))

    @jax.jit
    def sample(spent):
        policies = Policies(policy, reference)
        return made.sample(policies, contexts, jax.random.key(3), spent)

    batch = sample(jnp.int32(0)).batch
    logp = [
        control_policy.log_prob(
            control_policy.actions(networks, p, batch.inputs.obs), batch.inputs.raw_action
        )
        for p in (policy, reference)
    ]
    return jax.device_get(batch), np.asarray(logp), sample


def test_every_member_is_there(drawn):
    route = drawn[0].route
    members = set(zip(route.on_policy_B.tolist(), route.policy_label_B.tolist(), strict=True))
    assert len(members) == 4


def test_the_policy_acts_in_its_rows_and_the_reference_elsewhere(drawn):
    batch, (ours, theirs), _ = drawn
    by_policy = np.zeros((B, K + 1), bool)
    by_policy[:, :K] = batch.route.on_policy_B[:, None]
    behaviour = batch.behaviour_logp_BxLxT
    wanted = np.where(by_policy[..., None], ours, theirs)
    np.testing.assert_allclose(behaviour, wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(ours - theirs).reshape(B, -1).max(1).min() > 1e-2


def paid_for(asks_B, left):
    """The pairs that a budget covers, row by row; those that nobody is asked about are free."""
    weight = np.zeros((B, K, K))
    for row, (i, j) in itertools.product(range(B), PAIRS):
        if not asks_B[row] or left > 0:
            weight[row, i, j] = weight[row, j, i] = 1
            left -= bool(asks_B[row])
    return weight


@pytest.mark.parametrize('spent', [0, 5, BUDGET - 1, BUDGET])
def test_the_labeller_is_asked_about_the_rows_it_labels(drawn, spent):
    _, _, sample = drawn
    sampled = jax.device_get(sample(jnp.int32(spent)))
    asks_B = ~sampled.batch.route.policy_label_B
    assert 0 < asks_B.sum() < B
    assert asks_B.sum() not in (B - asks_B.sum(), sampled.batch.route.on_policy_B.sum())
    assert sampled.labels_asked == min(asks_B.sum() * len(PAIRS), BUDGET - spent)
    np.testing.assert_array_equal(
        sampled.batch.labels.weight_BxKxK, paid_for(asks_B, BUDGET - spent)
    )


def test_contexts_go_on_from_the_groups_lanes_and_not_the_references(drawn):
    batch, _, sample = drawn
    obs, raw_action, _, mask = batch.inputs
    after = obs[:, :, -1] + 0.1 * np.tanh(raw_action[:, :, -1])
    position = np.asarray(sample(jnp.int32(0)).sampler.env_state.pipeline_state)
    went_on = mask.all((1, 2))
    same = np.isclose(after, position[:, None], atol=1e-5).all(-1)
    assert same[went_on, :K].any(1).all()
    assert not same[:, K].any()
    assert went_on.sum() > 18


def test_a_myopic_labeller_goes_by_what_it_sees():
    discount = 0.5
    run = ControlRun.model_validate(
        SETTINGS
        | {
            'rollout': {'contexts': 8, 'group_size': K, 'segment_length': 5},
            'labeller': {'discount': discount},
        }
    )
    env = Point(drift=0.05)
    networks = control_policy.make_networks(env, run)
    reward_of = lambda obs: np.sin(60 * obs)
    reward = lambda segment: jnp.sin(60 * segment.obs[:, 0])
    made = workload.make(env, networks, run, devices.make_mesh(8), reward)
    policy = control_policy.init(jax.random.key(0), env, networks, run)
    contexts = made.init(jax.random.key(2))
    # Some are cut off by the episode's limit, where the end is near.
    contexts = contexts._replace(clock_B=jnp.where(jnp.arange(8) % 2 == 0, 17, 0))
    sample = jax.jit(made.sample)
    batch = jax.device_get(
        sample(Policies(policy, policy), contexts, jax.random.key(3), jnp.int32(0)).batch
    )
    steps, lengths = reward_of(batch.inputs.obs[..., 0]), batch.mask_BxLxT.sum(-1)
    left = lengths[..., None] - 1 - np.arange(5)
    seen = (steps * discount ** np.maximum(left, 0) * batch.mask_BxLxT).sum(-1)
    order = lambda x: (1 + np.sign(x[:, :, None] - x[:, None, :])) / 2
    np.testing.assert_array_equal(batch.labels.prob_BxKxK, order(seen))
    assert (order(seen) != order((steps * batch.mask_BxLxT).sum(-1))).any()
    assert len(np.unique(lengths)) > 1
