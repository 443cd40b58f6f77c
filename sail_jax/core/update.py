"""One update: sample, label, gradient, apply - for any workload.

A workload is a few pure functions over its own arrays (`types.Workload`). The update never learns
which one it serves: it sees log-probabilities `[B, L, T]` of B contexts, L lanes (K responses of
the group, and possibly one more lane drawn from the reference for the KL penalty) and T steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sail_jax import config
from sail_jax.core import (
    gradient,
    keys,
    labellers,
    loss,
    optimizer,
    pair_losses,
    precision,
)
from sail_jax.core.types import (
    Batch,
    Hyper,
    Mean,
    Metrics,
    Minibatch,
    Policies,
    Policy,
    Sampled,
    State,
    Workload,
)

MAX_LABELS = 2**31 - 1
"""Comparisons are counted up to here, where int32 ends."""


def init(
    workload: Workload,
    run: config.Run,
    policies: Policies,
    transformation: optax.GradientTransformation | None = None,
    seed: jax.typing.ArrayLike | None = None,
    hyper: Hyper | None = None,
) -> State:
    """The state before the first update.

    Args:
      policies: what training starts from, the reference, and what they share.
      transformation: as in `make_learn`.
      seed, hyper: instead of the configuration's.
    """
    arrays: Hyper = jax.tree.map(jnp.asarray, hyper or Hyper.of(run))
    seed = jnp.asarray(run.seed if seed is None else seed, jnp.uint32)
    transformation = transformation or optimizer.make(
        run.optimizer, arrays.learning_rate, workload.stacked
    )

    def zero() -> jax.Array:  # The state is donated: no two leaves may share a buffer.
        return jnp.zeros((), jnp.int32)

    return State(
        policy=policies.policy,
        reference=jax.tree.map(jnp.copy, policies.reference),
        reference_step=zero(),
        shared=policies.shared,
        optimizer=transformation.init(policies.policy.params),
        sampler=workload.init(keys.stream(seed, keys.INIT)),
        seed=seed,
        hyper=arrays,
        step=zero(),
        labels=zero(),
        skipped=zero(),
        skipped_in_a_row=zero(),
    )


def check(run: Any, group_size: int = 2, side_by_side: bool = False) -> None:
    """Refuses losses and labellers that nobody has given, or that return what no update can use.

    A run is opened and evaluated without them.

    Args:
      run: a `config.Run`, with a `labeller` where its workload has one.
      group_size: K of the groups that they are tried on.
      side_by_side: whether members of a sweep train in one program.

    Raises:
      UserError: naming the key, and what there is, or what is wrong with it.
    """
    pair_losses.check(run.objective.loss, group_size, side_by_side)
    optimizer.check(run.optimizer)
    if isinstance(labeller := getattr(run, 'labeller', None), config.Teacher):
        labellers.check(labeller, group_size, side_by_side)


def draw(workload: Workload, state: State) -> Sampled:
    """The labelled batch of the state's next update."""
    key = keys.update_key(state.seed, state.step + 1)
    return workload.sample(state.policies, state.sampler, key, state.labels)


class Learner(NamedTuple):
    """What gradient steps change."""

    params: Any
    optimizer: Any
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def _make_gradient_step(
    workload: Workload, run: config.Run, transformation: optax.GradientTransformation | None
) -> Callable[[Learner, Minibatch, State, jax.Array], tuple[Learner, dict[str, Any]]]:
    """One gradient step; what is not finite is skipped and counted.

    The last two arguments of the function are the state that the batch was drawn from, and whether
    anything is learnt from it.
    """
    value_and_grad = gradient.make(workload, run)

    def gradient_step(learner: Learner, minibatch: Minibatch, state: State, labelled: jax.Array):
        rule = transformation or optimizer.make(
            run.optimizer, state.hyper.learning_rate, workload.stacked
        )
        (value, metrics), grads = value_and_grad(
            learner.params, state.policies, state.hyper, minibatch
        )
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(value)
        updates, optimizer_state = rule.update(grads, learner.optimizer, learner.params)
        params = optimizer.project(
            optax.apply_updates(learner.params, updates),
            run.optimizer.param_bound,
            workload.bounded,
        )
        keep = lambda new, old: jnp.where(finite & labelled, new, old)
        return Learner(
            params=jax.tree.map(keep, params, learner.params),
            optimizer=jax.tree.map(keep, optimizer_state, learner.optimizer),
            skipped=learner.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, learner.skipped_in_a_row + 1),
        ), {**metrics, 'grad_norm': norm}

    return gradient_step


