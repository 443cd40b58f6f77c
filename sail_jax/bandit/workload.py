"""The exact problem as a workload of `sail_jax.core`: sampled instead of enumerated.

A response is one draw, T = 1. What is estimated from it goes through the same objective, surrogate
and update as control and language, so that its convergence can be held against the exact J*.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sail_jax import config
from sail_jax.bandit.problem import Problem, log_prob
from sail_jax.core import labellers
from sail_jax.core.divergence import categorical_kl
from sail_jax.core.types import Batch, Compared, Policies, Policy, Route, Sampled, Workload

LABELLER = config.Teacher(rationality=1.0)
"""Bradley-Terry with the problem's reward, one hard label a pair."""


class BanditInputs(NamedTuple):
    """Indices of what was drawn."""

    context_B: jax.Array
    response_BxK: jax.Array


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
        reward_BxK = jnp.take_along_axis(problem.reward_XxY[context_B], response_BxK, axis=1)
        returns = labellers.Returns(
            true_BxK=reward_BxK,
            perceived_BxK=reward_BxK,
            counted_BxK=jnp.ones((B, K), bool),
        )
        logp_BxK = jnp.take_along_axis(logp_Bx1xY[:, 0], response_BxK, axis=1)
        return Sampled(
            batch=Batch(
                inputs=BanditInputs(context_B=context_B, response_BxK=response_BxK),
                behaviour_logp_BxLxT=logp_BxK[..., None],
                mask_BxLxT=jnp.ones((B, K, 1)),
                route=Route(on_policy_B=jnp.ones(B, bool), policy_label_B=jnp.zeros(B, bool)),
                labels=labellers.label(jax.random.split(label_key, B), returns, LABELLER),
            ),
            sampler=sampler,
            statistics=policies.policy.statistics,
            labels_asked=jnp.asarray(B * K * (K - 1) // 2, jnp.int32),
            metrics={},
        )

    def predict_reference(policies: Policies, inputs: BanditInputs) -> jax.Array:
        """Log-probabilities of all responses to each context, [B, Y]."""
        return policies.reference.params[inputs.context_B]

    def compare(policies: Policies, reference_BxY: jax.Array, inputs: BanditInputs) -> Compared:
        context_B, response_BxK = inputs
        policy_BxY = log_prob(problem, policies.policy.params)[context_B]
        pick = lambda logp_BxY: jnp.take_along_axis(logp_BxY, response_BxK, axis=1)[..., None]
        spread = lambda kl_B: jnp.broadcast_to(kl_B[:, None, None], (*response_BxK.shape, 1))
        return Compared(
            logp=pick(policy_BxY),
            reference_logp=pick(reference_BxY),
            ref_to_policy=spread(categorical_kl(reference_BxY, policy_BxY)),
            policy_to_ref=spread(categorical_kl(policy_BxY, reference_BxY)),
        )

    return Workload(
        sample=sample, predict_reference=predict_reference, compare=compare, group_size=K
    )


def policies(problem: Problem, theta_D: jax.Array) -> Policies:
    """The policy of a theta, and the reference.

    The parameters of the reference, which need not be log-linear, are its table [X, Y].
    """
    table = jnp.asarray(problem.reference_logp_XxY)
    return Policies(
        policy=Policy(params=theta_D, statistics=()),
        reference=Policy(params=table, statistics=()),
    )
