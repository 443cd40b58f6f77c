r"""The refreshed problem: a sequence of maximisations, each against the policy that the last one
left.

`T(r) = argmax over the ball of F(theta; r)`, with `F(theta; r)` the objective `J_lambda` whose
reference is the policy of r. Above the sharp lambda each `F(.; r)` is strongly concave, and T is a
function.

**What it converges to.** Where the policy is its own reference every margin is 0, so that the
response score, of a constant, and the gradient of either KL vanish:

    grad_theta F(theta; r) at theta = r is V(r) = beta E_x E_ab [(P_ab - 1/2) (phi_a - phi_b)].

A fixed point of T is a stationary point over the ball of the win rate against itself, held fixed:
**neither lambda nor beta moves it**, and the policy is not held back for good, as by a fixed
reference. There may be several; which one a sequence goes to may depend on its steps.

**How fast.** Write `S = E_x Cov(phi)`, `A = dV/dr / beta = E_x E_ab [(P_ab - 1/2) Delta s^T]` with
`Delta = phi_a - phi_b` and `s = grad log(pi_a pi_b)`. Differentiating `F` twice at `theta = r`
(see `landscape`; both KLs have the Hessian S there),

    H = -(lambda + beta^2 / 2) S + beta (A + A^T),

and differentiating the condition of the maximum, `T' = I - H^-1 beta A`. On the surface of the ball
the multiplier `m = V . r / |r|^2` joins H and `beta A`, both less `m I`, on the tangent space.
For a symmetric A with `-A v = a S v` the factor per refresh is, inside the ball,

    (lambda + beta^2 / 2 + beta a) / (lambda + beta^2 / 2 + 2 beta a):

from 1/2, where lambda is small, to 1, where `beta a` is small against lambda. Refreshing more often
makes up for a large lambda; nothing is gained below the lambda that makes each problem concave.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sail_jax import config
from sail_jax.bandit import landscape, workload
from sail_jax.bandit import problem as exact
from sail_jax.bandit.problem import ExactObjective, Problem
from sail_jax.core import update


def refreshed(problem: Problem, theta_D: jax.Array) -> Problem:
    """The problem whose reference is the policy of theta."""
    return problem._replace(reference_logp_XxY=exact.log_prob(problem, theta_D))


def sequence(
    problem: Problem, objective: ExactObjective, start_D: jax.Array, radius: float, refreshes: int
) -> jax.Array:
    """References from the start on, [refreshes + 1, D]: each is the maximum against the last."""

    def step(theta_D, _):
        against = refreshed(problem, theta_D)
        best = landscape.search(against, objective, theta_D, radius, iterations=100)
        return best.theta, theta_D

    last_D, path = jax.lax.scan(step, start_D, length=refreshes)
    return jnp.concatenate([path, last_D[None]])


def advantage(problem: Problem, theta_D: jax.Array, other_D: jax.Array) -> jax.Array:
    """By how much a response of the first is preferred to one of the other, above 1/2."""
    ours, theirs = (jnp.exp(exact.log_prob(problem, x)) for x in (theta_D, other_D))
    return jnp.einsum('xa,xb,xab->x', ours, theirs, _wins(problem) - 0.5).mean()


def _wins(problem: Problem) -> jax.Array:
    reward_XxY = problem.reward_XxY
    return jax.nn.sigmoid(reward_XxY[:, :, None] - reward_XxY[:, None, :])


def field(problem: Problem, theta_D: jax.Array) -> jax.Array:
    """`V / beta` of the module's docstring, [D]: the gradient of `advantage` in its first policy,
    twice, where both are the same."""
    return 2 * jax.grad(partial(advantage, problem))(theta_D, theta_D)


def limit(problem: Problem, start_D: jax.Array, radius: float, steps: int = 4000) -> jax.Array:
    """Where refreshing ends that begins at the start, [D]: projected steps along `field`, in units
    of the covariance."""

    def step(theta_D, _):
        covariance_DxD = exact.feature_covariance(problem, theta_D)
        length = 1 / jnp.linalg.norm(covariance_DxD, 2)
        moved_D = theta_D + length * field(problem, theta_D)
        return landscape.optimizer.project(moved_D, radius), ()

    return jax.lax.scan(step, start_D, length=steps)[0]


def contraction(
    problem: Problem, objective: ExactObjective, theta_D: jax.Array, radius: float
) -> jax.Array:
    """Factor per refresh of the distance to the fixed point theta, by the closed form of the
    module's docstring: the spectral radius of T' there."""
    covariance_DxD = exact.feature_covariance(problem, theta_D)
    A_DxD = jax.jacfwd(partial(field, problem))(theta_D)
    beta = jnp.asarray(objective.beta)
    strength = objective.ref_to_policy + objective.policy_to_ref + beta**2 / 2
    H_DxD = -strength * covariance_DxD + beta * (A_DxD + A_DxD.T)
    # On the surface: the tangent space, and the multiplier; inside: all, and 0.
    length = jnp.linalg.norm(theta_D)
    normal_D = theta_D / length
    on_surface = length > radius * (1 - 1e-9)
    multiplier = jnp.where(on_surface, beta * field(problem, theta_D) @ normal_D / length, 0)
    identity = jnp.eye(len(theta_D))
    outward_DxD = jnp.where(on_surface, jnp.outer(normal_D, normal_D), 0)
    tangent_DxD = identity - outward_DxD
    # Along the normal the inverse is of -1, and what it is applied to is 0.
    inner_DxD = tangent_DxD @ (H_DxD - multiplier * identity) @ tangent_DxD - outward_DxD
    moved_DxD = tangent_DxD @ (beta * A_DxD - multiplier * identity) @ tangent_DxD
    return jnp.abs(jnp.linalg.eigvals(tangent_DxD - jnp.linalg.solve(inner_DxD, moved_DxD))).max()


class Draws(NamedTuple):
    """How stochastic ascent samples."""

    contexts: int
    """For each update."""
    group_size: int
    updates: int
    refresh_updates: int | None
    """Updates between refreshes; None never refreshes."""


def ascend(
    problem: Problem,
    start_D: jax.Array,
    seed: jax.Array,
    steps: tuple[jax.Array, jax.Array],
    draws: Draws,
    settings: config.Run,
) -> jax.Array:
    """Iterates of stochastic ascent through `update`, whose reference begins as the policy of the
    start and is refreshed, [updates, D].

    Args:
      steps: smoothness L, and the ratio mu / L: plain SGD of `(1 + t mu / L)^(-2/3) / L`.
    """
    smoothness, ratio = steps
    task = workload.make(problem, draws.contexts, draws.group_size)

    def predict_reference(policies: Any, inputs: workload.BanditInputs) -> jax.Array:
        return exact.log_prob(problem, policies.reference.params)[inputs.context_B]

    task = task._replace(predict_reference=predict_reference, refresh_updates=draws.refresh_updates)
    optimizer = optax.sgd(lambda t: (1 + t * ratio) ** (-2 / 3) / smoothness)
    policies = workload.policies(problem, start_D)
    policies = policies._replace(reference=policies.policy)
    state = update.init(task, settings, policies, optimizer)._replace(seed=seed)
    step = update.make_update(task, settings, optimizer)

    def body(state, _):
        state, _ = step(state)
        return state, state.policy.params

    return jax.lax.scan(body, state, length=draws.updates)[1]
