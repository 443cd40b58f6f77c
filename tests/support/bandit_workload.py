"""A log-linear bandit as a workload: one step a response, row b always has context b."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax import config
from sail_jax.core import divergence, labellers, objective, update
from sail_jax.core.types import Batch, Compared, Policies, Policy, Sampled, State, Workload
from tests.support import exact


class Inputs(NamedTuple):
    """Leaves lead with the rows."""

    context_B: jax.Array
    response_BxL: jax.Array
    fault_B: jax.Array
    """Multiplies the log-probabilities; 1 where nothing is wrong."""


def run(**sections) -> config.Run:
    """Settings with which a bandit learns in few updates; SAIL without a penalty."""
    defaults = {
        'objective': {'beta': 1.0, 'response_grad': 1.0, 'label_grad': 1.0},
        'divergence': {'coefficient': 0.0, 'reduction': 'sum'},
        'optimizer': {'learning_rate': 0.05, 'max_grad_norm': None, 'clip': None},
    }
    merged = {key: {**defaults.get(key, {}), **value} for key, value in sections.items()}
    return config.Run.model_validate({**defaults, **merged})


# lines: a workload's functions, which share what is above them.
def make(
    problem: exact.Problem,
    run: config.Run,
    group_size: int = 3,
    teacher: config.Teacher | None = None,
    refresh_updates: int | None = None,
    faults: dict[int, float] | None = None,
) -> Workload:
    """The bandit's functions; `faults` multiplies the log-probabilities of the n-th batch."""
    teacher = teacher or config.Teacher(rationality=1.0, soft=True)
    problem = exact.Problem(*(np.asarray(leaf, np.float32) for leaf in problem))
    B, K = problem.reward_XxY.shape[0], group_size
    mixture = run.objective.mixture

    def predict(policy: Policy, inputs: Inputs) -> jax.Array:
        logits_XxY = problem.reference_logp_XxY + problem.features_XxYxF @ policy.params['theta']
        return jax.nn.log_softmax(logits_XxY)[inputs.context_B]

    def compare(policies: Policies, theirs_BxY, inputs: Inputs) -> Compared:
        ours_BxY = predict(policies.policy, inputs)
        shape = (*inputs.response_BxL.shape, 1)

        def pick(logp_BxY):
            logp_BxL = jnp.take_along_axis(logp_BxY, inputs.response_BxL, 1)
            return (logp_BxL * inputs.fault_B[:, None])[..., None]

        def kl(p_BxY, q_BxY):
            return jnp.broadcast_to(divergence.categorical_kl(p_BxY, q_BxY)[:, None, None], shape)

        return Compared(
            pick(ours_BxY), pick(theirs_BxY), kl(theirs_BxY, ours_BxY), kl(ours_BxY, theirs_BxY)
        )

    def sample(policies, batches, key, labels):
        policy, reference, _ = policies
        draw_key, route_key, label_key = jax.random.split(key, 3)
        keys_B = lambda key: jax.vmap(lambda b: jax.random.fold_in(key, b))(jnp.arange(B))
        route = objective.route(keys_B(route_key), mixture.ddp, mixture.dpp, mixture.dpr)
        context_B, one_B = jnp.arange(B), jnp.ones(B)
        table = Inputs(context_B, jnp.zeros((B, K + 1), jnp.int32), one_B)
        ours, theirs = (
            jnp.repeat(predict(p, table)[:, None], K + 1, 1) for p in (policy, reference)
        )
        data = jnp.broadcast_to(jnp.asarray(problem.data_logp_XxY)[:, None], ours.shape)
        logits_BxLxY = (
            jnp.where(route.on_policy_B[:, None, None], ours, data).at[:, K].set(theirs[:, K])
        )
        response_BxL = jax.vmap(jax.random.categorical)(keys_B(draw_key), logits_BxLxY)
        behaviour_BxL = jnp.take_along_axis(logits_BxLxY, response_BxL[..., None], 2)

        reward_BxK = jnp.take_along_axis(jnp.asarray(problem.reward_XxY), response_BxL[:, :K], 1)
        returns = labellers.Returns(reward_BxK, reward_BxK, jnp.ones(reward_BxK.shape, bool))
        preferences, asked = labellers.within_budget(
            labellers.label(keys_B(label_key), returns, teacher),
            ~route.policy_label_B,
            labels,
            teacher.max_labels,
        )
        fault = jnp.float32(1)
        for batch, value in (faults or {}).items():
            fault = jnp.where(batches == batch, value, fault)
        return Sampled(
            batch=Batch(
                Inputs(context_B, response_BxL, fault * one_B),
                behaviour_BxL,
                jnp.ones_like(behaviour_BxL),
                route,
                preferences,
            ),
            sampler=batches + 1,
            statistics={'batches': policy.statistics['batches'] + 1},
            labels_asked=asked,
            metrics={'reward': reward_BxK.mean()},
        )

    return Workload(
        init=lambda key: jnp.zeros((), jnp.int32),
        sample=sample,
        predict_reference=lambda policies, inputs: predict(policies.reference, inputs),
        compare=compare,
        group_size=K,
        refresh_updates=refresh_updates,
    )


def start(
    workload: Workload, run: config.Run, theta: np.ndarray, reference: np.ndarray | None = None
) -> State:
    """The first state, as the trainer makes it: from a compiled program."""
    policy, reference = (
        Policy({'theta': np.asarray(x, np.float32)}, {'batches': np.float32(0)})
        for x in (theta, theta if reference is None else reference)
    )
    policies = Policies(policy, reference)
    return jax.jit(lambda policies: update.init(workload, run, policies))(policies)
