"""Curvature, PL and ascent on problems small enough to check otherwise."""

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sail_jax.bandit import figures, landscape, measure, study
from sail_jax.bandit import problem as exact
from sail_jax.bandit.config import Problems
from sail_jax.bandit.problem import ExactObjective

RADIUS = 3.0


def jit_vmap(function):
    return jax.jit(jax.vmap(function))


pytestmark = pytest.mark.usefixtures('x64')


@pytest.fixture
def problem():
    return exact.random(np.random.default_rng(1), Problems(contexts=2, responses=4, features=2))


@pytest.fixture
def points():
    return landscape.ball_and_surface(np.random.default_rng(2), 256, 2, RADIUS)


def spectra(problem, objective, points):
    return np.asarray(jit_vmap(partial(landscape.eigenvalues, problem, objective))(points))


def test_points_lie_in_the_ball_and_half_of_them_on_its_surface(points):
    length = np.linalg.norm(points, axis=1)
    assert np.isclose(length, RADIUS).sum() == 128
    assert (length <= RADIUS * (1 + 1e-12)).all()
    # Uniform in the disc: the share within half the radius is a quarter (128 draws, 4 sigma).
    assert abs((length[:128] < RADIUS / 2).mean() - 0.25) < 4 * (0.25 * 0.75 / 128) ** 0.5


@pytest.mark.parametrize('beta', [0.05, 1.0])
def test_sharp_coefficient_is_where_the_hessian_turns(problem, beta):
    theta = np.array([0.5, -1.0])
    sharp = float(jax.jit(landscape.sharp_coefficient)(problem, beta, theta))
    eigenvalues = jax.jit(landscape.eigenvalues)
    largest = lambda c: float(eigenvalues(problem, ExactObjective(beta, 1.0 * c), theta)[-1])
    assert abs(largest(sharp)) < 1e-12
    assert largest(sharp + 0.01) < 0 < largest(sharp - 0.01)


@pytest.mark.parametrize('beta', [0.02, 0.3, 2.0])
def test_above_the_certified_coefficient_every_hessian_is_negative(problem, points, beta):
    """The proof: Hessian J <= lambda_cert Cov everywhere, not only where J is smallest."""
    certified = float(jax.jit(landscape.certified_coefficient)(problem, beta, RADIUS))
    assert spectra(problem, ExactObjective(beta, ref_to_policy=certified), points).max() < 1e-12
    sharp = jit_vmap(partial(landscape.sharp_coefficient, problem, beta))(points)
    assert sharp.max() < certified


def test_search_over_the_ball_finds_a_grids_largest_value(problem, points):
    function = lambda theta: landscape.eigenvalues(problem, ExactObjective(0.5), theta)[-1:]
    moves = landscape.search_moves(np.random.default_rng(0), 2, RADIUS)
    largest, numbers = jax.jit(
        lambda points: landscape.largest_over_ball(function, points, moves, RADIUS)
    )(points)
    np.testing.assert_allclose(numbers, jit_vmap(function)(points), rtol=1e-12)
    axis = np.linspace(-RADIUS, RADIUS, 201)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    grid = grid[np.linalg.norm(grid, axis=1) <= RADIUS]
    on_grid = float(jit_vmap(function)(grid).max())
    assert on_grid - 1e-5 < float(largest) < on_grid + 1e-3


def test_pl_gain_is_half_the_squared_gradient_inside_and_zero_at_a_surface_maximum():
    grad = np.array([0.3, -0.4])
    pl_gain = jax.jit(landscape.pl_gain)
    gain, step = pl_gain(np.zeros(2), grad, RADIUS, 1.0)
    assert gain == pytest.approx(0.125)
    np.testing.assert_allclose(step, grad)
    outward = np.array([RADIUS, 0.0])
    gain, step = pl_gain(outward, np.array([2.0, 0.0]), RADIUS, 1.0)
    assert gain == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(step, 0, atol=1e-12)


def test_strong_concavity_bounds_the_pl_ratio_and_gives_one_maximum(problem, points):
    """mu-strong concavity: ratio >= mu at every point, and a linear rate of at most 1 - mu / L."""
    objective = ExactObjective(0.3, ref_to_policy=3.0)
    eigenvalues = spectra(problem, objective, points)
    mu, smoothness = -eigenvalues.max(), np.abs(eigenvalues).max()
    assert mu > 0
    starts = landscape.ball(np.random.default_rng(4), 16, 2, RADIUS)
    ends = jit_vmap(lambda start: landscape.search(problem, objective, start, RADIUS))(starts)
    assert np.ptp(ends.value) < 1e-13
    assert np.ptp(ends.theta, axis=0).max() < 1e-6
    best = float(ends.value.max())

    def ratio(theta):
        value, grad = exact.value_and_grad(problem, objective, theta)
        return landscape.pl_gain(theta, grad, RADIUS, smoothness)[0] / (best - value)

    assert jit_vmap(ratio)(points).min() >= mu

    paths = jit_vmap(
        lambda start: landscape.ascend(problem, objective, start, RADIUS, smoothness, 200)
    )(starts)
    gap = best - np.asarray(paths.value)
    bound = gap[:, :1] * (1 - mu / smoothness) ** np.arange(201)
    assert (gap <= bound + 1e-14).all()
    fits = [study.fit_rate(path) for path in gap]
    assert max(rate for rate, _ in fits) <= 1 - mu / smoothness


def test_search_stays_in_the_ball_and_never_goes_down(problem):
    objective = ExactObjective(1.0)
    starts = landscape.ball(np.random.default_rng(5), 32, 2, RADIUS)
    ends = jit_vmap(lambda start: landscape.search(problem, objective, start, RADIUS))(starts)
    assert np.linalg.norm(ends.theta, axis=1).max() <= RADIUS * (1 + 1e-12)
    before = jit_vmap(partial(exact.value, problem, objective))(starts)
    assert (ends.value >= before).all()
    assert ends.residual.max() < 1e-6


def test_fit_rate_recovers_a_geometric_sequence_and_refuses_a_stall():
    rate, r2 = study.fit_rate(0.3 * 0.8 ** np.arange(200.0))
    assert rate == pytest.approx(0.8)
    assert r2 == pytest.approx(1)
    assert study.fit_rate(np.full(200, 0.02)) is None


def test_where_no_search_came_to_its_end_the_slice_goes_through_the_highest_point():
    theta = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, -2.0]])
    maxima = landscape.Maximum(theta, np.array([0.0, 2.0, 1.0]), np.ones(3))
    inside = lambda x: np.linalg.norm(x @ basis) == pytest.approx(np.linalg.norm(x))
    basis = measure.plane_of(maxima, RADIUS)
    assert inside(theta[1])
    assert not inside(theta[2])
    basis = measure.plane_of(maxima._replace(residual=np.zeros(3)), RADIUS)
    assert sum(map(inside, theta)) == 2, 'two maxima'
    np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-12)


def test_paths_that_have_nowhere_to_go_are_drawn():
    path = SimpleNamespace(value=np.zeros((1, 3, 2, 21)))
    run = SimpleNamespace(iterations=20)
    assert figures.settled(SimpleNamespace(best=np.zeros((1, 3)), path=path), run) == 10


def test_a_slice_that_is_flat_is_drawn():
    axis = np.linspace(-1, 1, 5)
    plane = measure.Slice(axis, np.zeros((3, 5, 5)), np.zeros((3, 2, 4, 2)), [np.zeros((1, 2))] * 3)
    run = SimpleNamespace(radius=1.0)
    assert len(figures.slice_figure(plane, run).axes) == 3
