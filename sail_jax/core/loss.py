"""The scalar that an update descends on: minus the surrogate of `J - lambda * KL`, and a workload's
own loss."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from sail_jax import config
from sail_jax.core import divergence, objective, pair_losses
from sail_jax.core.divergence import Penalty
from sail_jax.core.types import (
    Batch,
    Counts,
    Hyper,
    Mean,
    Minibatch,
    Policies,
    Route,
    Steps,
    Workload,
)

LossMetrics = dict[str, jax.Array | Mean]


class Loss(Protocol):
    """A workload's loss under a configuration."""

    def __call__(
        self, params: Any, policies: Policies, hyper: Hyper, minibatch: Minibatch, axis: str | None
    ) -> tuple[jax.Array, LossMetrics]:
        """Loss, and numbers of the batch.

        Args:
          params: what is differentiated; the rest of `policies` is as when the batch was drawn.
          policies: policy and reference.
          hyper: coefficients.
          minibatch: all rows or, with the counts of all, those of one device: all that is returned
            is then its part of a sum over the devices.
          axis: see `objective.Whole`.
        """
        ...


def make(workload: Workload, run: config.Run) -> Loss:
    """The loss of a workload.

    Raises:
      UserError: `objective.loss` names none.
    """
    K, ours = workload.group_size, workload.group_size - workload.opponents
    form = _form(run)._replace(opponents=workload.opponents)

    def loss(
        params: Any,
        policies: Policies,
        hyper: Hyper,
        minibatch: Minibatch,
        axis: str | None = None,
    ) -> tuple[jax.Array, LossMetrics]:
        policies = policies._replace(policy=policies.policy._replace(params=params))
        batch, counts = minibatch.batch, minibatch.counts
        compared = workload.compare(policies, minibatch.reference_dist, batch.inputs)
        steps = Steps(
            logp=compared.logp,
            behaviour_logp=batch.behaviour_logp_BxLxT,
            reference_logp=compared.reference_logp,
            mask=batch.mask_BxLxT,
        )
        estimate = objective.preference(
            jax.tree.map(lambda x: x[:, :K], steps),
            batch.labels,
            batch.route,
            objective.Coefficients(
                beta=hyper.beta, response=hyper.response_grad, label=hyper.label_grad
            ),
            form,
            objective.Whole(pairs=counts.pairs, axis=axis),
        )
        lane_BxL = penalty_lanes(run.divergence, batch.route, ours, steps.logp.shape[1])
        kl_BxLxT = getattr(compared, run.divergence.direction)
        kl = _penalty(run, kl_BxLxT, steps, lane_BxL, counts.lanes)
        auxiliary, metrics = workload.auxiliary_loss(policies, batch.inputs, counts.steps)
        total = auxiliary - estimate.surrogate
        if run.objective.exploration != 'none':
            of_reference = jax.tree.map(lambda x: x[:, ours:], steps)
            explored = objective.exploration(run.objective, of_reference, hyper.beta, counts.rows)
            total, metrics = total - explored, {'exploration': explored, **metrics}
        if run.divergence.coefficient > 0:
            total = total + hyper.coefficient * kl.surrogate
        return total, {
            'objective': estimate.value - hyper.coefficient * kl.value,
            'preference': estimate.value,
            'kl': kl.value,
            'margin': estimate.margin,
            'label_accuracy': estimate.accuracy,
            **metrics,
        }

    return loss


def _form(run: config.Run) -> objective.Form:
    return objective.Form(
        pair_loss=pair_losses.named(run.objective.loss),
        clip=run.optimizer.clip,
        target_margin=run.objective.target_margin,
        label_smoothing=run.objective.label_smoothing,
    )


def _penalty(
    run: config.Run, kl_BxLxT: jax.Array, steps: Steps, lane_BxL: jax.Array, lanes: jax.Array
) -> Penalty:
    settings, clip = run.divergence, run.optimizer.clip
    if settings.estimator == 'sampled':
        return divergence.sampled_penalty(
            steps, lane_BxL, settings.direction, settings.reduction, clip, lanes
        )
    return divergence.penalty(
        kl_BxLxT,
        steps,
        lane_BxL,
        reduction=settings.reduction,
        visitation=settings.visitation_grad,
        clip=clip,
        lanes=lanes,
    )


def count(batch: Batch, workload: Workload, run: config.Run) -> Counts:
    """The counts of a batch that holds all rows."""
    ours = workload.group_size - workload.opponents
    lane_BxL = penalty_lanes(run.divergence, batch.route, ours, batch.mask_BxLxT.shape[1])
    return Counts(
        pairs=objective.count_pairs(batch.labels, batch.route),
        lanes=lane_BxL.sum(),
        rows=jnp.asarray(batch.mask_BxLxT.shape[0]),
        steps=batch.mask_BxLxT.sum(),
    )


def penalty_lanes(settings: config.Divergence, route: Route, ours: int, lanes: int) -> jax.Array:
    """Which lanes the KL penalty is taken on, [B, L]; see `config.Divergence.states`.

    Args:
      ours: lanes of the group, less those that are the reference's.
    """
    on_policy_Bx1 = route.on_policy_B[:, None]
    response_1xL = jnp.arange(lanes)[None, :] < ours
    match settings.states:
        case 'policy':
            return response_1xL & on_policy_Bx1
        case 'data':
            return response_1xL & ~on_policy_Bx1
        case 'reference':
            # Without a penalty no such lane is drawn, and this is empty.
            return jnp.broadcast_to(~response_1xL, (on_policy_Bx1.shape[0], lanes))
