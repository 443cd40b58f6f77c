r"""Curvature, Polyak-Lojasiewicz ratio, maxima and ascent on a ball.

Everything is relative to the ball `|theta| <= R`, convex, which is where the theory speaks.
J* is the maximum over the ball.

**PL on a bounded set.** The condition on the whole space is `|grad|^2 / 2 >= mu (J* - J)`. On a
ball the gradient does not vanish at a maximum on the surface, so the ratio reported here is the
proximal one of Karimi, Nutini and Schmidt (2016, arXiv 1608.04636, eq. 13),

    ratio(theta) = D(theta) / (2 (J* - J(theta))),
    D(theta) = 2 L max_{y in ball} [grad . (y - theta) - L/2 |y - theta|^2].

The maximum is at `y = project(theta + grad / L)`, one step of projected ascent. Where that step
stays inside the ball, `D = |grad|^2` and the ratio is the plain one; elsewhere it is smaller. If
J has an L-Lipschitz gradient and the ratio is at least mu on the ball, then

    J* - J(theta_t) <= (1 - mu / L)^t (J* - J(theta_0)).

**Strong concavity gives PL.** If every Hessian eigenvalue in the ball is at most `-mu < 0`, then
`J* <= J + grad . (theta* - theta) - mu/2 |theta* - theta|^2`, which is at most
`J + D_mu / (2 mu)`, with `D_mu` the same maximum for mu in place of L. `D_L >= D_mu` for
`L >= mu` (Karimi et al., lemma 1), so the ratio is at least mu: the theoretical bound of the
figures is the strong-concavity margin.

**A certificate for lambda, `ref_to_policy`.** Write `D_ab = beta (theta . Delta - l)` with
`Delta = phi_a - phi_b` and l the log-ratio of the reference: affine in theta, as log pi's
normaliser cancels. With `f` the preference term, `s = grad log(pi_a pi_b)` and
`C = Cov_theta(phi)`, differentiating `J = E_x sum_ab pi_a pi_b f_ab` twice gives

    Hessian J = E_x E_ab [beta^2 f'' Delta Delta^T + beta f' (s Delta^T + Delta s^T)
                          + f (s s^T - 2 C)],    E_ab s s^T = E_ab Delta Delta^T = 2 C.

Along any v: `f'' <= -h` bounds the first part by `-2 beta^2 h v.C.v`; `|f'| <= g` and
Cauchy-Schwarz the second by `4 beta g v.C.v`; and since the mean of `s s^T - 2 C` is zero, f may be
taken relative to its mean, which bounds the third by `2 osc v.C.v`. Hence
`Hessian J <= E_x lambda_x C_x` with `lambda_x = 2 osc + 4 beta g - 2 beta^2 h`, where osc, g and h
are the oscillation of f, the largest |f'| and the smallest |f''| over the ball and all pairs. The
Hessian of `KL(pi_ref || pi)` is `E_x C_x` exactly, so **for every
`lambda > max_x lambda_x =: lambda_cert` J_lambda is strongly concave on the ball**, with margin
`(lambda - lambda_cert) min_theta eig_min(E_x C_x)`. The sharp threshold is the largest
generalised eigenvalue of the pencil (Hessian J, E_x C_x) in the ball: `sharp_coefficient`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax.bandit import problem as exact
from sail_jax.bandit.problem import ExactObjective, Problem
from sail_jax.core import optimizer

GAP_FLOOR = 1e-12
"""`J* - J` below this is rounding."""


def ball(rng: np.random.Generator, count: int, dimension: int, radius: float) -> np.ndarray:
    """Points uniform in the ball, [count, dimension]."""
    length_Nx1 = rng.uniform(size=(count, 1)) ** (1 / dimension)
    return radius * length_Nx1 * _directions(rng, count, dimension)


def ball_and_surface(
    rng: np.random.Generator, count: int, dimension: int, radius: float
) -> np.ndarray:
    """Points of which half are uniform in the ball and half on its surface."""
    inner = ball(rng, count // 2, dimension, radius)
    return np.concatenate([inner, radius * _directions(rng, count - count // 2, dimension)])


def _directions(rng: np.random.Generator, count: int, dimension: int) -> np.ndarray:
    normal = rng.normal(size=(count, dimension))
    return normal / np.linalg.norm(normal, axis=-1, keepdims=True)


class Ascent(NamedTuple):
    """Ascent from one start: the start and every iterate, [T + 1, ...]."""

    theta: jax.Array
    value: jax.Array
    pl_gain: jax.Array
    """`D(theta) / 2`, what the PL ratio has above the gap `J* - J`."""


def pl_gain(theta_D: jax.Array, grad_D: jax.Array, radius: float, smoothness: jax.Array):
    """`D(theta) / 2` of the module's docstring, and the step of projected ascent that attains it.

    Returns:
      `(gain, step)`, shapes () and [D].
    """
    step_D = optimizer.project(theta_D + grad_D / smoothness, radius) - theta_D
    return smoothness * (grad_D @ step_D - smoothness / 2 * step_D @ step_D), step_D


def ascend(
    problem: Problem,
    objective: ExactObjective,
    start_D: jax.Array,
    radius: float,
    smoothness: jax.Array,
    iterations: int,
) -> Ascent:
    """Projected gradient ascent with step `1 / smoothness`."""

    def step(theta_D, _):
        value, grad_D = exact.value_and_grad(problem, objective, theta_D)
        gain, step_D = pl_gain(theta_D, grad_D, radius, smoothness)
        return theta_D + step_D, Ascent(theta=theta_D, value=value, pl_gain=gain)

    _, path = jax.lax.scan(step, start_D, length=iterations + 1)
    return path


class Maximum(NamedTuple):
    """Where a search ended."""

    theta: jax.Array
    value: jax.Array
    residual: jax.Array
    """Length of the projected gradient; 0 at a stationary point of the ball."""


def search(
    problem: Problem,
    objective: ExactObjective,
    start_D: jax.Array,
    radius: float,
    iterations: int = 300,
) -> Maximum:
    """The local maximum above a start, by projected ascent that never goes down.

    Steps have Barzilai and Borwein's length (1988), and a quarter of it after one that failed.
    """

    def step(carry, _):
        theta_D, value, grad_D, length = carry
        new_D = optimizer.project(theta_D + length * grad_D, radius)
        new_value, new_grad_D = exact.value_and_grad(problem, objective, new_D)
        move_D, bend_D = new_D - theta_D, grad_D - new_grad_D
        curvature = jnp.abs(move_D @ bend_D)
        secant = move_D @ move_D / jnp.maximum(curvature, 1e-300)
        up = new_value >= value
        length = jnp.where(up, jnp.clip(secant, 1e-2, 1e4), length / 4)
        keep = lambda new, old: jnp.where(up, new, old)
        return (keep(new_D, theta_D), keep(new_value, value), keep(new_grad_D, grad_D), length), ()

    first = (start_D, *exact.value_and_grad(problem, objective, start_D), jnp.ones(()))
    (theta_D, value, grad_D, _), _ = jax.lax.scan(step, first, length=iterations)
    residual = jnp.linalg.norm(optimizer.project(theta_D + grad_D, radius) - theta_D)
    return Maximum(theta=theta_D, value=value, residual=residual)


def search_moves(
    rng: np.random.Generator, dimension: int, radius: float, rounds: int = 20, kept: int = 64
) -> np.ndarray:
    """Moves for `largest_over_ball`, shorter from round to round, [rounds, kept, dimension]."""
    scale = radius * np.geomspace(0.2, 1e-3, rounds)
    return scale[:, None, None] * rng.normal(size=(rounds, kept, dimension))


def largest_over_ball(
    function: Callable[[jax.Array], jax.Array],
    points_NxD: jax.Array,
    moves_RxMxD: jax.Array,
    radius: float,
) -> tuple[jax.Array, jax.Array]:
    """The largest value of a function in the ball: points, then local random search.

    A lower bound of the supremum, which the search makes tight in few dimensions.

    Args:
      function: of one theta; the first of the numbers that it returns, [F], is what counts.
      points_NxD: where to begin; N is a multiple of M.
      moves_RxMxD: see `search_moves`.

    Returns:
      The largest value, and the function at the points, [N, F].
    """
    M, D = moves_RxMxD.shape[1:]
    blocks_GxMxD = points_NxD.reshape(-1, M, D)
    project = jax.vmap(lambda point: optimizer.project(point, radius))

    def improve(carry, at):
        best_MxD, value_M = carry
        block_MxD, fresh = at
        # One loop for both phases, so that the function is compiled once.
        new_MxD = jnp.where(fresh, block_MxD, project(best_MxD + block_MxD))
        numbers_MxF = jax.vmap(function)(new_MxD)
        new_M = numbers_MxF[:, 0]
        # A fresh point competes with all that are kept, a moved one with where it came from.
        both_MxD = jnp.concatenate([best_MxD, new_MxD])
        _, top = jax.lax.top_k(jnp.concatenate([value_M, new_M]), M)
        better = jnp.where(new_M > value_M, jnp.arange(M) + M, jnp.arange(M))
        chosen = jnp.where(fresh, top, better)
        value_M = jnp.concatenate([value_M, new_M])[chosen]
        return (both_MxD[chosen], value_M), numbers_MxF

    at = (
        jnp.concatenate([blocks_GxMxD, moves_RxMxD]),
        jnp.arange(len(blocks_GxMxD) + len(moves_RxMxD)) < len(blocks_GxMxD),
    )
    first = (jnp.zeros((M, D)), jnp.full(M, -jnp.inf))
    (_, value_M), numbers = jax.lax.scan(improve, first, at)
    return value_M.max(), numbers[: len(blocks_GxMxD)].reshape(len(points_NxD), -1)


def eigenvalues(problem: Problem, objective: ExactObjective, theta_D: jax.Array) -> jax.Array:
    """Of the Hessian of J_lambda, ascending, [D]."""
    return jnp.linalg.eigvalsh(exact.hessian(problem, objective, theta_D))


def sharp_coefficient(
    problem: Problem, beta: jax.typing.ArrayLike, theta_D: jax.Array
) -> jax.Array:
    """The lambda above which `J - lambda KL(pi_ref || pi)` is strongly concave at theta.

    NaN where the features do not span: no lambda is enough there.
    """
    root_DxD = jnp.linalg.cholesky(exact.feature_covariance(problem, theta_D))
    half_DxD = jax.scipy.linalg.solve_triangular(
        root_DxD, exact.hessian(problem, ExactObjective(beta), theta_D), lower=True
    )
    pencil_DxD = jax.scipy.linalg.solve_triangular(root_DxD, half_DxD.T, lower=True)
    return jnp.linalg.eigvalsh((pencil_DxD + pencil_DxD.T) / 2)[-1]


def certified_coefficient(problem: Problem, beta: jax.typing.ArrayLike, radius: float) -> jax.Array:
    """lambda_cert of the module's docstring: proven, and therefore far from sharp."""
    features, logp = problem.features_XxYxD, problem.reference_logp_XxY
    reach_XxYxY = radius * jnp.linalg.norm(features[:, :, None] - features[:, None], axis=-1)
    offset_XxYxY = logp[:, :, None] - logp[:, None, :]
    reward = problem.reward_XxY
    wins_XxYxY = jax.nn.sigmoid(reward[:, :, None] - reward[:, None, :])
    low, high = beta * (-reach_XxYxY - offset_XxYxY), beta * (reach_XxYxY - offset_XxYxY)

    def f(D):
        return jax.nn.log_sigmoid(D) - (1 - wins_XxYxY) * D

    # f is concave in D with its peak at the reward's own margin.
    peak = jnp.clip(reward[:, :, None] - reward[:, None, :], low, high)
    over_pairs = lambda x: x.reshape(len(x), -1)
    highest_X = over_pairs(f(peak)).max(-1)
    lowest_X = over_pairs(jnp.minimum(f(low), f(high))).min(-1)
    slope = jnp.maximum(
        jnp.abs(wins_XxYxY - jax.nn.sigmoid(low)), jnp.abs(wins_XxYxY - jax.nn.sigmoid(high))
    )
    steepest_X = over_pairs(slope).max(-1)
    farthest_X = over_pairs(jnp.maximum(jnp.abs(low), jnp.abs(high))).max(-1)
    flattest_X = jax.nn.sigmoid(farthest_X) * jax.nn.sigmoid(-farthest_X)
    bound_X = 2 * (highest_X - lowest_X) + 4 * beta * steepest_X - 2 * beta**2 * flattest_X
    return jnp.maximum(bound_X.max(), 0)
