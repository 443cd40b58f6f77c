"""Who says which of two responses is better.

A labeller is one function (`Labeller`) and one line in `LABELLERS`, for control and language alike:

    def threshold(key_B, returns, settings):
        # Only differences above 1 are told; the rest is left without a label.
        difference = returns.perceived_BxK[:, :, None] - returns.perceived_BxK[:, None, :]
        return Preferences((1 + jnp.sign(difference)) / 2, 1.0 * (jnp.abs(difference) > 1))

    sail_jax.LABELLERS['threshold'] = threshold
    sail_jax.train('my.yaml', 'runs/threshold', overrides={'labeller.kind': 'threshold'})

`teacher`, the default, follows the scripted teachers of B-Pref (Lee et al. 2021, arXiv 2111.03026,
section 3.1). Its six kinds are settings of one function:

| teacher    | setting                                                            |
|------------|--------------------------------------------------------------------|
| oracle     | the defaults: the larger return is preferred                       |
| stochastic | `rationality: b` - Bradley-Terry, `sigmoid(b * (R_i - R_j))`       |
| myopic     | `discount: g` < 1 - a reward t steps before the end counts `g^t`   |
| mistake    | `mistake: e` - a label is turned round with probability e          |
| skip       | `skip: e` - no label where both returns are low                    |
| equal      | `equal: e` - "the same" where the returns are close                |

Thresholds. B-Pref's code (`reward_model.py`, `get_label`) keeps a query where the larger return is
above `e * R`, if `e * R > 0`, and calls returns equal that differ by less than `e * R`; R is the
mean return of the last training episodes, scaled to a segment. Here R is the mean return of the
batch. `skip` is B-Pref's rule with it: where R is not positive (a reward that is a cost) nothing is
skipped, as "low" then has no scale. `equal` goes by the mean of `|return|`: that is R where returns
are positive, and works where they are negative.

The policy as its own labeller needs no code here: see `types.Route.policy_label_B`.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax.config import Teacher
from sail_jax.core import registry
from sail_jax.core.keys import split_rows
from sail_jax.core.trial import answered, tried, tried_on_one
from sail_jax.core.types import Preferences
from sail_jax.errors import UserError


class Returns(NamedTuple):
    """What a labeller goes by, [B, K] each: returns of segments, or rewards of responses."""

    true_BxK: jax.Array
    perceived_BxK: jax.Array
    """The same, or a myopic teacher's (`labeller.discount`). NaN or infinite where a reward is."""
    counted_BxK: jax.Array
    """True for the returns that are one: not of a segment in which the simulator broke, nor in a
    row that nobody asks for. A typical return is a mean over these."""


class Labeller(Protocol):
    """Compares all pairs of each group."""

    def __call__(self, key_B: jax.Array, returns: Returns, settings: Teacher, /) -> Preferences:
        """Preferences of the whole batch; JAX-traceable.

        Pairs beyond `labeller.max_labels` lose their label afterwards.

        Args:
          key_B: one key for each group; what is random in its labels is to depend on it alone.
          returns: what it goes by.
          settings: the section `labeller`.

        Returns:
          `prob_ij` that i is preferred to j, with `prob_ij + prob_ji = 1`, and 1 where the pair has
          a label; the diagonal is not looked at. A label out of a return that is not finite should
          be NaN: the update is then skipped and counted.
        """
        ...


def myopic_weights(mask_BxKxT: jax.Array, discount: float) -> jax.Array:
    """Weight `discount^(steps left)` for each step of a segment, [B, K, T], 0 where masked."""
    left_BxKxT = mask_BxKxT.sum(-1, keepdims=True) - jnp.cumsum(mask_BxKxT, -1)
    return mask_BxKxT * discount**left_BxKxT


