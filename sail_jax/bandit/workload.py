"""The exact problem as a workload of `sail_jax.core.update`: sampled instead of enumerated.

A response is one draw, T = 1. What is estimated from it goes through the same objective, surrogate
and update as control and language, so that its convergence can be held against the exact J*.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sail_jax import config
from sail_jax.bandit.problem import Problem, log_prob
from sail_jax.core import labellers, objective
from sail_jax.core.divergence import categorical_kl
from sail_jax.core.update import Batch, Compared, Metrics, Policies, Policy, Sampled, Workload

LABELLER = config.Teacher(rationality=1.0)
"""Bradley-Terry with the problem's reward, one hard label a pair."""


def settings(
    seed: int, beta: float, coefficient: float, direction: Any, radius: float | None
) -> config.Run:
    """Settings of `update` under which the expected gradient is that of J_lambda.

    All terms of the gradient in full, the exact KL at the contexts drawn, no clipping.
    """
    return config.Run(
        seed=seed,
        objective=config.Objective(beta=beta, response_grad=1, label_grad=1),
        divergence=config.Divergence(coefficient=coefficient, direction=direction),
        optimizer=config.Optimizer(max_grad_norm=None, clip=None, param_bound=radius),
    )


def make(problem: Problem, contexts: int, group_size: int) -> Workload:
    """The bandit's functions.

    Args:
      contexts: contexts drawn for each update, B, with replacement.
      group_size: responses to each, K.
    """
    B, K = contexts, group_size
    X = len(problem.reward_XxY)
    problem = jax.tree.map(jnp.asarray, problem)  # NumPy cannot be indexed within jit

    def sample(policies: Policies, sampler: Any, key: jax.Array, labels: jax.Array) -> Sampled:
        context_key, response_key, label_key = jax.random.split(key, 3)
        context_B = jax.random.randint(context_key, (B,), 0, X)
        logp_Bx1xY = log_prob(problem, policies.policy.params)[context_B][:, None]
        response_BxK = jax.random.categorical(response_key, logp_Bx1xY, shape=(B, K))
        label_key_B = jax.random.split(label_key, B)
        reward_BxK = jnp.take_along_axis(problem.reward_XxY[context_B], response_BxK, axis=1)
        preferences = labellers.compare(label_key_B, reward_BxK, reward_BxK, LABELLER)
        logp_BxK = jnp.take_along_axis(logp_Bx1xY[:, 0], response_BxK, axis=1)
        return Sampled(
            batch=Batch(
                (context_B, response_BxK),
                logp_BxK[..., None],
                jnp.ones((B, K, 1)),
                objective.Route(jnp.ones(B, bool), jnp.zeros(B, bool)),
                preferences,
            ),
            sampler=sampler,
            statistics=policies.policy.statistics,
            labels_asked=jnp.asarray(B * K * (K - 1) // 2, jnp.int32),
            metrics={},
        )

    def predict_reference(policies: Policies, inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Log-probabilities of all responses to each context, [B, Y]."""
        return policies.reference.params[inputs[0]]

    def compare(
        policies: Policies, theirs_BxY: jax.Array, inputs: tuple[jax.Array, jax.Array]
    ) -> Compared:
        context_B, response_BxK = inputs
        ours_BxY = log_prob(problem, policies.policy.params)[context_B]
        pick = lambda logp_BxY: jnp.take_along_axis(logp_BxY, response_BxK, axis=1)[..., None]  # noqa: E731
        spread = lambda kl_B: jnp.broadcast_to(kl_B[:, None, None], (*response_BxK.shape, 1))  # noqa: E731
        return Compared(
            logp=pick(ours_BxY),
            reference_logp=pick(theirs_BxY),
            ref_to_policy=spread(categorical_kl(theirs_BxY, ours_BxY)),
            policy_to_ref=spread(categorical_kl(ours_BxY, theirs_BxY)),
        )

    def auxiliary_loss(
        policies: Policies, inputs: Any, steps: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        return jnp.zeros(()), {}

    return Workload(lambda key: (), sample, predict_reference, compare, auxiliary_loss, K, None)


def policies(problem: Problem, theta_D: jax.Array) -> tuple[Policy, Policy]:
    """The policy of a theta, and the reference.

    The parameters of the reference, which need not be log-linear, are its table [X, Y].
    """
    return Policy(theta_D, ()), Policy(jnp.asarray(problem.reference_logp_XxY), ())
