"""A workload of your own: a compass learns where its user wants to be pointed to.

    python examples/custom_workload.py runs/compass

A context is a direction in the plane, a response one of eight points of the compass. The user wants
to go a quarter to the left of the context, and says of two points which is nearer to that; points
that are nearly as near are the same to the user. The policy is a softmax, linear in the context.

A program that registers the workload, as this one does, can be the command line for its runs too:
`sail_jax.cli.main(['plot', 'runs/compass'])` is `sail-jax plot runs/compass`.

What a workload consists of, from top to bottom: the settings, the functions that an update calls,
the evaluation, the task, and the record that makes it known. All arrays have names that end in
their shape: B contexts, K responses to each, Y points to choose from, T = 1 step of a response.
"""

import functools
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

import sail_jax
from sail_jax import config
from sail_jax.core.divergence import categorical_kl
from sail_jax.core.keys import EVALUATE, START, stream
from sail_jax.core.types import (
    Batch,
    Compared,
    Policies,
    Policy,
    Preferences,
    Route,
    Sampled,
    Workload,
)
from sail_jax.kind import Figure, Line
from sail_jax.sweep import Members
from sail_jax.training import devices
from sail_jax.training.task import Task

POINTS = 8
ANGLE_Y = 2 * jnp.pi * jnp.arange(POINTS) / POINTS


# 1. Settings: a file's sections and keys, with bounds and documentation. `config.Run` brings the
# objective, the KL penalty, the optimizer, checkpoints, logging, and sweeps.


class CompassRun(config.Run):
    """Points its user to where the user wants to go."""

    workload: Literal['compass'] = 'compass'
    """What this file configures."""
    total_contexts: int = Field(default=16_000, ge=1)
    """Length of the run, rounded up to whole updates."""
    contexts: int = Field(default=64, ge=1)
    """Contexts of an update, B."""
    group_size: int = Field(default=4, ge=2, le=POINTS)
    """Responses to each, K."""
    blur: float = Field(default=0.1, ge=0)
    """Points whose distances differ by less, in radians, are the same to the user."""
    evaluate_every: int = Field(default=50, ge=1)
    """Updates between evaluations."""


# 2. What an update calls: pure functions of arrays.


def draw_contexts(key: jax.Array, number: int) -> jax.Array:
    """Directions in radians, [B]."""
    return jax.random.uniform(key, (number,), maxval=2 * jnp.pi)


def log_probs(policy: Policy, context_B: jax.Array) -> jax.Array:
    """Log-probabilities of all points, [B, Y]."""
    direction_Bx2 = jnp.stack([jnp.cos(context_B), jnp.sin(context_B)], -1)
    return jax.nn.log_softmax(direction_Bx2 @ policy.params['weight_2xY'])


def distance(context_B: jax.Array) -> jax.Array:
    """How far each point is from where the user wants to go, in radians, [B, Y]."""
    apart_BxY = ANGLE_Y - (context_B[:, None] + jnp.pi / 2)
    return jnp.abs(jnp.arctan2(jnp.sin(apart_BxY), jnp.cos(apart_BxY)))


def prefer(distance_BxK: jax.Array, blur: float) -> Preferences:
    """The user's rule, for all pairs of a group."""
    nearer_BxKxK = distance_BxK[:, None, :] - distance_BxK[:, :, None]  # By how much i is than j.
    prob_BxKxK = jnp.where(jnp.abs(nearer_BxKxK) < blur, 0.5, nearer_BxKxK > 0)
    every_BxKxK = jnp.ones_like(prob_BxKxK) - jnp.eye(distance_BxK.shape[1])
    return Preferences(prob_BxKxK=prob_BxKxK, weight_BxKxK=every_BxKxK)


