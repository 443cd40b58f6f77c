"""What a labelled pair is worth: the one function in which preference objectives differ.

The objective is the mean over pairs of `P f(D) + (1 - P) f(-D)`, to be maximised, with P the
probability that the first response is preferred and D the margin of implicit rewards,
`D = beta * (log pi(y1)/pi_ref(y1) - log pi(y2)/pi_ref(y2))`. `f` is a pair loss with its sign
turned: larger is better. The score-function terms weight samples by `f`, whatever it is
(`objective.preference`), and where the policy labels its own pairs P is `sigmoid(D)` under each.

A new objective is one function and one line in `PAIR_LOSSES`:

    def exponential(margin, beta):
        return -jnp.exp(-margin)

    sail_jax.PAIR_LOSSES['exponential'] = exponential
    sail_jax.train('my.yaml', 'runs/exp', overrides={'objective.loss': 'exponential'})
"""

from typing import Protocol

import jax
import jax.numpy as jnp

from sail_jax.core import registry
from sail_jax.core.trial import tried
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


PAIR_LOSSES: dict[str, PairLoss] = {'dpo': dpo, 'ipo': ipo, 'hinge': hinge}
"""By what `objective.loss` calls them."""


def named(name: str) -> PairLoss:
    """The loss that `objective.loss` names.

    Raises:
      UserError: nobody has given a loss that name.
    """
    return registry.named(PAIR_LOSSES, name, 'objective.loss', 'sail_jax.PAIR_LOSSES')


def check(name: str, group_size: int) -> None:
    """Tries the loss that `objective.loss` names on shapes.

    Raises:
      UserError: nobody has given a loss that name; it raises; what it returns is not real numbers
        in the margin's shape.
    """
    what, loss = f'objective.loss: {name}', named(name)
    margin = jax.ShapeDtypeStruct((2, group_size, group_size), jnp.float32)
    worth = tried(what, loss, margin, jax.ShapeDtypeStruct((), jnp.float32))
    if getattr(worth, 'shape', None) != margin.shape:
        got = getattr(worth, 'shape', type(worth).__name__)
        raise UserError(
            f"{what}: f(margin, beta) returns one number for each margin, in the margin's shape "
            f'{margin.shape}; got {got}'
        )
    if not jnp.issubdtype(worth.dtype, jnp.floating):
        raise UserError(f'{what}: expected floating-point numbers, got {worth.dtype}')
