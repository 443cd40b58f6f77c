"""The landscape study's numbers: every problem and objective at once, on the device.

Axes: P problems, O objectives (`OBJECTIVES`), S starts, N points of the ball, T + 1 iterates.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax.bandit import landscape
from sail_jax.bandit import problem as exact
from sail_jax.bandit.config import Landscape, StudySettings
from sail_jax.bandit.landscape import Ascent, Maximum
from sail_jax.bandit.problem import ExactObjective, Problem

OBJECTIVES = ('sail', 'ref_to_policy', 'policy_to_ref')
"""SAIL, and SAIL-RevKL by the direction of its penalty."""

SWEEP_POINTS = 256
"""Points of the ball for each of the sweep's objectives."""


def make_problems(run: StudySettings) -> Problem:
    """The run's problems, stacked on a leading axis.

    Raises:
      UserError: the user's file is not right.
    """
    if run.problems.path is not None:
        return jax.tree.map(lambda x: x[None], exact.load(run.problems.path))
    drawn = [
        exact.random(np.random.default_rng((run.seed, index)), run.problems)
        for index in range(run.problems.count)
    ]
    return jax.tree.map(lambda *x: np.stack(x), *drawn)


def make_objectives(beta: float, coefficient: float) -> ExactObjective:
    """One for each of `OBJECTIVES`, stacked."""
    return ExactObjective(
        beta=np.full(3, beta),
        ref_to_policy=np.array([0, coefficient, 0]),
        policy_to_ref=np.array([0, 0, coefficient]),
    )


def generator(run: StudySettings) -> np.random.Generator:
    """Of points and starts; drawn on the host, which spares their compilation."""
    return np.random.default_rng((run.seed, 2**31))


class Measured(NamedTuple):
    """What is measured of each problem and objective."""

    curvature: jax.Array
    """Largest Hessian eigenvalue in the ball, [P, O]; below 0 is strong concavity."""
    certified: jax.Array
    """The proven bound on lambda of `ref_to_policy`, [P, O]."""
    smoothness: jax.Array
    """Largest absolute Hessian eigenvalue at the points, [P, O]: L."""
    maxima: Maximum
    """Where the search from each start ended, [P, O, S]."""
    best: jax.Array
    """J*, [P, O]."""
    path: Ascent
    """Ascent from each start, [P, O, S, T + 1], without theta."""
    point_curvature: jax.Array
    """Largest Hessian eigenvalue at each point of the ball, [P, O, N]."""
    point_value: jax.Array
    """J_lambda at each point, [P, O, N]."""
    point_pl_gain: jax.Array
    """See `Ascent.pl_gain`, [P, O, N]."""


class Points(NamedTuple):
    """Where in the ball it is measured."""

    starts_SxD: jax.Array
    """Of ascent and of the search for maxima."""
    points_NxD: jax.Array
    """Of curvature and PL ratio."""
    moves_RxMxD: jax.Array
    """From the points to a larger curvature; see `landscape.search_moves`."""


@partial(jax.jit, static_argnames=('radius', 'iterations'))
def _measure(
    problems: Problem, objectives: ExactObjective, points: Points, radius: float, iterations: int
) -> Measured:
    starts_SxD, points_NxD, moves_RxMxD = points

    def one(problem: Problem, objective: ExactObjective) -> Measured:
        curvature, ends_Nx2 = landscape.largest_over_ball(
            lambda theta: landscape.eigenvalues(problem, objective, theta)[jnp.array([-1, 0])],
            points_NxD,
            moves_RxMxD,
            radius,
        )
        smoothness = jnp.abs(ends_Nx2).max()
        maxima = jax.vmap(lambda start: landscape.search(problem, objective, start, radius))(
            starts_SxD
        )
        path = jax.vmap(
            lambda start: landscape.ascend(
                problem, objective, start, radius, smoothness, iterations
            )
        )(starts_SxD)

        def at(theta_D):
            value, grad_D = exact.value_and_grad(problem, objective, theta_D)
            return value, landscape.pl_gain(theta_D, grad_D, radius, smoothness)[0]

        value_N, gain_N = jax.vmap(at)(points_NxD)
        return Measured(
            curvature=curvature,
            certified=landscape.certified_coefficient(problem, objective.beta, radius),
            smoothness=smoothness,
            maxima=maxima,
            best=jnp.maximum(maxima.value.max(), path.value.max()),
            path=path._replace(theta=None),
            point_curvature=ends_Nx2[:, 0],
            point_value=value_N,
            point_pl_gain=gain_N,
        )

    over_objectives = jax.vmap(one, in_axes=(None, 0))
    return jax.vmap(over_objectives, in_axes=(0, None))(problems, objectives)