def make_workload(run: CompassRun) -> Workload:
    """The functions, for a configuration."""
    B, K = run.contexts, run.group_size

    def sample(policies: Policies, sampler: Any, key: jax.Array, labels: jax.Array) -> Sampled:
        context_key, response_key = jax.random.split(key)
        context_B = draw_contexts(context_key, B)
        logp_BxY = log_probs(policies.policy, context_B)
        response_BxK = jax.random.categorical(response_key, logp_BxY[:, None], shape=(B, K))
        distance_BxK = jnp.take_along_axis(distance(context_B), response_BxK, axis=1)
        batch = Batch(
            inputs=(context_B, response_BxK),
            behaviour_logp_BxLxT=jnp.take_along_axis(logp_BxY, response_BxK, axis=1)[..., None],
            mask_BxLxT=jnp.ones((B, K, 1)),
            route=Route(on_policy_B=jnp.ones(B, bool), policy_label_B=jnp.zeros(B, bool)),
            labels=prefer(distance_BxK, run.blur),
        )
        return Sampled(
            batch=batch,
            sampler=sampler,
            statistics=policies.policy.statistics,
            labels_asked=jnp.asarray(B * K * (K - 1) // 2, jnp.int32),
            metrics={'distance': distance_BxK.mean()},
        )

    def predict_reference(policies: Policies, inputs: Any) -> jax.Array:
        context_B, _ = inputs
        return log_probs(policies.reference, context_B)

    def compare(policies: Policies, reference_BxY: jax.Array, inputs: Any) -> Compared:
        context_B, response_BxK = inputs
        policy_BxY = log_probs(policies.policy, context_B)

        def of_responses(logp_BxY: jax.Array) -> jax.Array:
            return jnp.take_along_axis(logp_BxY, response_BxK, axis=1)[..., None]

        def of_steps(kl_B: jax.Array) -> jax.Array:
            return jnp.broadcast_to(kl_B[:, None, None], (*response_BxK.shape, 1))

        return Compared(
            logp=of_responses(policy_BxY),
            reference_logp=of_responses(reference_BxY),
            ref_to_policy=of_steps(categorical_kl(reference_BxY, policy_BxY)),
            policy_to_ref=of_steps(categorical_kl(policy_BxY, reference_BxY)),
        )

    return Workload(
        sample=sample, predict_reference=predict_reference, compare=compare, group_size=K
    )


# 3. The policy that training starts from, and how policies are measured.


def start(seed: int) -> Policy:
    """Nearly indifferent."""
    weight_2xY = 0.1 * jax.random.normal(stream(seed, START), (2, POINTS))
    return Policy(params={'weight_2xY': weight_2xY}, statistics=())


@jax.jit
def evaluate(
    policy: Policy, start: Policy, shared: Any, seed: jax.Array, hyper: Any
) -> dict[str, jax.Array]:
    """On the same contexts every time."""
    context_B = draw_contexts(stream(seed, EVALUATE), 512)
    policy_BxY, start_BxY = log_probs(policy, context_B), log_probs(start, context_B)
    distance_BxY = distance(context_B)
    mode_B = jnp.argmax(policy_BxY, axis=1)
    return {
        'distance': (jnp.exp(policy_BxY) * distance_BxY).sum(1).mean(),
        'right': (mode_B == jnp.argmin(distance_BxY, axis=1)).mean(),
        'kl_policy_to_start': categorical_kl(policy_BxY, start_BxY).mean(),
    }


# 4. The task: what the loop on the host needs. It brings checkpoints, resuming, metrics, progress.


def make_task(run: CompassRun, *, run_dir: Path | None = None) -> Task:
    """The task of a configuration."""
    members = Members.of(run)  # Of a sweep; a run alone is one.
    if members.sweep:
        mesh = devices.make_sweep_mesh(len(members.each))
    else:
        mesh = devices.make_mesh(run.contexts, rows_key='contexts')
    return Task(
        workload=make_workload(members.shared),
        shardings=functools.partial(devices.state_sharding, mesh),
        start=start,
        abstract_policy=jax.eval_shape(start, 0),
        evaluate=evaluate,
        updates=-(-run.total_contexts // run.contexts),
        updates_per_dispatch=10,
        evaluate_every=run.evaluate_every,
        unit='contexts',
        units_per_update=run.contexts,
        max_labels=None,
        watch={'eval/distance': 'distance', 'train/margin': 'margin'},
        best=('-eval/distance',),
    )


# 5. The record, and the line that makes it known.

COMPASS = sail_jax.Kind(
    name='compass',
    trains='a compass, from which of two points its user is nearer to',
    settings=CompassRun,
    task=make_task,
    table=(
        Line('distance, radians', 'distance'),
        Line('points nearest to where the user goes', 'right'),
        Line('KL(policy || start)', 'kl_policy_to_start'),
    ),
    figure=Figure(
        x={'contexts': 'contexts', 'labels': 'labels'},
        y={'eval/distance': 'distance, radians', 'eval/kl_policy_to_start': 'KL(policy || start)'},
        subject=lambda run: 'compass',
    ),
)
sail_jax.register(COMPASS)


def main(run_dir: str) -> sail_jax.Result:
    """Trains half of a run, goes on to its end, evaluates it again and draws it."""

    run = CompassRun(
        objective=config.Objective(beta=0.5), optimizer=config.Optimizer(learning_rate=3e-2)
    )
    sail_jax.train(run, run_dir, overrides={'total_contexts': run.total_contexts // 2})
    result = sail_jax.train(run, run_dir, resume=True)
    before, after = sail_jax.evaluate(run_dir)
    print(result)
    print(f'distance: {before["distance"]:.2f} -> {after["distance"]:.2f} radians')
    sail_jax.plot(run_dir, Path(run_dir) / 'compass.png')
    return result


if __name__ == '__main__':
    main(sys.argv[1])
