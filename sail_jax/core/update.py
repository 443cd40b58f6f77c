"""One update: sample, label, gradient, apply - for any workload.

A workload is a few pure functions over its own arrays. The update never learns which one it
serves: it sees log-probabilities `[B, L, T]` of B contexts, L lanes (K responses of the group, and
possibly one more lane drawn from the reference for the KL penalty) and T steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from sail_jax import config
from sail_jax.core import divergence, objective
from sail_jax.core.objective import Mean, Preferences, Route

Metrics = dict[str, jax.Array]

# Comparisons are counted up to here, where int32 ends.
MAX_LABELS = 2**31 - 1

# Streams of randomness that are split off a run's seed.
INIT, START, EVALUATE, UPDATE = range(4)


def stream(seed: jax.typing.ArrayLike, which: int) -> jax.Array:
    """The key of one of the run's streams of randomness."""
    return jax.random.fold_in(jax.random.key(seed), which)


class Policy(NamedTuple):
    """A policy: what is trained, and what it carries besides."""

    params: Any
    """What the gradient is taken of."""
    statistics: Any
    """What updates change without a gradient: the observation normaliser of control, language's
    count of the updates that made the policy. A reference keeps those of when it was taken."""


class Policies(NamedTuple):
    """The two policies of an update, and the weights that both stand on."""

    policy: Policy
    reference: Policy
    shared: Any = ()
    """See `State.shared`."""


class Batch(NamedTuple):
    """What a workload sampled for one update; every array leads with the B rows."""

    inputs: Any
    """The workload's own: states and actions, or tokens."""
    behaviour_logp_BxLxT: jax.Array
    mask_BxLxT: jax.Array
    route: Route
    labels: Preferences
    """Of the first K lanes."""


class Compared(NamedTuple):
    """Policy and reference on a batch, per step, float32 [B, L, T]; differentiable in the policy.

    Both directions of the KL are given, exact; what is not used is not computed.
    """

    logp: jax.Array
    """Of what was drawn, under the policy."""
    reference_logp: jax.Array
    """The same under the reference."""
    ref_to_policy: jax.Array
    """`KL(pi_ref || pi)` of the distributions that the step was drawn from."""
    policy_to_ref: jax.Array
    """`KL(pi || pi_ref)`."""


class Sampled(NamedTuple):
    """What `Workload.sample` returns."""

    batch: Batch
    sampler: Any
    statistics: Any
    """`Policy.statistics` after this batch."""
    labels_asked: jax.Array
    metrics: Metrics


class Workload(NamedTuple):
    """The functions that make a workload; all pure, all jittable."""

    init: Callable[[jax.Array], Any]
    """`(key) -> sampler state`."""
    sample: Callable[..., Sampled]
    """`(policies, sampler, key, labels so far) -> Sampled`."""
    predict_reference: Callable[[Policies, Any], Any]
    """`(policies, inputs) ->` the reference's distributions of each step, or what they follow from;
    rows lead. Computed once for a batch."""
    compare: Callable[[Policies, Any, Any], Compared]
    """`(policies, predict_reference(), inputs) -> Compared`."""
    auxiliary_loss: Callable[[Policies, Any, jax.Array], tuple[jax.Array, Any]]
    """`(policies, inputs, steps of the batch) ->` a loss added to the surrogate's, as a value
    function's, and metrics; see `mesh`."""
    group_size: int
    """K."""
    refresh_updates: int | None
    """Updates after which the reference becomes the policy; None keeps it."""
    abstains: bool = False
    """Whether pairs are left without a label, by what their responses are or where a budget ends:
    baselines are then over all rows, see `objective.advantages`."""
    mesh: Mesh | None = None
    """Where rows are split over its `data` axis and each device has the whole policy: the gradient
    is then one all-reduce. `compare` and `auxiliary_loss` see the rows of one device and treat each
    by itself; loss and metrics, which are added up, are sums over rows divided by a count of the
    whole batch, or an `objective.Mean`. None leaves devices to the compiler."""


class Counts(NamedTuple):
    """What the means of a batch are over. Nothing of it depends on the policy."""

    pairs: jax.Array
    lanes: jax.Array
    """Of the KL penalty."""
    steps: jax.Array


