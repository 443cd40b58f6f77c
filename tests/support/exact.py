"""Small log-linear policies whose expectations can be written out.

Axes: X contexts (one a row), Y responses of a context, F features, N enumerated outcomes. All is
jitted with the settings as arguments, so that few programs serve many tests.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from sail_jax.core import objective
from sail_jax.core.objective import Coefficients, Form
from sail_jax.core.types import Preferences, Route, Steps

MEMBERS = {
    'dpr': (True, False),
    'dpp': (True, True),
    'ddp': (False, True),
    'dpo': (False, False),
}
members = pytest.mark.parametrize(('on_policy', 'policy_label'), MEMBERS.values(), ids=MEMBERS)

THEORY = Coefficients(beta=0.7, response=1.0, label=1.0)


class Problem(NamedTuple):
    """`log pi(y|x) = log_softmax(features . theta)`, and what does not depend on theta."""

    theta_F: np.ndarray
    features_XxYxF: np.ndarray
    reference_logp_XxY: np.ndarray
    reward_XxY: np.ndarray
    data_logp_XxY: np.ndarray


def problem(seed: int = 0, contexts: int = 2, responses: int = 3, features: int = 2) -> Problem:
    normal = np.random.default_rng(seed).normal
    return Problem(
        theta_F=normal(size=features),
        features_XxYxF=normal(size=(contexts, responses, features)),
        reference_logp_XxY=log_softmax(normal(size=(contexts, responses)), axis=1),
        reward_XxY=normal(size=(contexts, responses)),
        data_logp_XxY=log_softmax(normal(size=(contexts, responses)), axis=1),
    )


def policy_logp(problem: Problem, theta_F: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(problem.features_XxYxF @ theta_F)


def sampler_logp(problem: Problem, route: Route) -> jax.Array:
    """Who draws each row's responses, [X, Y]."""
    ours = policy_logp(problem, problem.theta_F)
    return jnp.where(route.on_policy_B[:, None], ours, problem.data_logp_XxY)


def groups(responses: int, rows: int, lanes: int) -> np.ndarray:
    """Every way to draw `lanes` responses in each of `rows` rows, [N, rows, lanes]."""
    every = itertools.product(range(responses), repeat=rows * lanes)
    return np.array(list(every)).reshape(-1, rows, lanes)


def take(table_XxY: jax.Array, index_XxK: jax.Array) -> jax.Array:
    """Entries of the drawn responses, row x from context x, [X, K]."""
    return jnp.take_along_axis(table_XxY, index_XxK, axis=1)


def difference(x: jax.Array) -> jax.Array:
    """`x_i - x_j` over the last axis."""
    return x[..., :, None] - x[..., None, :]


def route(rows: int, on_policy: bool, policy_label: bool) -> Route:
    """All rows alike."""
    return Route(np.full(rows, on_policy), np.full(rows, policy_label))


def all_labelled(prob_BxKxK: jax.Array) -> Preferences:
    return Preferences(prob_BxKxK, np.ones(prob_BxKxK.shape))


def reward_labels(reward_BxK: jax.Array) -> Preferences:
    """Bradley-Terry's probabilities as soft labels."""
    return all_labelled(jax.nn.sigmoid(difference(reward_BxK)))


@jax.jit
def probabilities(problem: Problem, index_NxXxK: jax.Array, route: Route) -> jax.Array:
    """Of each joint draw of the batch's groups, [N]."""
    logp = sampler_logp(problem, route)
    return jnp.exp(jax.vmap(lambda index: take(logp, index).sum())(index_NxXxK))