def make_learn(
    workload: Workload,
    run: config.Run,
    transformation: optax.GradientTransformation | None = None,
) -> Callable[[State, Sampled], tuple[State, Metrics]]:
    """The pure function from a state and its labelled batch to the next state.

    Args:
      transformation: stands in for the configuration's optimizer.

    Raises:
      UserError: as of `loss.make`.
    """
    gradient_step = _make_gradient_step(workload, run, transformation)

    def learn(state: State, sampled: Sampled) -> tuple[State, Metrics]:
        first, batch = state.hyper, sampled.batch
        hyper = annealed(run, first, state.step)
        rate = hyper.learning_rate * workload.step_size(state.step)
        state = state._replace(hyper=hyper._replace(learning_rate=rate))
        # The batch is scored with the normaliser that drew it, so that the first ratio is 1.
        reference_dist = workload.predict_reference(state.policies, batch.inputs)
        parts = lambda x: split_rows(x, run.optimizer.minibatches)
        batches, reference_dists = jax.tree.map(parts, (batch, reference_dist))
        minibatches = Minibatch(
            batch=batches,
            reference_dist=reference_dists,
            counts=jax.vmap(lambda batch: loss.count(batch, workload, run))(batches),
        )
        # With the label budget spent there is nothing to learn from, and the policy stays.
        labelled = batch.labels.weight_BxKxK.any() | batch.route.policy_label_B.any()

        def step_fn(learner: Learner, minibatch: Minibatch):
            return gradient_step(learner, minibatch, state, labelled)

        def epoch(learner: Learner, _):
            return jax.lax.scan(step_fn, learner, minibatches)

        learner = Learner(
            params=state.policy.params,
            optimizer=state.optimizer,
            skipped=state.skipped,
            skipped_in_a_row=state.skipped_in_a_row,
        )
        learner, metrics = jax.lax.scan(epoch, learner, length=run.optimizer.epochs)
        pairs_M = minibatches.counts.pairs
        after = _next_state(workload, state, sampled, learner, labelled)._replace(hyper=first)
        return after, {
            **of_first_pass(metrics, pairs_M, state.hyper.coefficient),
            'labelled': pairs_M.sum() / count_all_pairs(batch),
            'grad_norm': metrics['grad_norm'].mean(),
            **sampled.metrics,
            'learning_rate': rate,
            'skipped': learner.skipped,
        }

    return learn


def annealed(run: config.Run, hyper: Hyper, step: jax.Array) -> Hyper:
    """The coefficients of the update after so many others."""
    ends = {
        'response_grad': run.objective.response_grad_updates,
        'coefficient': run.divergence.coefficient_updates,
    }
    left = {key: jnp.maximum(1 - step / end, 0) for key, end in ends.items() if end is not None}
    return hyper._replace(**{key: getattr(hyper, key) * share for key, share in left.items()})


def _next_state(
    workload: Workload, state: State, sampled: Sampled, learner: Learner, labelled: jax.Array
) -> State:
    """The state after the gradient steps; the reference is refreshed where that is due."""
    step = state.step + 1
    keep = lambda new, old: jnp.where(labelled, new, old)
    statistics = jax.tree.map(keep, sampled.statistics, state.policy.statistics)
    policy = Policy(params=learner.params, statistics=statistics)
    reference, reference_step = state.reference, state.reference_step
    if workload.refresh_updates is not None:
        due = labelled & (step % workload.refresh_updates == 0)
        reference, reference_step = jax.lax.cond(
            due,
            lambda: (_refreshed(reference, policy, workload.reference_kept), step),
            lambda: (state.reference, state.reference_step),
        )
    return state._replace(
        policy=policy,
        reference=reference,
        reference_step=reference_step,
        optimizer=learner.optimizer,
        sampler=sampled.sampler,
        step=step,
        labels=state.labels + jnp.minimum(sampled.labels_asked, MAX_LABELS - state.labels),
        skipped=learner.skipped,
        skipped_in_a_row=learner.skipped_in_a_row,
    )


