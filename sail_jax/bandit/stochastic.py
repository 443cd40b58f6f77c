"""Sample complexity: stochastic ascent with the estimator of training, against the exact J*."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sail_jax import config
from sail_jax.bandit import landscape, workload
from sail_jax.bandit import problem as exact
from sail_jax.bandit.config import SampleComplexity
from sail_jax.bandit.measure import OBJECTIVES, generator, make_objectives
from sail_jax.bandit.problem import ExactObjective, Problem
from sail_jax.core import precision, update

FIT_LAST = 16
"""The slope is fitted from this share (one over) of the labels on, past the transient."""


class Curves(NamedTuple):
    """Suboptimality of the averaged iterate; P problems, S seeds, M moments of the run."""

    labels: np.ndarray
    """Comparisons asked so far, [M]."""
    gap: np.ndarray
    """`J* - J`, [O, P, S, M]."""


class Optimum(NamedTuple):
    """What the steps of stochastic ascent are scaled by."""

    best: jax.Array
    """J* over the ball."""
    strength: jax.Array
    """Smallest curvature at the maximum, mu."""
    smoothness: jax.Array
    """Largest absolute Hessian eigenvalue in the ball, L."""


def optimum(
    problem: Problem,
    objective: ExactObjective,
    starts_SxD: jax.Array,
    points_NxD: jax.Array,
    radius,
) -> Optimum:
    """J*, and the curvatures that stochastic ascent's steps are scaled by."""
    maxima = jax.vmap(lambda start: landscape.search(problem, objective, start, radius))(starts_SxD)
    top = jnp.argmax(maxima.value)
    spectrum = partial(landscape.eigenvalues, problem, objective)
    smoothness = jnp.abs(jax.vmap(spectrum)(points_NxD)).max()
    # SAIL has next to no curvature at its maxima; a hundredth of L keeps its steps decreasing.
    strength = jnp.maximum(-spectrum(maxima.theta[top])[-1], smoothness / 100)
    return Optimum(best=maxima.value[top], strength=strength, smoothness=smoothness)


def ascend(
    problem: Problem,
    start_D: jax.Array,
    seed: jax.Array,
    scale: Optimum,
    run: SampleComplexity,
    settings: Any,
) -> jax.Array:
    """Averaged iterates of projected stochastic ascent through `update`, [updates, D].

    Plain SGD with Polyak and Ruppert's decay, `step_t = (1 + t mu / L)^(-2/3) / L`, and their
    average weighted by `t^2`, which forgets the start (Shamir and Zhang 2013, arXiv 1212.1824).
    """
    task = workload.make(problem, run.contexts, run.group_size)
    smoothness, ratio = scale.smoothness, scale.strength / scale.smoothness
    optimizer = optax.sgd(lambda t: (1 + t * ratio) ** (-2 / 3) / smoothness)
    policies = workload.policies(problem, start_D)
    state = update.init(task, settings, policies, optimizer)._replace(seed=seed)
    step = update.make_update(task, settings, optimizer)

    def body(carry, _):
        state, mean_D = carry
        state, _ = step(state)
        mean_D = mean_D + (state.policy.params - mean_D) * 3 / (state.step + 2)
        return (state, mean_D), mean_D

    _, means = jax.lax.scan(body, (state, start_D), length=run.updates)
    return means


def settings_of(run: SampleComplexity, name: str) -> config.Run:
    """Of `update`, for one of `OBJECTIVES`."""
    coefficient = 0.0 if name == 'sail' else run.coefficient
    direction = 'ref_to_policy' if name == 'sail' else name
    return workload.settings(run.seed, run.beta, coefficient, direction, run.radius)