class Hyper(NamedTuple):
    """Settings that are arrays, so that one program trains several values side by side."""

    beta: jax.Array
    response_grad: jax.Array
    label_grad: jax.Array
    coefficient: jax.Array
    """Of the KL penalty, lambda."""
    learning_rate: jax.Array

    @classmethod
    def of(cls, run: config.Run) -> 'Hyper':
        """The configuration's values."""
        weights = run.objective
        values = (
            weights.beta,
            weights.response_grad,
            weights.label_grad,
            run.divergence.coefficient,
            run.optimizer.learning_rate,
        )
        return cls(*(np.asarray(x, jax.dtypes.canonicalize_dtype(float)) for x in values))


class State(NamedTuple):
    """Everything that the next update depends on. Saved whole, restored whole."""

    policy: Policy
    reference: Policy
    reference_step: jax.Array
    """The update after which the reference was taken."""
    shared: Any
    """Weights that policy and reference both stand on and that nothing changes, as those under an
    adapter; `()` where each policy has all of its own. In no checkpoint: whoever made them can make
    them again."""
    optimizer: Any
    sampler: Any
    seed: jax.Array
    hyper: Hyper
    step: jax.Array
    """Updates so far."""
    labels: jax.Array
    """Comparisons asked so far."""
    skipped: jax.Array
    """Gradient steps skipped so far because something was not finite."""
    skipped_in_a_row: jax.Array

    @property
    def policies(self) -> Policies:
        """What a workload sees."""
        return Policies(self.policy, self.reference, self.shared)


def make_optimizer(
    settings: config.Optimizer, learning_rate: jax.typing.ArrayLike
) -> optax.GradientTransformation:
    """Adam behind a clip of the global norm."""
    clip = optax.clip_by_global_norm(settings.max_grad_norm or jnp.inf)
    return optax.chain(clip, optax.adam(learning_rate))


def init(
    workload: Workload,
    run: config.Run,
    policy: Policy,
    reference: Policy,
    optimizer: optax.GradientTransformation | None = None,
    seed: jax.typing.ArrayLike | None = None,
    hyper: Hyper | None = None,
) -> State:
    """The state before the first update.

    Args:
      optimizer: as in `make_update`.
      seed, hyper: instead of the configuration's.
    """
    hyper = jax.tree.map(jnp.asarray, hyper or Hyper.of(run))
    seed = jnp.asarray(run.seed if seed is None else seed, jnp.uint32)
    optimizer = optimizer or make_optimizer(run.optimizer, hyper.learning_rate)
    zero = lambda: jnp.zeros((), jnp.int32)  # noqa: E731 - donated: no two may share a buffer
    return State(
        policy=policy,
        reference=jax.tree.map(jnp.copy, reference),
        reference_step=zero(),
        shared=(),
        optimizer=optimizer.init(policy.params),
        sampler=workload.init(stream(seed, INIT)),
        seed=seed,
        hyper=hyper,
        step=zero(),
        labels=zero(),
        skipped=zero(),
        skipped_in_a_row=zero(),
    )


def loss(
    params: Any,
    policies: Policies,
    held: Any,
    batch: Batch,
    counts: Counts,
    hyper: Hyper,
    workload: Workload,
    run: config.Run,
    axis: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array | Mean]]:
    """Minus the surrogate of `J - lambda * KL`, plus the workload's own loss.

    Args:
      params: what is differentiated; the rest of `policies` is as when the batch was drawn.
      held: `Workload.predict_reference`.
      counts: of the whole batch; of a part of its rows all that is returned is its share.
      axis: see `objective.advantages`.
    """
    policies = policies._replace(policy=policies.policy._replace(params=params))
    compared = workload.compare(policies, held, batch.inputs)
    K, settings = workload.group_size, run.divergence
    behaviour_BxLxT, mask_BxLxT = batch.behaviour_logp_BxLxT, batch.mask_BxLxT
    estimate = objective.preference(
        compared.logp[:, :K],
        behaviour_BxLxT[:, :K],
        compared.reference_logp[:, :K],
        mask_BxLxT[:, :K],
        batch.labels,
        batch.route,
        objective.Coefficients(hyper.beta, hyper.response_grad, hyper.label_grad),
        run.optimizer.clip,
        counts.pairs,
        axis,
    )
    lane_BxL = penalty_lanes(settings, batch.route, K, compared.logp.shape[1])
    if settings.estimator == 'sampled':
        kl = divergence.sampled_penalty(
            compared.logp,
            compared.reference_logp,
            behaviour_BxLxT,
            mask_BxLxT,
            lane_BxL,
            settings.direction,
            settings.reduction,
            run.optimizer.clip,
            counts.lanes,
        )
    else:
        kl = divergence.penalty(
            getattr(compared, settings.direction),
            compared.logp,
            behaviour_BxLxT,
            mask_BxLxT,
            lane_BxL,
            reduction=settings.reduction,
            visitation=settings.visitation_grad,
            clip=run.optimizer.clip,
            count=counts.lanes,
        )
    auxiliary, metrics = workload.auxiliary_loss(policies, batch.inputs, counts.steps)
    total = auxiliary - estimate.surrogate
    if settings.coefficient > 0:
        total = total + hyper.coefficient * kl.surrogate
    return total, {
        'objective': estimate.value - hyper.coefficient * kl.value,
        'preference': estimate.value,
        'kl': kl.value,
        'margin': estimate.margin,
        'label_accuracy': estimate.accuracy,
        **metrics,
    }


