"""Bradley-Terry: its loss, how often it is right, and how sure it is."""

import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.core import bradley_terry

MARGIN = np.log([4.0, 1.5, 1.0, 9.0])
PROB, WEIGHT = np.asarray([1.0, 0.0, 1.0, 0.5]), np.ones(4)


def test_the_loss_is_minus_the_log_likelihood():
    got = bradley_terry.cross_entropy(jnp.asarray(MARGIN), jnp.asarray(PROB))
    first = np.asarray([0.8, 0.6, 0.5, 0.9])
    expected = -(PROB * np.log(first) + (1 - PROB) * np.log(1 - first))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize('xp', [np, jnp])
def test_right_and_sure_by_hand(xp):
    margin, prob, weight = map(xp.asarray, (MARGIN, PROB, WEIGHT))
    np.testing.assert_allclose(bradley_terry.right(margin, prob), [1, 0, 0.5, 0.5])
    # One right, one wrong, one undecided; "the same" does not count.
    assert bradley_terry.accuracy(margin, prob, weight) == pytest.approx(0.5)
    numbers = bradley_terry.calibration(margin, prob, weight)
    assert numbers['confidence'] == pytest.approx((0.8 + 0.6 + 0.5 + 0.9) / 4)
    # Each in a bin of its own.
    assert numbers['calibration_error'] == pytest.approx((0.2 + 0.6 + 0.0 + 0.4) / 4)


def test_an_accuracy_counts_labels_by_how_decided_they_are():
    got = bradley_terry.accuracy(np.ones(2), np.asarray([0.9, 0.4]), np.ones(2))
    assert got == pytest.approx(0.8 / (0.8 + 0.2))


def test_pairs_of_no_weight_do_not_count():
    weight = np.asarray([1.0, 0.0, 1.0, 0.0])
    kept = weight > 0
    for function in (bradley_terry.accuracy, bradley_terry.calibration):
        some = function(MARGIN, PROB, weight)
        assert some == function(MARGIN[kept], PROB[kept], weight[kept])
    nothing = bradley_terry.calibration(MARGIN, PROB, 0 * weight)
    assert nothing == {'confidence': 0, 'calibration_error': 0}
    assert bradley_terry.accuracy(MARGIN, PROB, 0 * weight) == 0