def moments_of(run: SampleComplexity) -> np.ndarray:
    """Updates after which the averaged iterates are judged, [M]."""
    return np.unique(np.geomspace(min(16, run.updates // 4), run.updates, 25).astype(int))


def make_ascent(run: SampleComplexity, settings: config.Run) -> Callable[..., jax.Array]:
    """The compiled program of a study: `(problems, starts [P, S, D], seeds [P, S], scales [P]) ->
    averaged iterates [P, S, M, D]`."""
    moments = moments_of(run)

    @jax.jit
    @precision.traced_at(precision.resolved(settings))
    @jax.vmap
    def means(problem: Problem, start_SxD: jax.Array, seed_S: jax.Array, scale: Optimum):
        means_SxTxD = jax.vmap(
            lambda start_D, seed: ascend(problem, start_D, seed, scale, run, settings)
        )(start_SxD, seed_S)
        return means_SxTxD[:, moments - 1]

    return means


def measure(
    problems: Problem, run: SampleComplexity, begin: Callable[[str], None] = lambda name: None
) -> Curves:
    """Runs all seeds of all problems, one program for each objective, which `begin` is told of."""
    count, dimension = len(problems.reward_XxY), problems.features_XxYxD.shape[-1]
    rng = generator(run)
    start_PxSxD = landscape.ball(rng, count * run.seeds, dimension, run.radius).reshape(
        count, run.seeds, dimension
    )
    points_NxD: Any = landscape.ball_and_surface(rng, 512, dimension, run.radius)
    search_SxD: Any = landscape.ball(rng, 64, dimension, run.radius)
    # Every run has its own stream of samples.
    seed_PxS = rng.integers(2**31, size=(count, run.seeds)).astype(np.uint32)
    moments = moments_of(run)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    def optima(problem, objective):
        return optimum(problem, objective, search_SxD, points_NxD, run.radius)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None, 0))
    def values(problem, objective, theta_SxMxD):
        return jax.vmap(jax.vmap(partial(exact.value, problem, objective)))(theta_SxMxD)

    objectives, gaps = make_objectives(run.beta, run.coefficient), []
    for index, name in enumerate(OBJECTIVES):
        begin(name)
        settings = settings_of(run, name)
        objective = jax.tree.map(lambda x, i=index: x[i], objectives)
        scales = optima(problems, objective)
        # Sampled in float32 as in training, judged in float64.
        arguments = jax.tree.map(to_float32, (problems, start_PxSxD, seed_PxS, scales))
        with jax.enable_x64(False):
            means = np.asarray(make_ascent(run, settings)(*arguments))
        value = values(problems, objective, means.astype(np.float64))
        gaps.append(np.asarray(scales.best[:, None, None] - value))
    pairs = run.group_size * (run.group_size - 1) // 2
    return Curves(labels=moments * run.contexts * pairs, gap=np.stack(gaps))


def to_float32(x: Any) -> np.ndarray:
    """An array on the host, in float32 if it was float64."""
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype == np.float64 else x


class Slope(NamedTuple):
    """Exponent of suboptimality against labels, with its 95 % interval."""

    value: float
    low: float
    high: float


def fit_slope(labels_M: np.ndarray, gap_PxSxM: np.ndarray) -> Slope:
    """Least squares on the log-log curve of the mean over seeds, averaged over problems.

    Only the last part of the labels counts, see `FIT_LAST`.

    Args:
      labels_M: labels asked.
      gap_PxSxM: suboptimality.

    Returns:
      The slope with a percentile bootstrap interval over the seeds of each problem.
    """
    window = labels_M >= labels_M[-1] / FIT_LAST
    x = np.log(labels_M[window])
    x = (x - x.mean()) / ((x - x.mean()) ** 2).sum()

    def slope(gap_xPxSxM: np.ndarray) -> np.ndarray:
        mean = np.maximum(gap_xPxSxM.mean(-2), landscape.GAP_FLOOR)
        return (np.log(mean) @ x).mean(-1)

    gap = gap_PxSxM[..., window]
    problems, seeds, _ = gap.shape
    rows = np.random.default_rng(0).integers(seeds, size=(2000, problems, seeds))
    resampled = slope(gap[np.arange(problems)[:, None], rows])
    return Slope(float(slope(gap)), *map(float, np.quantile(resampled, (0.025, 0.975))))
