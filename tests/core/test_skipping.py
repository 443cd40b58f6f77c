"""A loss that is not finite is not learned from, whatever its gradient is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.core import update
from tests.support import bandit_workload, exact

PROBLEM = exact.problem(seed=1, contexts=4, responses=3, features=2)


@pytest.mark.parametrize('value', [0.0, np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_skipped_though_its_gradient_is(value):
    run = bandit_workload.run()
    # A constant: it is in the loss, and in no gradient.
    constant = lambda policies, inputs, steps: (jnp.float32(value), {})
    workload = bandit_workload.make(PROBLEM, run)._replace(auxiliary_loss=constant)
    state = bandit_workload.start(workload, run, np.ones(2))
    before = jax.device_get(state)
    after, rows = update.make_dispatch(workload, run, 1)(state)
    assert np.isfinite(rows['grad_norm']).all()
    same = np.array_equal(after.policy.params['theta'], before.policy.params['theta'])
    assert same == (not np.isfinite(value))
    assert int(after.skipped) == int(same)
