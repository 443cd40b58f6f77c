"""What refreshing the reference does, in the exact problem: one figure and its numbers.

Each refresh is a maximisation against the policy that the last one left; see
`sail_jax.bandit.refresh`, whose closed form of the contraction per refresh is drawn against lambda
and beta, and held against searched sequences. Everything is exact but the last panel, which samples
through the update of training. Ranges are over 8 random problems, those of
`configs/bandit/landscape.yaml`, with the policy of theta 0 (uniform) as start and first reference.

    python -m benchmarks.refreshed --out refreshed.json --figure refreshed.png
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import refreshed_figure
from benchmarks.machine import machine, make_parser, write
from sail_jax.bandit import landscape, measure, refresh, stochastic, workload
from sail_jax.bandit import problem as exact
from sail_jax.bandit.config import Landscape
from sail_jax.bandit.problem import ExactObjective, Problem

RUN = Landscape(problems={'count': 8})
BETAS = np.array([0.1, 0.3, 1.0])
COEFFICIENTS = np.geomspace(0.01, 10, 25)
SHOWN = (0.1, 0.2, 1.0, 5.0)
"""Lambdas of the sequences, at `RUN.beta`."""
REFRESHES = 200
BOUNDED = (0, 1, 4, 20, REFRESHES)
"""References against which the thresholds are taken, by the refreshes before."""
EVERY = (None, 256, 64, 16)
"""Updates between refreshes."""
SEEDS, UPDATES, CONTEXTS, GROUP_SIZE = 8, 8192, 4, 2
PLANE = 81


class Thresholds(NamedTuple):
    """Lambdas above which a problem is strongly concave on the ball, [b, P, references]."""

    sharp: jax.Array
    """Searched."""
    certified: jax.Array
    """Proven to suffice."""


@partial(jax.jit, static_argnames='radius')
def thresholds(
    problems: Problem, references_PxNxD: jax.Array, points_NxD: jax.Array, moves: jax.Array, radius
) -> Thresholds:
    """Of the problems against each of the references."""

    def one(beta: jax.Array, problem: Problem, theta_D: jax.Array):
        against = refresh.refreshed(problem, theta_D)
        sharp, _ = landscape.largest_over_ball(
            lambda theta: landscape.sharp_coefficient(against, beta, theta)[None],
            points_NxD,
            moves,
            radius,
        )
        return Thresholds(sharp, landscape.certified_coefficient(against, beta, radius))

    of_references = jax.vmap(one, in_axes=(None, None, 0))
    of_problems = jax.vmap(of_references, in_axes=(None, 0, 0))
    return jax.vmap(of_problems, in_axes=(0, None, None))(BETAS, problems, references_PxNxD)


class Ends(NamedTuple):
    """Of the maximum against the first reference, and of the limit of refreshing."""

    fixed: jax.Array
    """By how much the limit beats the maximum."""
    fixed_entropy: jax.Array
    limit_entropy: jax.Array


def entropy(problem: Problem, theta_D: jax.Array) -> jax.Array:
    """Of the responses, nats, mean over the contexts."""
    logp_XxY = exact.log_prob(problem, theta_D)
    return -(jnp.exp(logp_XxY) * logp_XxY).sum(-1).mean()


def contractions(problems: Problem, limits_PxD: jax.Array) -> np.ndarray:
    """Per refresh, at each problem's limit, [b, l, P]."""

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None, None, None))
    @partial(jax.vmap, in_axes=(None, 0, None, None))
    @partial(jax.vmap, in_axes=(None, None, 0, 0))
    def each(beta, coefficient, problem, limit_D):
        objective = ExactObjective(beta, coefficient)
        return refresh.contraction(problem, objective, limit_D, RUN.radius)

    return np.asarray(each(BETAS, COEFFICIENTS, problems, limits_PxD))


