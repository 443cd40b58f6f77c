"""The check of shapes itself, which goes along with all tests of this folder."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax.core import objective
from tests.support.paths import ROOT
from tests.support.shapes import checked

HERE = Path(__file__)


class Pair(NamedTuple):
    x_BxK: object
    y_K: object


def add(x_BxK, y_K):
    sum_BxK = x_BxK + y_K
    return 2 * sum_BxK


def transpose(x_BxK):
    x_KxB = x_BxK
    return x_KxB.sum()


def count(x_BxK):
    B, K = x_BxK.shape[::-1]
    return B * K


def first(pair):
    return pair.x_BxK[0]


def make(x):
    return Pair(x, x[0])


def single(x_Bx1):
    return x_Bx1


WRONG = [
    (add, (np.ones((2, 3)), np.ones(1)), 'add: K is 3 in x_BxK and 1 in y_K'),
    (transpose, (np.ones((2, 3)),), 'transpose: K is 3 in x_BxK and 2 in x_KxB'),
    (count, (np.ones((2, 3)),), 'count: B is 2 in x_BxK and 3 in a variable'),
    (first, (Pair(np.ones((2, 3)), np.ones(2)),), 'K is 3 in pair.x_BxK and 2 in pair.y_K'),
    (make, (np.ones((2, 3, 1)),), r'make: result.x_BxK has shape \(2, 3, 1\)'),
    (single, (np.ones((2, 3)),), '1 is 1 in its name and 3 in x_Bx1'),
]


@pytest.mark.parametrize(
    ('function', 'given', 'said'), WRONG, ids=lambda x: getattr(x, '__name__', '')
)
def test_a_shape_that_a_name_does_not_have_is_told(function, given, said):
    with pytest.raises(AssertionError, match=said), checked(HERE):
        function(*given)


def test_names_that_are_right_pass_traced_or_not():
    with checked(HERE) as seen:
        add(np.ones((2, 3)), np.ones(3))
        jax.jit(add)(np.ones((2, 3)), np.ones(3))
        jax.vmap(add, (0, None))(np.ones((5, 2, 3)), np.ones(3))
        make(np.ones((2, 3)))
    assert seen == {'add', 'make'}


def test_what_other_folders_hold_is_not_looked_at():
    with checked(ROOT / 'sail_jax' / 'core') as seen:
        transpose(np.ones((2, 3)))
        objective.margins(jnp.zeros((2, 3)), 0.1)
    assert seen == {'margins'}