def estimate(
    problem: Problem,
    theta_F: jax.Array,
    index_XxK: jax.Array,
    labels: Preferences | None,
    route: Route,
    coefficients: Coefficients,
    form: Form = objective.DPO,
) -> objective.Estimate:
    """`objective.preference` for responses of one step; by default the reward labels."""
    if labels is None:
        reward_XxK = take(problem.reward_XxY, index_XxK)
        labels = reward_labels(reward_XxK)._replace(reward_BxK=reward_XxK)
    drawn = steps(
        take(policy_logp(problem, theta_F), index_XxK)[..., None],
        take(sampler_logp(problem, route), index_XxK)[..., None],
        take(problem.reference_logp_XxY, index_XxK)[..., None],
        jnp.ones((*index_XxK.shape, 1)),
    )
    return objective.preference(drawn, labels, route, coefficients, form)


def steps(logp, behaviour_logp, reference_logp, mask) -> Steps:
    return Steps(logp=logp, behaviour_logp=behaviour_logp, reference_logp=reference_logp, mask=mask)


@functools.partial(jax.jit, static_argnames='form')
def estimate_and_gradient(problem, index_XxK, labels, route, coefficients, form=objective.DPO):
    """The estimate, and the surrogate's gradient in theta."""

    def surrogate(theta_F):
        got = estimate(problem, theta_F, index_XxK, labels, route, coefficients, form)
        return got.surrogate, got

    gradient, got = jax.grad(surrogate, has_aux=True)(problem.theta_F)
    return got, gradient


@functools.partial(jax.jit, static_argnames='form')
def estimates(problem, index_NxXxK, route, coefficients, form=objective.DPO):
    """The same for every draw, with the reward's labels."""
    each = lambda index: estimate_and_gradient(problem, index, None, route, coefficients, form)
    return jax.vmap(each)(index_NxXxK)


WORTH = {
    'dpo': lambda D, beta: -jnp.log(1 + jnp.exp(-D)),
    'ipo': lambda D, beta: -((D / beta - 0.5 / beta) ** 2),
    'hinge': lambda D, beta: jnp.minimum(D - 1, 0),
    'simpo': lambda D, beta: -jnp.log(1 + jnp.exp(-D)),
    'rebel': lambda D, beta: -(D**2),
}
"""Of a pair whose first response is preferred."""


class Setting(NamedTuple):
    """What of an objective is not a coefficient."""

    loss: str = 'dpo'
    target_margin: float = 0.0
    label_smoothing: float = 0.0


DPO = Setting()


def exact_objective(problem, theta_sample, theta_margin, theta_label, beta, route, setting=DPO):
    """J, with the three places that theta stands in held apart."""
    ours = policy_logp(problem, theta_sample)
    prob_XxY = jnp.exp(jnp.where(route.on_policy_B[:, None], ours, problem.data_logp_XxY))

    def margin(theta):
        reference = 0 if setting.loss == 'simpo' else problem.reference_logp_XxY
        return beta * difference(policy_logp(problem, theta) - reference)

    D = margin(theta_margin)
    own, given = (
        1 / (1 + jnp.exp(-x)) for x in (margin(theta_label), difference(problem.reward_XxY))
    )
    s = setting.label_smoothing
    P = jnp.where(route.policy_label_B[:, None, None], own, (1 - 2 * s) * given + s)
    f = lambda D: WORTH[setting.loss](D - setting.target_margin, beta)
    if setting.loss == 'rebel':
        D = D - difference(problem.reward_XxY)
    f_XxYxY = P * f(D) + (1 - P) * f(-D)
    return jnp.einsum('xi,xj,xij->x', prob_XxY, prob_XxY, f_XxYxY).mean()


class Exact(NamedTuple):
    """J and its gradient, whole and in parts."""

    value: jax.Array
    gradient: jax.Array
    score: jax.Array
    pathwise: jax.Array
    label: jax.Array


@functools.partial(jax.jit, static_argnames='setting')
def exact(problem: Problem, beta: float, route: Route, setting: Setting = DPO) -> Exact:
    theta = problem.theta_F
    J = lambda *thetas: exact_objective(problem, *thetas, beta, route, setting)
    value, gradient = jax.value_and_grad(lambda theta: J(theta, theta, theta))(theta)
    return Exact(value, gradient, *jax.grad(J, argnums=(0, 1, 2))(theta, theta, theta))
