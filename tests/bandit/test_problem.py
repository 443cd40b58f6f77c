"""The exact problem against brute force, finite differences and closed forms."""

import io
import itertools
import math
import os
import pickle
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from sail_jax.bandit import problem as exact
from sail_jax.bandit.config import Problems
from sail_jax.bandit.problem import ExactObjective
from sail_jax.errors import UserError

SIZES = Problems(contexts=3, responses=4, features=3)
OBJECTIVES = [
    ExactObjective(0.1),
    ExactObjective(0.7, ref_to_policy=0.3),
    ExactObjective(0.7, policy_to_ref=0.3),
]


pytestmark = pytest.mark.usefixtures('x64')


@pytest.fixture
def problem():
    return exact.random(np.random.default_rng(3), SIZES)


THETA = np.array([0.8, -1.3, 2.1])
value_of, value_and_grad, hessian_of = map(
    jax.jit, (exact.value, exact.value_and_grad, exact.hessian)
)


def brute_force(problem, objective, theta):
    """J_lambda by loops over contexts and ordered pairs, from the definitions alone."""
    total = 0.0
    for features, reward, reference_logp in zip(*map(np.asarray, problem), strict=True):
        weight = [math.exp(row @ theta) for row in features]
        prob = [w / sum(weight) for w in weight]
        reference = [math.exp(x) for x in reference_logp]
        h = [objective.beta * math.log(p / q) for p, q in zip(prob, reference, strict=True)]
        for a, b in itertools.product(range(len(prob)), repeat=2):
            wins = 1 / (1 + math.exp(reward[b] - reward[a]))
            likely = 1 / (1 + math.exp(h[b] - h[a]))
            f = wins * math.log(likely) + (1 - wins) * math.log(1 - likely)
            total += prob[a] * prob[b] * f
        for p, q in zip(prob, reference, strict=True):
            total -= objective.ref_to_policy * q * math.log(q / p)
            total -= objective.policy_to_ref * p * math.log(p / q)
    return total / len(problem.reward_XxY)


@pytest.mark.parametrize('objective', OBJECTIVES)
def test_value_is_that_of_brute_force(problem, objective):
    expected = brute_force(problem, objective, THETA)
    assert value_of(problem, objective, THETA) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize('objective', OBJECTIVES)