def teacher(key_B: jax.Array, returns: Returns, settings: Teacher) -> Preferences:
    """The scripted teacher; see the module's docstring and `Labeller`.

    The objective's gradient takes the thresholds of `skip` and `equal` as fixed, though they move
    with the batch.

    Returns:
      Hard labels (0, 1/2, 1), or with `soft` the probabilities themselves.
    """
    true_BxK, perceived_BxK, counted_BxK = returns
    K = true_BxK.shape[1]
    difference_BxKxK = perceived_BxK[:, :, None] - perceived_BxK[:, None, :]
    if settings.rationality is None:
        prob_BxKxK = (1 + jnp.sign(difference_BxKxK)) / 2
    else:
        prob_BxKxK = jax.nn.sigmoid(settings.rationality * difference_BxKxK)
    if settings.soft:
        mistake = settings.mistake
        prob_BxKxK = (1 - mistake) * prob_BxKxK + mistake * (1 - prob_BxKxK)
    else:
        prob_BxKxK = _drawn_labels(key_B, prob_BxKxK, settings.mistake)
        # By the difference, not by a probability of 1/2: rounding can give 1/2 for ij, and for ji
        # something beside it, where the difference is tiny.
        prob_BxKxK = jnp.where(difference_BxKxK == 0, 0.5, prob_BxKxK)
    # No confident label out of a return that is not finite: the update is skipped and counted.
    prob_BxKxK = jnp.where(jnp.isfinite(difference_BxKxK), prob_BxKxK, jnp.nan)

    counted = jnp.maximum(counted_BxK.sum(), 1)
    typical = jnp.where(counted_BxK, true_BxK, 0).sum() / counted
    typical_size = jnp.where(counted_BxK, jnp.abs(true_BxK), 0).sum() / counted
    true_difference_BxKxK = jnp.abs(true_BxK[:, :, None] - true_BxK[:, None, :])
    if settings.equal > 0:
        close_BxKxK = true_difference_BxKxK < settings.equal * typical_size
        prob_BxKxK = jnp.where(close_BxKxK, 0.5, prob_BxKxK)
    weight_BxKxK = jnp.ones_like(prob_BxKxK) - jnp.eye(K)[None]
    if settings.skip > 0:
        best_BxKxK = jnp.maximum(true_BxK[:, :, None], true_BxK[:, None, :])
        low_BxKxK = (typical > 0) & (best_BxKxK <= settings.skip * typical)
        weight_BxKxK = jnp.where(low_BxKxK, 0, weight_BxKxK)
    return Preferences(prob_BxKxK=prob_BxKxK, weight_BxKxK=weight_BxKxK)


def _drawn_labels(key_B: jax.Array, prob_BxKxK: jax.Array, mistake: float) -> jax.Array:
    """Hard labels, 0 or 1, some of them turned round; one draw decides ij and ji."""
    K = prob_BxKxK.shape[1]
    choice_B, mistake_B = split_rows(key_B, 2)
    draw = jax.vmap(lambda key: jax.random.uniform(key, (K, K)))
    hard_BxKxK = (draw(choice_B) < prob_BxKxK).astype(prob_BxKxK.dtype)
    turned_BxKxK = draw(mistake_B) < mistake
    hard_BxKxK = jnp.where(turned_BxKxK, 1 - hard_BxKxK, hard_BxKxK)
    upper_KxK = jnp.triu(jnp.ones((K, K), bool), 1)
    return jnp.where(upper_KxK, hard_BxKxK, 1 - hard_BxKxK.mT)


ROUNDING = 0.01
"""Of a sum of two probabilities, in half precision."""
LABELLERS: dict[str, Labeller] = {'teacher': teacher}
"""By what `labeller.kind` calls them."""


def named(name: str) -> Labeller:
    """The labeller that `labeller.kind` names.

    Raises:
      UserError: nobody has given a labeller that name.
    """
    return registry.named(LABELLERS, name, 'labeller.kind', 'sail_jax.LABELLERS')


def label(key_B: jax.Array, returns: Returns, settings: Teacher) -> Preferences:
    """Asks the labeller that `settings.kind` names; what it says, in float32 at the least, since
    there are more pairs than half precision can count."""
    said = named(settings.kind)(key_B, returns, settings)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32)), said)


def check(settings: Teacher, group_size: int, side_by_side: bool = False) -> None:
    """Tries the labeller that `settings.kind` names: on shapes, and one of a program's own on
    returns as well, two groups of them.

    Args:
      side_by_side: whether members of a sweep train in one program.

    Raises:
      UserError: nobody has given a labeller that name; it raises; what it returns are no
        preferences of all pairs.
    """
    what, labeller = f'labeller.kind: {settings.kind}', named(settings.kind)
    shape = 2, group_size

    def arguments() -> tuple[jax.Array, Returns]:
        key_B = jax.random.split(jax.random.key(0), 2)
        number = jax.random.normal(key_B[0], shape)
        counted = jnp.ones(shape, bool)
        return key_B, Returns(true_BxK=number, perceived_BxK=number, counted_BxK=counted)

    ask = lambda key_B, returns: labeller(key_B, returns, settings)
    attempt = tried_on_one if side_by_side else tried
    said = attempt(what, ask, *jax.eval_shape(arguments))
    if not isinstance(said, Preferences):
        raise UserError(
            f'{what}: expected sail_jax.core.types.Preferences, got {type(said).__name__}'
        )
    for field in ('prob_BxKxK', 'weight_BxKxK'):
        if (got := getattr(getattr(said, field), 'shape', None)) != (*shape, group_size):
            raise UserError(
                f'{what}: expected {field} of shape {(*shape, group_size)}, [B, K, K], for '
                f'returns of shape {shape}; got {got}'
            )
    if labeller is not teacher and (numbers := answered(what, ask, *arguments())) is not None:
        _require_preferences(what, numbers.prob_BxKxK, numbers.weight_BxKxK)


