"""The exact problem as a workload of `sail_jax.update`: sampled instead of enumerated.

A response is one draw, T = 1. What is estimated from it goes through the same objective, surrogate
and update as control and language, so that its convergence can be held against the exact J*.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sail_jax import config, labellers, objective
from sail_jax.bandit.problem import Problem, log_prob
from sail_jax.divergence import categorical_kl
from sail_jax.update import Batch, Metrics, Policy, Sampled, Scores, Workload

LABELLER = config.Teacher(rationality=1.0)
"""Bradley-Terry with the problem's reward, one hard label a pair."""


def settings(
    seed: int, beta: float, coefficient: float, direction: str, radius: float | None
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

    def table(policy: Policy) -> jax.Array:
        # A policy is a theta; the reference, which need not be log-linear, is its own table.
        return log_prob(problem, policy.params) if policy.fixed is None else policy.fixed

    def sample(
        policy: Policy, reference: Policy, sampler: Any, key: jax.Array, labels: jax.Array
    ) -> Sampled:
        context_key, response_key, label_key = jax.random.split(key, 3)
        context_B = jax.random.randint(context_key, (B,), 0, X)
        logp_Bx1xY = table(policy)[context_B][:, None]
        response_BxK = jax.random.categorical(response_key, logp_Bx1xY, shape=(B, K))
        label_key_B = jax.random.split(label_key, B)
        reward_BxK = jnp.take_along_axis(problem.reward_XxY[context_B], response_BxK, axis=1)
        preferences = labellers.compare(label_key_B, reward_BxK, reward_BxK, LABELLER)
        inputs = (context_B, response_BxK)
        return Sampled(
            batch=Batch(
                inputs,
                score(policy, inputs).logp_BxLxT,
                jnp.ones((B, K, 1)),
                objective.Route(jnp.ones(B, bool), jnp.zeros(B, bool)),
                preferences,
            ),
            sampler=sampler,
            fixed=policy.fixed,
            labels_asked=jnp.asarray(B * K * (K - 1) // 2, jnp.int32),
            metrics={},
        )

    def score(policy: Policy, inputs: tuple[jax.Array, jax.Array]) -> Scores:
        context_B, response_BxK = inputs
        logp_BxY = table(policy)[context_B]
        logp_BxK = jnp.take_along_axis(logp_BxY, response_BxK, axis=1)
        dist_BxKx1xY = jnp.broadcast_to(
            logp_BxY[:, None, None], (*response_BxK.shape, 1, logp_BxY.shape[-1])
        )
        return Scores(logp_BxK[..., None], dist_BxKx1xY)

    def auxiliary_loss(policy: Policy, inputs: Any) -> tuple[jax.Array, Metrics]:
        return jnp.zeros(()), {}

    return Workload(lambda key: (), sample, score, categorical_kl, auxiliary_loss, K, None)


def policies(problem: Problem, theta_D: jax.Array) -> tuple[Policy, Policy]:
    """The policy of a theta, and the reference."""
    return Policy(theta_D, None), Policy((), jnp.asarray(problem.reference_logp_XxY))
