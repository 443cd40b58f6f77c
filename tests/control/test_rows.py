"""Who acts in which row and lane of control, and whose pairs the labeller is asked about."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax import devices
from sail_jax.control import policy as control_policy
from sail_jax.control import workload
from sail_jax.control.config import ControlRun
from tests.control.toy import SETTINGS, Point

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
    init = lambda seed: control_policy.init(jax.random.key(seed), env, networks, run)  # noqa: E731
    policy, reference = init(0), init(1)
    contexts = made.init(jax.random.key(2))

    @jax.jit
    def sample(spent):
        return made.sample(policy, reference, contexts, jax.random.key(3), spent)

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