def measure(problems: Problem, run: Landscape) -> tuple[Measured, np.ndarray]:
    """Measures all problems under the run's three objectives.

    Returns:
      The measurements, and the points of the ball, [N, D].
    """
    rng, dimension = generator(run), problems.features_XxYxD.shape[-1]
    points_NxD = landscape.ball_and_surface(rng, run.points, dimension, run.radius)
    points = Points(
        starts_SxD=jnp.asarray(landscape.ball(rng, run.starts, dimension, run.radius)),
        points_NxD=jnp.asarray(points_NxD),
        moves_RxMxD=jnp.asarray(landscape.search_moves(rng, dimension, run.radius)),
    )
    objectives = make_objectives(run.beta, run.coefficient)
    measured = _measure(problems, objectives, points, run.radius, run.iterations)
    return jax.device_get(measured), points_NxD


class Swept(NamedTuple):
    """The grid of the sweep: b betas, l lambdas, 2 directions."""

    sharp: jax.Array
    """Lambda above which `ref_to_policy` is strongly concave on the ball, [P, b]."""
    certified: jax.Array
    """The proven bound of that lambda, [P, b]."""
    curvature: jax.Array
    """Largest Hessian eigenvalue at the points, first problem, [2, b, l]."""
    spread: jax.Array
    """Highest minus lowest local maximum over the starts, first problem, [2, b, l]."""
    pl_ratio: jax.Array
    """Smallest PL ratio at the points, first problem, [2, b, l]."""


@partial(jax.jit, static_argnames='radius')
def _thresholds(
    problems: Problem,
    betas: jax.Array,
    points_NxD: jax.Array,
    moves_RxMxD: jax.Array,
    radius: float,
) -> tuple[jax.Array, jax.Array]:
    def one(problem: Problem, beta: jax.Array):
        sharp, _ = landscape.largest_over_ball(
            lambda theta: landscape.sharp_coefficient(problem, beta, theta)[None],
            points_NxD,
            moves_RxMxD,
            radius,
        )
        return sharp, landscape.certified_coefficient(problem, beta, radius)

    return jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))(problems, betas)


