"""What the parts of the algorithm hand to each other.

Axes: B contexts (rows), K responses of the group to one context, L lanes (the K responses, and one
more that is drawn from the reference where the KL penalty asks for it), T steps or tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sail_jax import config

Metrics = dict[str, jax.Array]


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


class Preferences(NamedTuple):
    """What a labeller said about the pairs of each group."""

    prob_BxKxK: jax.Array
    """Probability that i is preferred to j; `prob_ij + prob_ji = 1`. Hard labels are 0, 1/2, 1."""
    weight_BxKxK: jax.Array
    """1 where the pair has a label, 0 where it has none (skipped, or the budget is spent)."""
    reward_BxK: jax.Array | None = None
    """What the labeller goes by, for losses that are of it (`pair_losses.needs_rewards`)."""


class Route(NamedTuple):
    """Which member of the family each row belongs to: two switches."""

    on_policy_B: jax.Array
    """True: the responses are the policy's own samples. False: they come from the data."""
    policy_label_B: jax.Array
    """True: the policy labels its own pairs. False: the labeller or the data does."""


class Mean(NamedTuple):
    """A mean whose parts can be added up over devices."""

    total: jax.Array
    # A tuple has a method of that name.
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]

    def value(self) -> jax.Array:
        """NaN of nothing."""
        return self.total / self.count


class Batch(NamedTuple):
    """What a workload sampled for one update; every array leads with the B rows."""

    inputs: Any
    """The workload's own: states and actions, or tokens."""
    behaviour_logp_BxLxT: jax.Array
    """Log-probability of each step under who drew it."""
    mask_BxLxT: jax.Array
    """1 for the steps of a response."""
    route: Route
    labels: Preferences
    """Of the first K lanes."""


class Steps(NamedTuple):
    """Log-probabilities of a batch's steps, float32 [B, L, T] each."""

    logp: jax.Array
    """Under the policy that is differentiated."""
    behaviour_logp: jax.Array
    """Under who drew the step."""
    reference_logp: jax.Array
    mask: jax.Array
    """1 for the steps of a response; what stands in the others' places has no influence."""


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


class Counts(NamedTuple):
    """What the means of a batch are over. Nothing of it depends on the policy."""

    pairs: jax.Array
    lanes: jax.Array
    """Of the KL penalty."""
    rows: jax.Array
    steps: jax.Array


class Minibatch(NamedTuple):
    """The rows of one gradient step, and what of them does not change while the policy does."""

    batch: Batch
    reference_dist: Any
    """`Workload.predict_reference` of the rows."""
    counts: Counts
    """Of all rows of the minibatch, also where `batch` holds those of one device."""


class Sampled(NamedTuple):
    """What `Workload.sample` returns."""

    batch: Batch
    sampler: Any
    """The sampler's next state."""
    statistics: Any
    """`Policy.statistics` after this batch."""
    labels_asked: jax.Array
    """Comparisons that the batch cost, int32."""
    metrics: Metrics


class InitSampler(Protocol):
    """Makes the first state of a sampler."""

    def __call__(self, key: jax.Array, /) -> Any:
        """A pytree: what the next batch depends on besides policies and key."""
        ...


class DrawSample(Protocol):
    """Draws a labelled batch."""

    def __call__(
        self, policies: Policies, sampler: Any, key: jax.Array, labels: jax.Array, /
    ) -> Sampled:
        """The batch of one update.

        Args:
          policies: who responds.
          sampler: its state.
          key: all randomness of the batch is a function of it and the row's index.
          labels: comparisons asked before, int32; see `labellers.within_budget`.
        """
        ...


class PredictReference(Protocol):
    """What the reference expects; computed once for all gradient steps on a batch."""

    def __call__(self, policies: Policies, inputs: Any, /) -> Any:
        """The reference's distributions of each step, or what they follow from; leaves lead with
        the rows of `inputs`."""
        ...


class Compare(Protocol):
    """Holds the policy against its reference."""

    def __call__(self, policies: Policies, reference_dist: Any, inputs: Any, /) -> Compared:
        """Log-probabilities and exact KLs, [B, L, T], differentiable in `policies.policy.params`.

        Each row by itself: under a mesh the rows are those of one device.

        Args:
          policies: policy, reference, and what they share.
          reference_dist: `PredictReference` of the same rows.
          inputs: `Batch.inputs`.
        """
        ...


class AuxiliaryLoss(Protocol):
    """A loss besides the surrogate's, as a value function's."""

    def __call__(
        self, policies: Policies, inputs: Any, steps: jax.Array, /
    ) -> tuple[jax.Array, dict[str, jax.Array | Mean]]:
        """Loss and metrics; under a mesh each device's share, which add up to the whole.

        Args:
          policies: policy, reference, and what they share.
          inputs: `Batch.inputs`; under a mesh the rows of one device.
          steps: of the whole batch, what a mean is over.
        """
        ...


def no_sampler_state(key: jax.Array) -> tuple[()]:
    """Of a workload whose batches depend on policies and key alone."""
    return ()


def no_auxiliary_loss(
    policies: Policies, inputs: Any, steps: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array | Mean]]:
    """Of a workload that learns nothing besides its policy."""
    return jnp.zeros(()), {}


class Workload(NamedTuple):
    """The functions that make a workload; all pure, all jittable.

    Attributes:
      sample: draws a labelled batch.
      predict_reference: the reference's distributions on it.
      compare: log-probabilities and KLs of policy and reference on it.
      group_size: K.
      opponents: how many of a group's responses, the last ones, the reference draws where the
        policy draws the others. Their distribution has no gradient.
      init: makes the sampler's first state.
      auxiliary_loss: what is learnt besides the policy.
      refresh_updates: updates after which the reference becomes the policy; None keeps it.
      reference_kept: the share of its parameters that the reference keeps then; above 0 it is a
        moving average.
      abstains: whether pairs are left without a label, by what their responses are or where a
        budget ends. Baselines are then over all rows, see `score.advantages`.
      bounded: the entry of the policy's parameters that `optimizer.param_bound` bounds; None is all
        of them.
      stacked: the entry of the policy's parameters whose arrays are stacks of layers; see
        `optimizer.make`.
      mesh: devices over whose `data` axis rows are split while each holds the whole policy. The
        gradient is then computed in parts, each device on its rows, and added up by one all-reduce;
        see `gradient.make`. None leaves the split to the compiler.
      step_size: the share of the learning rate that update `step` (from 0) has.
    """

    sample: DrawSample
    predict_reference: PredictReference
    compare: Compare
    group_size: int
    opponents: int = 0
    init: InitSampler = no_sampler_state
    auxiliary_loss: AuxiliaryLoss = no_auxiliary_loss
    refresh_updates: int | None = None
    reference_kept: float = 0.0
    abstains: bool = False
    bounded: str | None = None
    stacked: str | None = None
    mesh: Mesh | None = None
    step_size: Callable[[jax.Array], jax.Array] = jnp.ones_like


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

        def array(x: float) -> Any:
            return np.asarray(x, jax.dtypes.canonicalize_dtype(float))

        return cls(
            beta=array(run.objective.beta),
            response_grad=array(run.objective.response_grad),
            label_grad=array(run.objective.label_grad),
            coefficient=array(run.divergence.coefficient),
            learning_rate=array(run.optimizer.learning_rate),
        )


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
        return Policies(policy=self.policy, reference=self.reference, shared=self.shared)
