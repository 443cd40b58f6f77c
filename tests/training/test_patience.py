"""When evaluations get no better."""

import json
import math

import pytest

from sail_jax.training.patience import Patience


@pytest.mark.parametrize(
    ('worths', 'ended'),
    [
        ([1, 2, 3], [False, False, False]),
        ([1, 1, 1], [False, False, True]),
        ([2, 1, 3, 2, 3, 1], [False, False, False, False, True, True]),
        ([-math.inf, -math.inf, 1, 0], [False, True, False, False]),
    ],
)
@pytest.mark.parametrize('resumed', [False, True])
def test_it_ends_after_two_in_a_row_that_were_no_better(worths, ended, resumed):
    patience, said = Patience(2), []
    for worth in worths:
        patience.see(worth)
        said.append(patience.ended)
        if resumed:
            patience = Patience(2, json.loads(json.dumps(patience.kept)))
    assert said == ended


def test_without_a_number_it_never_ends():
    patience = Patience(None)
    for _ in range(100):
        patience.see(0)
    assert not patience.ended