@partial(jax.jit, static_argnames='radius')
def _grid(
    problem: Problem,
    objectives: ExactObjective,
    starts_SxD: jax.Array,
    points_NxD: jax.Array,
    radius: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    def one(objective: ExactObjective):
        def at(theta_D):
            value, grad_D = exact.value_and_grad(problem, objective, theta_D)
            return landscape.eigenvalues(problem, objective, theta_D), value, grad_D

        eigenvalues_NxD, value_N, grad_NxD = jax.vmap(at)(points_NxD)
        smoothness = jnp.abs(eigenvalues_NxD).max()
        gain_N, _ = jax.vmap(landscape.pl_gain, in_axes=(0, 0, None, None))(
            points_NxD, grad_NxD, radius, smoothness
        )
        maxima = jax.vmap(lambda start: landscape.search(problem, objective, start, radius, 200))(
            starts_SxD
        )
        best = jnp.maximum(maxima.value.max(), value_N.max())
        ratio_N = gain_N / jnp.maximum(best - value_N, landscape.GAP_FLOOR)
        return eigenvalues_NxD[:, -1].max(), best - maxima.value.min(), ratio_N.min()

    return jax.vmap(one)(objectives)


def sweep(problems: Problem, run: Landscape) -> Swept:
    """Where strong concavity, PL and the single maximum end, as beta and lambda change."""
    rng, dimension = generator(run), problems.features_XxYxD.shape[-1]
    points_NxD = landscape.ball_and_surface(rng, SWEEP_POINTS, dimension, run.radius)
    moves_RxMxD = landscape.search_moves(rng, dimension, run.radius)
    betas, coefficients = np.array(run.sweep.betas), np.array(run.sweep.coefficients)
    sharp, certified = _thresholds(problems, betas, points_NxD, moves_RxMxD, run.radius)
    grid = np.stack(np.meshgrid(betas, coefficients, indexing='ij'), -1).reshape(-1, 2)
    beta, coefficient = np.tile(grid, (2, 1)).T
    by_reference = np.arange(len(beta)) < len(grid)
    objectives = ExactObjective(
        beta=beta,
        ref_to_policy=np.where(by_reference, coefficient, 0),
        policy_to_ref=np.where(by_reference, 0, coefficient),
    )
    numbers = _grid(
        jax.tree.map(lambda x: x[0], problems),
        objectives,
        landscape.ball(rng, run.sweep.starts, dimension, run.radius),
        points_NxD,
        run.radius,
    )
    shape = (2, len(betas), len(coefficients))
    return jax.device_get(Swept(sharp, certified, *(x.reshape(shape) for x in numbers)))


class Slice(NamedTuple):
    """A plane through the ball's centre, and ascent within it."""

    axis: np.ndarray
    """Coordinates of the grid, [G]."""
    value: np.ndarray
    """J_lambda on the grid, [O, G, G], rows along the second coordinate."""
    path: np.ndarray
    """Ascent from starts in the plane, [O, S, T + 1, 2]."""
    maxima: list[np.ndarray]
    """Distinct local maxima in the plane of each objective, [count, 2]."""


def distinct(maxima: Maximum, radius: float) -> np.ndarray:
    """Indices of the searches' distinct local maxima, best first; unfinished searches do not count.

    Args:
      maxima: of one problem and objective, [S].
    """
    theta, residual = np.asarray(maxima.theta), np.asarray(maxima.residual)
    kept: list[int] = []
    for index in np.argsort(-np.asarray(maxima.value)):
        apart = [np.linalg.norm(theta[index] - theta[other]) for other in kept]
        if residual[index] < 1e-6 and min(apart, default=np.inf) > 0.02 * radius:
            kept.append(int(index))
    return np.array(kept, int)


def plane_of(maxima: Maximum, radius: float) -> np.ndarray:
    """An orthonormal basis [D, 2] of the plane through two of the searches' maxima, or one; where
    no search came to its end, through the highest point that one has reached.

    Args:
      maxima: as of `distinct`.
    """
    found = distinct(maxima, radius)
    theta = np.asarray(maxima.theta)[found if len(found) else [np.argmax(maxima.value)]]
    # Of all pairs the one closest to a right angle spans the plane best.
    angle = np.abs(theta @ theta.T) / np.maximum(
        np.linalg.norm(theta, axis=1)[:, None] * np.linalg.norm(theta, axis=1), 1e-12
    )
    i, j = np.unravel_index(np.argmin(angle), angle.shape)
    second = theta[j] if i != j else np.eye(theta.shape[1])[0]
    return np.linalg.qr(np.stack([theta[i], second], 1))[0]


def slice_through_maxima(
    problems: Problem, measured: Measured, run: Landscape, size: int = 121, starts: int = 24
) -> Slice:
    """The first problem on the plane through the origin and two of SAIL's maxima.

    On a plane through the origin, theta = basis @ u, a log-linear problem is again a log-linear
    problem, with features `phi @ basis` and the same ball. So the paths lie in the plane, and the
    two maxima are maxima of the full problem.
    """
    problem = jax.tree.map(lambda x: x[0], problems)
    basis_Dx2 = plane_of(jax.tree.map(lambda x: x[0, 0], measured.maxima), run.radius)
    plane = problem._replace(features_XxYxD=problem.features_XxYxD @ basis_Dx2)
    axis = np.linspace(-run.radius, run.radius, size)
    grid = np.stack(np.meshgrid(axis, axis), -1)
    starts_Sx2 = landscape.ball(generator(run), starts, 2, run.radius)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, 0, None, None, None))
    def one(objective: ExactObjective, smoothness: jax.Array, plane, grid, starts_Sx2):
        value = jax.vmap(jax.vmap(partial(exact.value, plane, objective)))(grid)
        path = jax.vmap(
            lambda u: (
                landscape.ascend(plane, objective, u, run.radius, smoothness, run.iterations).theta
            )
        )(starts_Sx2)
        maxima = jax.vmap(lambda u: landscape.search(plane, objective, u, run.radius))(starts_Sx2)
        return value, path, maxima

    value, path, maxima = one(
        make_objectives(run.beta, run.coefficient),
        measured.smoothness[0],
        plane,
        grid,
        starts_Sx2,
    )
    each = [jax.tree.map(lambda x, o=o: x[o], maxima) for o in range(len(OBJECTIVES))]
    return Slice(
        axis=axis,
        value=np.asarray(value),
        path=np.asarray(path),
        maxima=[np.asarray(ends.theta)[distinct(ends, run.radius)] for ends in each],
    )