def count(batch: Batch, workload: Workload, run: config.Run) -> Counts:
    """The counts of a batch that holds all rows."""
    lanes = penalty_lanes(
        run.divergence, batch.route, workload.group_size, batch.mask_BxLxT.shape[1]
    )
    return Counts(
        pairs=objective.count_pairs(batch.labels, batch.route),
        lanes=lanes.sum(),
        steps=batch.mask_BxLxT.sum(),
    )


def gradient(
    params: Any,
    state: State,
    held: Any,
    batch: Batch,
    counts: Counts,
    workload: Workload,
    run: config.Run,
) -> tuple[jax.Array, dict[str, jax.Array | Mean], Any]:
    """`loss`, its metrics, and its gradient.

    Where the workload has a mesh, each device goes through its own rows, and one vector with all
    of their shares is added up: a collective costs its time for each array that it is given, and
    left to the compiler every parameter's gradient is one. Where baselines are over all rows,
    devices tell each other two numbers before. Rows that do not divide by the devices are left to
    the compiler.
    """
    fixed = params, state.policies, counts, state.hyper
    across = 'data' if workload.group_size == 2 or workload.abstains else None

    def own(params, policies, counts, hyper, held, batch, axis=None):
        find = jax.value_and_grad(loss, has_aux=True)
        return find(params, policies, held, batch, counts, hyper, workload, run, axis)

    def added(*args):
        share, unravel = ravel_pytree(own(*args, across))
        return unravel(jax.lax.psum(share, 'data'))

    parts = 1 if workload.mesh is None else workload.mesh.shape['data']
    rows = batch.mask_BxLxT.shape[0]
    if parts == 1 or rows % parts:
        found = own(*fixed, held, batch)
    else:
        everywhere, by_rows = PartitionSpec(), PartitionSpec('data')
        # Unchecked: else autodiff adds the gradients up by itself, an array at a time.
        found = jax.shard_map(
            added,
            mesh=workload.mesh,
            in_specs=(*[everywhere] * len(fixed), by_rows, by_rows),
            out_specs=everywhere,
            check_vma=False,
        )(*fixed, held, batch)
    (value, metrics), grads = found
    return value, metrics, grads


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


def draw(workload: Workload, state: State) -> Sampled:
    """The labelled batch of the state's next update."""
    key = update_key(state)
    return workload.sample(state.policies, state.sampler, key, state.labels)


def update_key(state: State) -> jax.Array:
    """The key of the state's next update."""
    return jax.random.fold_in(stream(state.seed, UPDATE), state.step + 1)