def sequences(problems: Problem) -> np.ndarray:
    """References at `RUN.beta`, [lambdas shown, P, refreshes + 1, D]."""

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    @partial(jax.vmap, in_axes=(None, 0))
    def each(coefficient, problem):
        objective = ExactObjective(RUN.beta, coefficient)
        start_D = jnp.zeros(problem.features_XxYxD.shape[-1])
        return refresh.sequence(problem, objective, start_D, RUN.radius, REFRESHES)

    return np.asarray(each(np.array(SHOWN), problems))


def sampled(problems: Problem, limits_PxD: jax.Array) -> dict[str, Any]:
    """By how much the limit beats the iterates, mean over seeds, [P, moments], for each of `EVERY`,
    and by how much the maximum against the first reference."""
    dimension = limits_PxD.shape[-1]
    rng = measure.generator(RUN)
    points_NxD = landscape.ball_and_surface(rng, 512, dimension, RUN.radius)
    objective = ExactObjective(RUN.beta, RUN.coefficient)
    settings = workload.settings(0, RUN.beta, RUN.coefficient, 'ref_to_policy', RUN.radius)
    seed_PxS = rng.integers(2**31, size=(len(limits_PxD), SEEDS)).astype(np.uint32)
    moments = np.unique(np.geomspace(16, UPDATES, 25).astype(int))
    first = jax.jit(jax.vmap(lambda problem: refresh.refreshed(problem, jnp.zeros(dimension))))(
        problems
    )

    @jax.jit
    @jax.vmap
    def optimum(problem):
        return stochastic.optimum(
            problem, objective, jnp.zeros((1, dimension)), points_NxD, RUN.radius
        )

    @jax.jit
    @jax.vmap
    def fixed(problem, limit_D):
        end = landscape.search(problem, objective, jnp.zeros(dimension), RUN.radius)
        return Ends(
            fixed=refresh.advantage(problem, limit_D, end.theta),
            fixed_entropy=entropy(problem, end.theta),
            limit_entropy=entropy(problem, limit_D),
        )

    @jax.jit
    @jax.vmap
    def beaten(problem, limit_D, theta_SxMxD):
        return jax.vmap(jax.vmap(partial(refresh.advantage, problem, limit_D)))(theta_SxMxD)

    scales = optimum(first)
    steps = (scales.smoothness, scales.strength / scales.smoothness)
    problems32, steps32 = jax.tree.map(stochastic.to_float32, (first, steps))
    curves = {}
    for every in EVERY:
        draws = refresh.Draws(CONTEXTS, GROUP_SIZE, UPDATES, every)

        @jax.jit
        @partial(jax.vmap, in_axes=(0, 0, 0))
        def ascend(problem, seed_S, steps, draws=draws):
            start_D = jnp.zeros(dimension, jnp.float32)
            each = lambda seed: refresh.ascend(problem, start_D, seed, steps, draws, settings)
            return jax.vmap(each)(seed_S)[:, moments - 1]

        with jax.enable_x64(False):
            theta = np.asarray(ascend(problems32, seed_PxS, steps32))
        curves[every] = np.asarray(beaten(first, limits_PxD, theta.astype(float))).mean(1)
    return {
        'labels': moments * CONTEXTS * GROUP_SIZE * (GROUP_SIZE - 1) // 2,
        'curves': curves,
        **{key: np.asarray(x) for key, x in fixed(first, limits_PxD)._asdict().items()},
    }


def planes() -> dict[str, Any]:
    """A problem of two features: F on the plane against some references, and SAIL's J against the
    first."""
    settings = RUN.problems.model_copy(update={'features': 2})
    problem = exact.random(np.random.default_rng((RUN.seed, 0)), settings)
    objective = ExactObjective(RUN.beta, RUN.coefficient)
    path = np.asarray(
        jax.jit(partial(refresh.sequence, radius=RUN.radius, refreshes=REFRESHES))(
            problem, objective, jnp.zeros(2)
        )
    )
    axis = np.linspace(-RUN.radius, RUN.radius, PLANE)
    grid = np.stack(np.meshgrid(axis, axis), -1)

    @jax.jit
    def values(objective, theta_D):
        against = refresh.refreshed(problem, theta_D)
        return jax.vmap(jax.vmap(partial(exact.value, against, objective)))(grid)

    shown = (0, 10, 25, 50)
    return {
        'axis': axis,
        'path': path,
        'shown': shown,
        'sail': np.asarray(values(ExactObjective(RUN.beta), path[0])),
        'values': [np.asarray(values(objective, path[n])) for n in shown],
    }