def test_gradient_and_hessian_are_finite_differences(problem, objective):
    steps = 1e-5 * np.eye(3)
    value = lambda theta: float(value_of(problem, objective, theta))
    grad = lambda theta: np.asarray(value_and_grad(problem, objective, theta)[1])
    difference = [(value(THETA + step) - value(THETA - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(grad(THETA), difference, rtol=0, atol=1e-9)
    difference = [(grad(THETA + step) - grad(THETA - step)) / 2e-5 for step in steps]
    hessian = hessian_of(problem, objective, THETA)
    np.testing.assert_allclose(hessian, difference, rtol=0, atol=1e-9)


def test_feature_covariance_is_the_hessian_of_the_papers_kl(problem):
    with_kl = hessian_of(problem, ExactObjective(0.4, ref_to_policy=1.0), THETA)
    without = hessian_of(problem, ExactObjective(0.4), THETA)
    covariance = jax.jit(exact.feature_covariance)(problem, THETA)
    np.testing.assert_allclose(without - with_kl, covariance, rtol=0, atol=1e-14)


def test_kl_vanishes_at_the_reference():
    """Where the reference is the policy of theta, J_lambda is J and its KL gradient is 0."""
    problem = exact.random(np.random.default_rng(0), SIZES)
    problem = problem._replace(reference_logp_XxY=jax.jit(exact.log_prob)(problem, THETA))
    value, grad = value_and_grad(problem, ExactObjective(0.2), THETA)
    assert value == pytest.approx(-math.log(2), rel=1e-13)
    for objective in (
        ExactObjective(0.2, ref_to_policy=5.0),
        ExactObjective(0.2, policy_to_ref=5.0),
    ):
        penalised, penalised_grad = value_and_grad(problem, objective, THETA)
        assert penalised == pytest.approx(float(value), rel=1e-13)
        np.testing.assert_allclose(penalised_grad, grad, rtol=0, atol=1e-13)


def test_loads_a_users_problem(tmp_path):
    rng = np.random.default_rng(0)
    features, reward = rng.normal(size=(2, 3, 2)).astype(np.float32), rng.integers(5, size=(2, 3))
    np.savez(tmp_path / 'a.npz', features=features, reward=reward)
    problem = exact.load(tmp_path / 'a.npz')
    assert all(array.dtype == np.float64 for array in problem)
    np.testing.assert_array_equal(problem.features_XxYxD, features)
    np.testing.assert_array_equal(problem.reward_XxY, reward)
    np.testing.assert_allclose(np.exp(problem.reference_logp_XxY), 1 / 3)


GOOD = {
    'features': np.arange(12.0).reshape(2, 3, 2),
    'reward': np.zeros((2, 3)),
    'reference': np.full((2, 3), 1 / 3),
}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'reward': None}, "no array 'reward'"),
        ({'features': None}, "no array 'features'"),
        ({'rewards': np.zeros((2, 3))}, "unknown array 'rewards'"),
        ({'features': np.zeros((3, 2))}, r'features: shape \(3, 2\)'),
        ({'features': np.zeros((2, 1, 2))}, 'at least 2 responses'),
        ({'features': np.zeros((0, 3, 2))}, 'expected'),
        ({'reward': np.zeros((3, 2))}, r'reward: shape \(3, 2\); expected \(2, 3\)'),
        ({'reward': np.full((2, 3), np.nan)}, 'reward: not all finite'),
        ({'reward': np.full((2, 3), np.longdouble('1e4000'))}, 'reward: not all finite'),
        ({'features': np.full((2, 3, 2), 1e200)}, 'features: not all finite in float32'),
        ({'features': np.full((2, 3, 2), [[[1.0, 2.0]], [[3.0, 4.0]]])}, 'features: the same for'),
        ({'reward': np.full((2, 3), 'a')}, 'reward: type <U1'),
        ({'reward': np.full((2, 3), None)}, 'not an .npz of plain arrays'),
        ({'features': np.zeros((2, 3, 2), complex)}, 'features: type complex128'),
        ({'reference': np.array([[0.5, 0.5, 0]] * 2)}, 'must be above 0'),
        ({'reference': np.array([[0.3] * 3, [0.4] * 3])}, 'sums to 1.2 in context 1'),
    ],
)
def test_bad_problems_get_one_line(tmp_path, change, message):
    arrays = {key: value for key, value in (GOOD | change).items() if value is not None}
    path = tmp_path / 'bad.npz'
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=message) as error:
        exact.load(path)
    assert str(error.value).startswith(str(path))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'content', [None, b'', b'no zip', b'PK\x03\x04 cut', 'npy', 'cut', 'bytes']
)
def test_files_that_are_no_npz_get_one_line(tmp_path, content):
    path = tmp_path / 'bad.npz'
    if content == 'npy':
        with path.open('wb') as file:
            np.save(file, np.zeros(3))
    elif content == 'bytes':
        with zipfile.ZipFile(path, 'w') as file:
            file.writestr('features.npy', 'no array')
            file.writestr('reward.npy', 'nor this')
    elif content == 'cut':
        np.savez_compressed(path, **GOOD)
        path.write_bytes(path.read_bytes()[:-30])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        exact.load(path)
    assert '\n' not in str(error.value)


def refuse(path, message):
    with pytest.raises(UserError, match=message) as error:
        exact.load(path)
    assert str(error.value).startswith(str(path))
    assert '\n' not in str(error.value)


class Touch:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path):
    path, marker = tmp_path / 'bad.npz', tmp_path / 'ran'
    np.savez(path, **GOOD | {'reward': np.array([[Touch(marker)]], dtype=object)})
    refuse(path, r'not an \.npz of plain arrays \(Object arrays cannot be loaded')
    path.write_bytes(pickle.dumps(Touch(marker)))
    refuse(path, r'not an \.npz of plain arrays')
    assert not marker.exists()


@pytest.mark.parametrize('shape', [(2**50,), (10**30, 3, 2), (2**40, 2**40, 2), (-1,)])
def test_absurd_headers_get_one_line(tmp_path, shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {'descr': '<f8', 'fortran_order': False, 'shape': shape}
    )
    path = tmp_path / 'bad.npz'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('features.npy', header.getvalue() + bytes(96))
    refuse(path, r'not an \.npz of plain arrays')


@pytest.mark.parametrize('packed', [False, True])
def test_what_is_larger_than_any_problem_is_not_read(tmp_path, packed):
    path = tmp_path / 'bad.npz'
    if not packed:
        path.touch()
        os.truncate(path, exact.MAX_PROBLEM + 1)
        refuse(path, f'over {exact.MAX_PROBLEM} bytes')
        return
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('features.npy', bytes(100))
    said = bytearray(path.read_bytes())
    # What the directory at the end says of the size unpacked.
    at = said.rindex(b'PK\x01\x02') + 24
    said[at : at + 4] = (exact.MAX_PROBLEM + 1).to_bytes(4, 'little')
    path.write_bytes(said)
    refuse(path, f'{exact.MAX_PROBLEM + 1} bytes unpacked; at most {exact.MAX_PROBLEM}')


def test_what_is_no_file_is_not_read(tmp_path):
    path = tmp_path / 'bad.npz'
    path.symlink_to('/dev/null')
    refuse(path, 'not a regular file')