def _require_preferences(what: str, prob_BxKxK: np.ndarray, weight_BxKxK: np.ndarray) -> None:
    """Refuses numbers that are no preferences, and that an update would take for some."""
    prob_BxKxK, weight_BxKxK = (np.asarray(x, np.float64) for x in (prob_BxKxK, weight_BxKxK))
    i, j = np.triu_indices(prob_BxKxK.shape[-1], 1)
    pairs = lambda x: np.stack([x[:, i, j], x[:, j, i]], -1).reshape(-1, 2).tolist()
    for (p_ij, p_ji), (w_ij, w_ji) in zip(pairs(prob_BxKxK), pairs(weight_BxKxK), strict=True):
        if not (w_ij == w_ji and 0 <= w_ij <= 1):
            raise UserError(
                f'{what}: gave a pair weight_ij {w_ij:g} and weight_ji {w_ji:g}; expected one '
                'number for both, 1 where the pair has a label, else 0'
            )
        no_label = w_ij == 0 or np.isnan(p_ij + p_ji)
        if not no_label and (
            abs(p_ij + p_ji - 1) > ROUNDING or not -ROUNDING <= p_ij <= 1 + ROUNDING
        ):
            raise UserError(
                f'{what}: gave a pair prob_ij {p_ij:g} and prob_ji {p_ji:g}; expected numbers '
                'from 0 to 1 whose sum is 1 (one draw decides both)'
            )


def broken_loses(preferences: Preferences, broken_BxK: jax.Array) -> Preferences:
    """What a segment collected until the simulator broke is no return: it loses to every sound one,
    whatever a labeller made of it, and two of them are not compared."""
    i_BxKxK, j_BxKxK = jnp.broadcast_arrays(broken_BxK[:, :, None], broken_BxK[:, None, :])
    prob_BxKxK = jnp.where(i_BxKxK, 0, jnp.where(j_BxKxK, 1, preferences.prob_BxKxK))
    both_BxKxK = i_BxKxK & j_BxKxK
    return Preferences(
        prob_BxKxK=jnp.where(both_BxKxK, 0.5, prob_BxKxK),
        weight_BxKxK=jnp.where(both_BxKxK, 0, preferences.weight_BxKxK),
    )


class Budget(NamedTuple):
    """Labels after the budget was applied."""

    preferences: Preferences
    asked: jax.Array
    """How many comparisons this batch cost, skipped ones included, int32."""


def within_budget(
    preferences: Preferences, asks_B: jax.Array, spent: jax.Array, max_labels: int | None
) -> Budget:
    """Removes the labels that the budget no longer covers, in the order of rows and pairs.

    Args:
      preferences: labels of the whole batch.
      asks_B: True for rows whose pairs are put to the labeller.
      spent: comparisons asked before this batch.
      max_labels: the budget; None is unlimited.
    """
    K = preferences.prob_BxKxK.shape[-1]
    pairs = K * (K - 1) // 2
    asked = pairs * asks_B.sum(dtype=jnp.int32)
    if max_labels is None:
        return Budget(preferences, asked)
    left = jnp.maximum(max_labels - spent, 0)
    before_B = pairs * (jnp.cumsum(asks_B, dtype=jnp.int32) - asks_B)
    upper_KxK = jnp.triu(jnp.ones((K, K), jnp.int32), 1)
    order_KxK = (jnp.cumsum(upper_KxK.ravel()) - 1).reshape(K, K) * upper_KxK
    order_KxK = order_KxK + order_KxK.T
    covered_BxKxK = before_B[:, None, None] + order_KxK < left
    covered_BxKxK = covered_BxKxK | ~asks_B[:, None, None]
    return Budget(
        preferences._replace(weight_BxKxK=preferences.weight_BxKxK * covered_BxKxK),
        jnp.minimum(asked, left),
    )
