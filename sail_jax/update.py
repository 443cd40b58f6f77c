"""One update: sample, label, gradient, apply - for any workload.

A workload is a few pure functions over its own arrays. The update never learns which one it
serves: it sees log-probabilities `[B, L, T]` of B contexts, L lanes (K responses of the group, and
possibly one more lane drawn from the reference for the KL penalty) and T steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sail_jax import config, divergence, objective
from sail_jax.objective import Preferences, Route

Metrics = dict[str, jax.Array]

# Comparisons are counted up to here, where int32 ends.
MAX_LABELS = 2**31 - 1

# Streams of randomness that are split off a run's seed.
INIT, START, EVALUATE, UPDATE = range(4)


def stream(seed: jax.typing.ArrayLike, which: int) -> jax.Array:
    """The key of one of the run's streams of randomness."""
    return jax.random.fold_in(jax.random.key(seed), which)


class Policy(NamedTuple):
    """A policy: what is trained, and what its log-probabilities depend on besides."""

    params: Any
    fixed: Any
    """Not touched by the gradient: an observation normaliser, frozen weights."""


class Batch(NamedTuple):
    """What a workload sampled for one update; every array leads with the B rows."""

    inputs: Any
    """The workload's own: states and actions, or tokens."""
    behaviour_logp_BxLxT: jax.Array
    mask_BxLxT: jax.Array
    route: Route
    labels: Preferences
    """Of the first K lanes."""


class Scores(NamedTuple):
    """A policy's view of a batch."""

    logp_BxLxT: jax.Array
    dist: Any
    """Per-step distributions, as the workload's `kl` takes them."""


class Sampled(NamedTuple):
    """What `Workload.sample` returns."""

    batch: Batch
    sampler: Any
    fixed: Any
    """The policy's `fixed` part after this batch."""
    labels_asked: jax.Array
    metrics: Metrics


class Workload(NamedTuple):
    """The functions that make a workload; all pure, all jittable."""

    init: Callable[[jax.Array], Any]
    """`(key) -> sampler state`."""
    sample: Callable[..., Sampled]
    """`(policy, reference, sampler, key, labels so far) -> Sampled`."""
    score: Callable[[Policy, Any], Scores]
    """`(policy, inputs) -> Scores`, for policy and reference alike."""
    kl: Callable[[Any, Any], jax.Array]
    """`(dist p, dist q) -> KL(p || q)` per step, [B, L, T]."""
    auxiliary_loss: Callable[[Policy, Any], tuple[jax.Array, Metrics]]
    """`(policy, inputs) ->` a loss added to the surrogate's (a value function's, say)."""
    group_size: int
    """K."""
    refresh_updates: int | None
    """Updates after which the reference becomes the policy; None keeps it."""


class State(NamedTuple):
    """Everything that the next update depends on. Saved whole, restored whole."""

    policy: Policy
    reference: Policy
    reference_step: jax.Array
    """The update after which the reference was taken."""
    optimizer: Any
    sampler: Any
    seed: jax.Array
    step: jax.Array
    """Updates so far."""
    labels: jax.Array
    """Comparisons asked so far."""
    skipped: jax.Array
    """Gradient steps skipped so far because something was not finite."""
    skipped_in_a_row: jax.Array


def make_optimizer(settings: config.Optimizer) -> optax.GradientTransformation:
    """Adam behind a clip of the global norm."""
    clip = optax.clip_by_global_norm(settings.max_grad_norm or jnp.inf)
    return optax.chain(clip, optax.adam(settings.learning_rate))