def measured() -> dict[str, Any]:
    """Everything that is drawn."""
    problems = measure.make_problems(RUN)
    dimension = problems.features_XxYxD.shape[-1]
    rng = measure.generator(RUN)
    path_LxPxNxD = sequences(problems)
    ends = np.stack([np.zeros((len(path_LxPxNxD[0]), dimension)), *path_LxPxNxD[:, :, -1]])

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    @partial(jax.vmap, in_axes=(0, 0))
    def limits(problem, start_D):
        return refresh.limit(problem, start_D, RUN.radius)

    of_start_PxD, *of_each = np.asarray(limits(problems, ends))
    shown = SHOWN.index(RUN.coefficient)
    limits_PxD, references_PxNxD = of_each[shown], path_LxPxNxD[shown][:, BOUNDED]
    bounds = thresholds(
        problems,
        references_PxNxD,
        landscape.ball_and_surface(rng, 256, dimension, RUN.radius),
        landscape.search_moves(rng, dimension, RUN.radius),
        RUN.radius,
    )
    return {
        'limits': limits_PxD,
        'apart': np.linalg.norm(np.stack(of_each) - of_start_PxD, axis=-1),
        'distance': np.linalg.norm(path_LxPxNxD - np.stack(of_each)[:, :, None], axis=-1),
        'contraction': contractions(problems, limits_PxD),
        'sharp': np.asarray(bounds.sharp),
        'certified': np.asarray(bounds.certified),
        'samples': sampled(problems, limits_PxD),
        'plane': planes(),
    }


def span(values: np.ndarray) -> list[float]:
    """Lowest and highest."""
    return [float(np.min(values)), float(np.max(values))]


def numbers(found: dict[str, Any]) -> dict[str, Any]:
    """Ranges over the problems."""
    samples = found['samples']
    names = {every: 'never' if every is None else str(every) for every in EVERY}
    slopes = {
        names[every]: stochastic.fit_slope(samples['labels'], curve[:, None])._asdict()['value']
        for every, curve in samples['curves'].items()
    }
    return {
        'limit_length': span(np.linalg.norm(found['limits'], axis=-1)),
        'problems_with_two_limits': int((found['apart'] > 0.1).any(0).sum()),
        'thresholds': [
            {
                'beta': float(beta),
                'sharp': span(found['sharp'][b]),
                'certified': span(found['certified'][b]),
                'sharp_after': {
                    str(n): span(found['sharp'][b, :, i]) for i, n in enumerate(BOUNDED)
                },
            }
            for b, beta in enumerate(BETAS)
        ],
        'contraction': [
            {
                'beta': float(beta),
                'coefficient': float(coefficient),
                'per_refresh': span(found['contraction'][b, c]),
            }
            for b, beta in enumerate(BETAS)
            for c, coefficient in enumerate(COEFFICIENTS)
        ],
        'limit_beats': {
            'maximum_against_first_reference': span(samples['fixed']),
            **{names[every]: span(curve[:, -1]) for every, curve in samples['curves'].items()},
        },
        'entropy': {
            'maximum_against_first_reference': span(samples['fixed_entropy']),
            'limit': span(samples['limit_entropy']),
        },
        'slopes': slopes,
        'labels': int(samples['labels'][-1]),
        'seeds': SEEDS,
    }


def main() -> None:
    parser = make_parser(__doc__, needs_out=True)
    parser.add_argument('--figure', type=Path, required=True, help='PNG file')
    options = parser.parse_args()
    with jax.enable_x64(True):
        found = measured()
    write({'machine': machine('benchmarks.refreshed'), **numbers(found)}, options.out)
    refreshed_figure.draw(found, BETAS, COEFFICIENTS, SHOWN, options.figure)


if __name__ == '__main__':
    main()
