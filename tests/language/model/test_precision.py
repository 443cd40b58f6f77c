"""Settings that trade memory or precision for time change no more than they may."""

import jax
import numpy as np
import pytest

from sail_jax.language import task
from sail_jax.sweep import Members
from sail_jax.training import setup
from tests.support import small

NAMES = ('objective', 'preference', 'kl', 'margin', 'grad_norm')


@pytest.fixture(scope='module')
def learned(tmp_path_factory):
    """`model settings -> metrics of three updates`, on pairs, which no sampling changes."""
    path = tmp_path_factory.mktemp('precision')
    checkpoint = small.checkpoint(path / 'model')
    pairs = small.data(path / 'pairs.jsonl', rows=24, pairs=True)

    def learn(**model) -> np.ndarray:
        run = small.run(
            checkpoint,
            pairs,
            model=model,
            objective={'mixture': {'dpr': 0}},
            divergence={'states': 'data', 'coefficient': 0.1},
        )
        made = task.make(run)
        state = setup.initial_state(Members.of(run), made, made.start(0), made.shared())
        rows = []
        for _ in range(3):
            state, metrics = made.dispatch(state)
            rows.append([float(metrics[name][0]) for name in NAMES])
        assert {x.dtype for x in jax.tree.leaves(state.policy.params)} == {np.dtype('float32')}
        return np.asarray(rows)

    return learn


@pytest.mark.slow
def test_recomputed_layers_have_the_losses_of_kept_ones(learned):
    np.testing.assert_allclose(learned(remat=True), learned(), rtol=1e-4, atol=1e-6)


def test_bfloat16_has_the_losses_of_float32(learned):
    exact = learned()
    assert np.ptp(exact[:, 0]) > 1e-3  # It learns.
    rounded = learned(dtype='bfloat16')
    assert np.abs(rounded - exact).max() > 1e-6
    # bfloat16 has 8 bits: 0.4 % a product. The loss is a difference of sums over a response.
    np.testing.assert_allclose(rounded[:, :4], exact[:, :4], rtol=0, atol=0.01)