def init(
    workload: Workload,
    run: config.Run,
    policy: Policy,
    reference: Policy,
    optimizer: optax.GradientTransformation | None = None,
) -> State:
    """The state before the first update; `optimizer` as in `make_update`."""
    optimizer = optimizer or make_optimizer(run.optimizer)
    zero = lambda: jnp.zeros((), jnp.int32)  # noqa: E731 - donated: no two may share a buffer
    return State(
        policy=policy,
        reference=jax.tree.map(jnp.copy, reference),
        reference_step=zero(),
        optimizer=optimizer.init(policy.params),
        sampler=workload.init(stream(run.seed, INIT)),
        seed=jnp.asarray(run.seed, jnp.uint32),
        step=zero(),
        labels=zero(),
        skipped=zero(),
        skipped_in_a_row=zero(),
    )


def loss(
    params: Any, fixed: Any, batch: Batch, reference: Scores, workload: Workload, run: config.Run
) -> tuple[jax.Array, Metrics]:
    """Minus the surrogate of `J - lambda * KL`, plus the workload's own loss."""
    policy = Policy(params, fixed)
    scores = workload.score(policy, batch.inputs)
    K, settings, weights = workload.group_size, run.divergence, run.objective
    behaviour_BxLxT, mask_BxLxT = batch.behaviour_logp_BxLxT, batch.mask_BxLxT
    estimate = objective.preference(
        scores.logp_BxLxT[:, :K],
        behaviour_BxLxT[:, :K],
        reference.logp_BxLxT[:, :K],
        mask_BxLxT[:, :K],
        batch.labels,
        batch.route,
        objective.Coefficients(weights.beta, weights.response_grad, weights.label_grad),
        run.optimizer.clip,
    )
    lane_BxL = penalty_lanes(settings, batch.route, K, scores.logp_BxLxT.shape[1])
    if settings.estimator == 'sampled':
        kl = divergence.sampled_penalty(
            scores.logp_BxLxT,
            reference.logp_BxLxT,
            behaviour_BxLxT,
            mask_BxLxT,
            lane_BxL,
            settings.direction,
            settings.reduction,
        )
    else:
        pair = (reference.dist, scores.dist)
        p, q = pair if settings.direction == 'ref_to_policy' else pair[::-1]
        kl = divergence.penalty(
            workload.kl(p, q),
            scores.logp_BxLxT,
            behaviour_BxLxT,
            mask_BxLxT,
            lane_BxL,
            reduction=settings.reduction,
            visitation=settings.visitation_grad,
        )
    auxiliary, metrics = workload.auxiliary_loss(policy, batch.inputs)
    total = auxiliary - estimate.surrogate + settings.coefficient * kl.surrogate
    return total, {
        'objective': estimate.value - settings.coefficient * kl.value,
        'preference': estimate.value,
        'kl': kl.value,
        'margin': estimate.margin,
        'label_accuracy': estimate.accuracy,
        **metrics,
    }


def penalty_lanes(
    settings: config.Divergence, route: Route, group_size: int, lanes: int
) -> jax.Array:
    """Which lanes the KL penalty is taken on, [B, L]; see `config.Divergence.states`."""
    on_policy_Bx1 = route.on_policy_B[:, None]
    response_1xL = jnp.arange(lanes)[None, :] < group_size
    match settings.states:
        case 'policy':
            return response_1xL & on_policy_Bx1
        case 'data':
            return response_1xL & ~on_policy_Bx1
        case 'reference':
            # Without a penalty no such lane is drawn, and this is empty.
            return jnp.broadcast_to(~response_1xL, (on_policy_Bx1.shape[0], lanes))


