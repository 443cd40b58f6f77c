"""What a labelled pair is worth: the one function in which preference objectives differ.

The objective is the mean over pairs of `P f(D - m) + (1 - P) f(-D - m)`, to be maximised, with P
the probability that the first response is preferred, m `objective.target_margin`, and D the margin
of implicit rewards, `D = beta * (h(y1) - h(y2))`, where `h(y) = log pi(y)/pi_ref(y)` but for losses
that say another (`OfReward`). `f` is a pair loss with its sign turned: larger is better. The
score-function terms weight samples by `f`, whatever it is (`objective.preference`), and where the
policy labels its own pairs P is `sigmoid(D)` under each.

A new objective is one function and one line in `PAIR_LOSSES`:

    def exponential(margin, beta):
        return -jnp.exp(-margin)

    sail_jax.PAIR_LOSSES['exponential'] = exponential
    sail_jax.train('my.yaml', 'runs/exp', overrides={'objective.loss': 'exponential'})
"""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp

from sail_jax.core import registry
from sail_jax.core.trial import tried, tried_on_one
from sail_jax.errors import UserError


class PairLoss(Protocol):
    """`f(D)`, to be maximised."""

    def __call__(self, margin: jax.Array, beta: jax.typing.ArrayLike, /) -> jax.Array:
        """The worth of pairs whose first response is the preferred one.

        Args:
          margin: `D`, beta included, any shape.
          beta: `objective.beta`, scalar, for losses that are of the bare log-ratio `D / beta`.

        Returns:
          An array of the margin's shape.
        """
        ...


def dpo(margin: jax.Array, beta: jax.typing.ArrayLike) -> jax.Array:
    """`log sigmoid(D)`: Bradley-Terry's log-likelihood (DPO, arXiv 2305.18290, eq. 7; SAIL's)."""
    return jax.nn.log_sigmoid(margin)


def ipo(margin: jax.Array, beta: jax.typing.ArrayLike) -> jax.Array:
    """`-(D / beta - 1 / (2 beta))^2`: regression of the log-ratio margin to `1 / (2 beta)` (IPO,
    arXiv 2310.12036, whose tau is beta), log-probabilities summed over the steps of a response.

    Values are of the size `1 / (4 beta^2)`: 25 at beta 0.1, where `dpo` has 0.7.
    """
    return -((margin / beta - 1 / (2 * beta)) ** 2)


def hinge(margin: jax.Array, beta: jax.typing.ArrayLike) -> jax.Array:
    """`-max(0, 1 - D)`: SLiC's hinge on the implicit rewards (arXiv 2305.10425; as TRL's)."""
    return -jax.nn.relu(1 - margin)


def squared(margin: jax.Array, beta: jax.typing.ArrayLike) -> jax.Array:
    """`-D^2`: with D less the difference of two rewards (`ToRewards`) it is REBEL's regression
    (arXiv 2404.16767, eq. 4) times -1, where eta is `1 / beta`."""
    return -(margin**2)


class ImplicitReward(Protocol):
    """What a policy's probabilities say that a response is worth, less beta: `h`."""

    def __call__(
        self, logp: jax.Array, reference_logp: jax.Array, steps: jax.Array, /
    ) -> jax.Array:
        """Of responses, any shape.

        Args:
          logp: of whole responses under the policy.
          reference_logp: the same under the reference.
          steps: env steps or tokens of each response.
        """
        ...


def log_ratio(logp: jax.Array, reference_logp: jax.Array, steps: jax.Array) -> jax.Array:
    """`log pi(y) / pi_ref(y)`: the reward that pi is optimal for (DPO, eq. 5)."""
    return logp - reference_logp


def mean_log_prob(logp: jax.Array, reference_logp: jax.Array, steps: jax.Array) -> jax.Array:
    """`log pi(y) / |y|`: length-normalised, without a reference (SimPO, arXiv 2405.14734)."""
    return logp / jnp.maximum(steps, 1)


@dataclass(frozen=True)
class OfReward:
    """A pair loss of the margin of another implicit reward than `log_ratio`."""

    worth: PairLoss
    reward: ImplicitReward

    def __call__(self, margin: jax.Array, beta: jax.typing.ArrayLike, /) -> jax.Array:
        """See `PairLoss`."""
        return self.worth(margin, beta)


@dataclass(frozen=True)
class ToRewards:
    """A pair loss of what is between the margin and the difference of the responses' rewards; even
    in it, so that labels are of no account."""

    worth: PairLoss

    def __call__(self, margin: jax.Array, beta: jax.typing.ArrayLike, /) -> jax.Array:
        """See `PairLoss`."""
        return self.worth(margin, beta)


@dataclass(frozen=True)
class MeanReward:
    """A pair is worth the mean of its responses' rewards, whatever policy and labels say.

    J is then the expected reward. It has no pathwise term, and its response-score term is REINFORCE
    with the mean of the group's others as baseline (RLOO, arXiv 2402.14740): what comparisons of
    the same samples are held against.
    """

    def __call__(self, margin: jax.Array, beta: jax.typing.ArrayLike, /) -> jax.Array:
        """See `PairLoss`; what a pair without rewards would be worth."""
        return jnp.zeros_like(margin)


def needs_rewards(loss: PairLoss | None) -> bool:
    """Whether a loss is of the rewards that the labeller goes by, and not of its labels."""
    return isinstance(loss, ToRewards | MeanReward)


def implicit_reward(loss: PairLoss | None) -> ImplicitReward:
    """Whose margin a loss is of; None, one that nobody has given a name, counts as DPO's."""
    return loss.reward if isinstance(loss, OfReward) else log_ratio


PAIR_LOSSES: dict[str, PairLoss] = {
    'dpo': dpo,
    'ipo': ipo,
    'hinge': hinge,
    'simpo': OfReward(worth=dpo, reward=mean_log_prob),
    'rebel': ToRewards(worth=squared),
}
"""By what `objective.loss` calls them."""


def named(name: str) -> PairLoss:
    """The loss that `objective.loss` names.

    Raises:
      UserError: nobody has given a loss that name.
    """
    return registry.named(PAIR_LOSSES, name, 'objective.loss', 'sail_jax.PAIR_LOSSES')


def check(name: str, group_size: int, side_by_side: bool = False) -> None:
    """Tries the loss that `objective.loss` names, and its gradient, on shapes.

    Args:
      side_by_side: whether members of a sweep train in one program.

    Raises:
      UserError: nobody has given a loss that name; it raises; what it returns is not real numbers
        in the margin's shape.
    """
    what, loss = f'objective.loss: {name}', named(name)
    margin = jax.ShapeDtypeStruct((2, group_size, group_size), jnp.float32)
    beta = jax.ShapeDtypeStruct((), jnp.float32)
    attempt = tried_on_one if side_by_side else tried
    worth = attempt(what, loss, margin, beta)
    if getattr(worth, 'shape', None) != margin.shape:
        got = getattr(worth, 'shape', type(worth).__name__)
        raise UserError(
            f"{what}: f(margin, beta) returns one number for each margin, in the margin's shape "
            f'{margin.shape}; got {got}'
        )
    if not jnp.issubdtype(worth.dtype, jnp.floating):
        raise UserError(f'{what}: expected floating-point numbers, got {worth.dtype}')
    attempt(f'{what}: its gradient', jax.grad(lambda D, b: loss(D, b).sum()), margin, beta)