def _refreshed(reference: Policy, policy: Policy, kept: float) -> Policy:
    """The policy, or with the share that the reference keeps, a mean of both (TR-DPO's soft update,
    arXiv 2404.09656, whose alpha is `1 - kept`); statistics are the policy's."""
    if kept == 0:
        return policy
    mean = lambda old, new: (kept * old + (1 - kept) * new).astype(old.dtype)
    return policy._replace(params=jax.tree.map(mean, reference.params, policy.params))


def of_first_pass(
    metrics: dict[str, jax.Array | Mean], pairs_M: jax.Array, coefficient: jax.Array
) -> Metrics:
    """The numbers of a batch as it was drawn, from those of its minibatches, [epochs, M].

    J, margin and accuracy are means over the pairs that they are of, in whatever minibatch, and NaN
    where there are none: the host leaves them out.
    """
    metrics = jax.tree.map(lambda x: x[0], metrics)

    def number(x: jax.Array | Mean) -> jax.Array:
        if isinstance(x, Mean):
            return Mean(total=x.total.sum(), count=x.count.sum()).value()
        return x.mean()

    numbers = {name: number(x) for name, x in metrics.items()}
    preference_M: Any = metrics['preference']
    preference = (preference_M * pairs_M).sum() / pairs_M.sum()
    return {
        **numbers,
        'preference': preference,
        'objective': preference - coefficient * numbers['kl'] + numbers.get('exploration', 0),
    }


OF_PAIRS = ('preference', 'objective', 'margin', 'label_accuracy')
"""Metrics that are NaN, and left out of the rows, where an update has no pairs for them."""


def count_all_pairs(batch: Batch) -> int:
    """Of a batch, with a label or without."""
    B, K, _ = batch.labels.weight_BxKxK.shape
    return B * K * (K - 1) // 2


def make_update(
    workload: Workload,
    run: config.Run,
    transformation: optax.GradientTransformation | None = None,
) -> Callable[[State], tuple[State, Metrics]]:
    """The pure function that one update is; arguments as of `make_learn`."""
    learn = make_learn(workload, run, transformation)
    return lambda state: learn(state, draw(workload, state))


def split_rows(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...], every part with rows of all the batch (strided)."""
    return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)


def make_dispatch(
    workload: Workload,
    run: config.Run,
    updates: int,
    shardings: State | None = None,
    sweep: bool = False,
) -> Callable[[State], tuple[State, Metrics]]:
    """Several updates in one compiled program; the state's buffers are donated.

    Args:
      updates: how many.
      shardings: of the state, before and after, so that no call differs from the first; None
        leaves them to the compiler.
      sweep: the state's leaves lead with the members of a sweep, which know nothing of each other.

    Returns:
      `state -> (state, metrics)`, the metrics with a last axis of `updates`.
    """
    update = make_update(workload, run)

    @precision.traced_at(precision.resolved(run))
    def dispatch(state: State) -> tuple[State, Metrics]:
        def body(state, _):
            state, metrics = update(state)
            return state, {**metrics, **counters(state)}

        return jax.lax.scan(body, state, length=updates)

    if sweep:
        dispatch = jax.vmap(dispatch, spmd_axis_name='seed')
    return jitted(dispatch, shardings)


def jitted(
    dispatch: Callable[[State], tuple[State, Metrics]], shardings: State | None
) -> Callable[[State], tuple[State, Metrics]]:
    """A dispatch compiled with its state donated; `shardings` as of `make_dispatch`."""
    if shardings is None:
        return jax.jit(dispatch, donate_argnums=0)
    # The metrics lie as a counter does: everywhere, or with the member of a sweep.
    return jax.jit(
        dispatch,
        in_shardings=(shardings,),
        out_shardings=(shardings, shardings.step),
        donate_argnums=0,
    )


def counters(state: State) -> Metrics:
    """What the host keeps books on, besides a workload's metrics."""
    return {
        'step': state.step,
        'labels': state.labels,
        'skipped_in_a_row': state.skipped_in_a_row,
    }