def make_update(
    workload: Workload, run: config.Run, optimizer: optax.GradientTransformation | None = None
) -> Callable[[State], tuple[State, Metrics]]:
    """The pure function that one update is.

    Args:
      optimizer: stands in for the configuration's Adam.
    """
    optimizer = optimizer or make_optimizer(run.optimizer)
    minibatches, epochs = run.optimizer.minibatches, run.optimizer.epochs

    def gradient_step(carry, minibatch, fixed, labelled):
        params, optimizer_state, skipped, in_a_row = carry
        batch, reference = minibatch
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(
            params, fixed, batch, reference, workload, run
        )
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(value)
        apply = finite & labelled
        updates, new_optimizer_state = optimizer.update(grads, optimizer_state, params)
        new_params = divergence.project(
            optax.apply_updates(params, updates), run.optimizer.param_bound
        )
        keep = lambda new, old: jnp.where(apply, new, old)  # noqa: E731
        return (
            jax.tree.map(keep, new_params, params),
            jax.tree.map(keep, new_optimizer_state, optimizer_state),
            skipped + ~finite,
            jnp.where(finite, 0, in_a_row + 1),
        ), {**metrics, 'grad_norm': norm}

    def update(state: State) -> tuple[State, Metrics]:
        step = state.step + 1
        key = jax.random.fold_in(stream(state.seed, UPDATE), step)
        batch, sampler, fixed, asked, sample_metrics = workload.sample(
            state.policy, state.reference, state.sampler, key, state.labels
        )
        # The batch is scored with the normaliser that drew it, so that the first ratio is 1.
        reference = workload.score(state.reference, batch.inputs)

        split = lambda x: split_rows(x, minibatches)  # noqa: E731
        data = jax.tree.map(split, (batch, reference))
        # With the label budget spent there is nothing to learn from, and the policy stays.
        labelled = batch.labels.weight_BxKxK.any() | batch.route.policy_label_B.any()

        def step_fn(carry, minibatch):
            return gradient_step(carry, minibatch, state.policy.fixed, labelled)

        def epoch(carry, _):
            return jax.lax.scan(step_fn, carry, data)

        carry = (state.policy.params, state.optimizer, state.skipped, state.skipped_in_a_row)
        carry, metrics = jax.lax.scan(epoch, carry, length=epochs)
        params, optimizer_state, skipped, in_a_row = carry

        keep = lambda new, old: jnp.where(labelled, new, old)  # noqa: E731
        policy = Policy(params, jax.tree.map(keep, fixed, state.policy.fixed))
        reference_policy, reference_step = state.reference, state.reference_step
        if workload.refresh_updates is not None:
            due = labelled & (step % workload.refresh_updates == 0)
            reference_policy, reference_step = jax.lax.cond(
                due,
                lambda: (policy, step),
                lambda: (state.reference, state.reference_step),
            )
        state = State(
            policy=policy,
            reference=reference_policy,
            reference_step=reference_step,
            optimizer=optimizer_state,
            sampler=sampler,
            seed=state.seed,
            step=step,
            labels=state.labels + jnp.minimum(asked, MAX_LABELS - state.labels),
            skipped=skipped,
            skipped_in_a_row=in_a_row,
        )
        # J, KL and margin of the batch as it was drawn: those of the first pass.
        first = jax.tree.map(lambda x: x[0].mean(), metrics)
        return state, {
            **first,
            'grad_norm': metrics['grad_norm'].mean(),
            **sample_metrics,
            'skipped': skipped,
        }

    return update


def split_rows(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...], every part with rows of all the batch (strided)."""
    return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)


def make_dispatch(
    workload: Workload, run: config.Run, updates: int, shardings: State | None = None
) -> Callable[[State], tuple[State, Metrics]]:
    """Several updates in one compiled program; the state's buffers are donated.

    Args:
      updates: how many.
      shardings: of the state, before and after, so that no call differs from the first; None
        leaves them to the compiler.

    Returns:
      `state -> (state, metrics)`, the metrics with a leading axis of `updates`.
    """
    update = make_update(workload, run)

    def dispatch(state: State) -> tuple[State, Metrics]:
        def body(state, _):
            state, metrics = update(state)
            counters = {
                'step': state.step,
                'labels': state.labels,
                'skipped_in_a_row': state.skipped_in_a_row,
            }
            return state, {**metrics, **counters}

        return jax.lax.scan(body, state, length=updates)

    if shardings is None:
        return jax.jit(dispatch, donate_argnums=0)
    return jax.jit(
        dispatch, in_shardings=(shardings,), out_shardings=(shardings, None), donate_argnums=0
    )