def make_learn(
    workload: Workload, run: config.Run, optimizer: optax.GradientTransformation | None = None
) -> Callable[[State, Sampled], tuple[State, Metrics]]:
    """The pure function from a state and its labelled batch to the next state.

    Args:
      optimizer: stands in for the configuration's Adam.
    """
    given, minibatches, epochs = optimizer, run.optimizer.minibatches, run.optimizer.epochs

    def gradient_step(carry, minibatch, state, labelled):
        params, optimizer_state, skipped, in_a_row = carry
        batch, held, counts = minibatch
        optimizer = given or make_optimizer(run.optimizer, state.hyper.learning_rate)
        value, metrics, grads = gradient(params, state, held, batch, counts, workload, run)
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

    def learn(state: State, sampled: Sampled) -> tuple[State, Metrics]:
        step, batch = state.step + 1, sampled.batch
        # The batch is scored with the normaliser that drew it, so that the first ratio is 1.
        held = workload.predict_reference(state.policies, batch.inputs)

        split = lambda x: split_rows(x, minibatches)  # noqa: E731
        batches, of_reference = jax.tree.map(split, (batch, held))
        counts = jax.vmap(lambda batch: count(batch, workload, run))(batches)
        # With the label budget spent there is nothing to learn from, and the policy stays.
        labelled = batch.labels.weight_BxKxK.any() | batch.route.policy_label_B.any()

        def step_fn(carry, minibatch):
            return gradient_step(carry, minibatch, state, labelled)

        def epoch(carry, _):
            return jax.lax.scan(step_fn, carry, (batches, of_reference, counts))

        carry = (state.policy.params, state.optimizer, state.skipped, state.skipped_in_a_row)
        carry, metrics = jax.lax.scan(epoch, carry, length=epochs)
        params, optimizer_state, skipped, in_a_row = carry

        keep = lambda new, old: jnp.where(labelled, new, old)  # noqa: E731
        statistics = jax.tree.map(keep, sampled.statistics, state.policy.statistics)
        policy = Policy(params, statistics)
        reference, reference_step = state.reference, state.reference_step
        if workload.refresh_updates is not None:
            due = labelled & (step % workload.refresh_updates == 0)
            reference, reference_step = jax.lax.cond(
                due,
                lambda: (policy, step),
                lambda: (state.reference, state.reference_step),
            )
        state = state._replace(
            policy=policy,
            reference=reference,
            reference_step=reference_step,
            optimizer=optimizer_state,
            sampler=sampled.sampler,
            step=step,
            labels=state.labels + jnp.minimum(sampled.labels_asked, MAX_LABELS - state.labels),
            skipped=skipped,
            skipped_in_a_row=in_a_row,
        )
        first = of_first_pass(metrics, counts.pairs, state.hyper.coefficient)
        return state, {
            **first,
            'labelled': counts.pairs.sum() / count_all_pairs(batch),
            'grad_norm': metrics['grad_norm'].mean(),
            **sampled.metrics,
            'skipped': skipped,
        }

    return learn


def of_first_pass(
    metrics: dict[str, jax.Array | Mean], pairs_M: jax.Array, coefficient: jax.Array
) -> Metrics:
    """The numbers of a batch as it was drawn, from those of its minibatches, [epochs, M].

    J, margin and accuracy are means over the pairs that they are of, in whatever minibatch, and NaN
    where there are none: the host leaves them out.
    """
    metrics = jax.tree.map(lambda x: x[0], metrics)
    numbers = {
        name: Mean(x.total.sum(), x.count.sum()).value() if isinstance(x, Mean) else x.mean()
        for name, x in metrics.items()
    }
    preference = (metrics['preference'] * pairs_M).sum() / pairs_M.sum()
    return {
        **numbers,
        'preference': preference,
        'objective': preference - coefficient * numbers['kl'],
    }


OF_PAIRS = ('preference', 'objective', 'margin', 'label_accuracy')
"""Metrics that are NaN, and left out of the rows, where an update has no pairs for them."""


def count_all_pairs(batch: Batch) -> int:
    """Of a batch, with a label or without."""
    B, K, _ = batch.labels.weight_BxKxK.shape
    return B * K * (K - 1) // 2


def make_update(
    workload: Workload, run: config.Run, optimizer: optax.GradientTransformation | None = None
) -> Callable[[State], tuple[State, Metrics]]:
    """The pure function that one update is; `optimizer` as in `make_learn`."""
    learn = make_learn(workload, run, optimizer)
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

    def dispatch(state: State) -> tuple[State, Metrics]:
        def body(state, _):
            state, metrics = update(state)
            return state, {**metrics, **counters(state)}

        return jax.lax.scan(body, state, length=updates)

    if sweep:
        dispatch = jax.vmap(dispatch, spmd_axis_name='seed')
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
