"""The Bradley-Terry loss of compared responses, and what held-out pairs say of a reward model."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax.core import bradley_terry
from sail_jax.core.types import Policy
from sail_jax.language.data.dataset import Example
from sail_jax.language.model.sampler import bucket, pad_prompts
from sail_jax.language.reward.reward_model import RewardModel, without_padding
from sail_jax.language.reward.stage.config import BradleyTerry
from sail_jax.language.supervised.learn import Drop, LossSums, StageLoss


class ComparedRows(NamedTuple):
    """Pairs of whole texts, the chosen one first, padded on the right."""

    tokens_Bx2xS: jax.Array
    lengths_Bx2: jax.Array
    margin_B: jax.Array
    """By how much the chosen one's reward should be higher."""
    weight_BxH: jax.Array
    """How much each head learns from a pair."""


def collate(
    examples: Sequence[Example],
    places: int = 1,
    *,
    heads: int = 1,
    seed: int = 0,
    pad_id: int | None = None,
) -> ComparedRows:
    """Pads rows to the bucket of the longest; on the host.

    Args:
      examples: as of `dataset.encode_comparison`.
      places: of each sequence at the least.
      heads, seed: of the weights; one head has every pair.
      pad_id: as of `reward_model.from_model`.
    """
    whole = [without_padding(ids or [], pad_id) for e in examples for ids in (e.chosen, e.rejected)]
    padded, B = pad_prompts(whole, bucket(places)), len(examples)
    margins: Any = np.asarray([example.row.margin for example in examples], np.float32)
    weights: Any = np.asarray([_weights(example, heads, seed) for example in examples], np.float32)
    return ComparedRows(
        tokens_Bx2xS=padded.tokens_BxP.reshape(B, 2, -1),
        lengths_Bx2=padded.lengths_B.reshape(B, 2),
        margin_B=margins,
        weight_BxH=weights,
    )


def _weights(example: Example, heads: int, seed: int) -> np.ndarray:
    """0 or 2 for each head: a function of the pair and the seed, the same in every epoch."""
    if heads == 1:
        return np.ones(1)
    pair = zlib.crc32(repr((example.chosen, example.rejected)).encode())
    return 2.0 * np.random.default_rng([seed, pair]).integers(0, 2, heads)


def length(example: Example) -> int:
    """Of the longer text."""
    return max(len(example.chosen or ()), len(example.rejected or ()))


def pair_losses(rewards_Bx2xH: jax.Array, margin_B: jax.Array, loss: BradleyTerry) -> jax.Array:
    """The loss of each pair and head, [B, H]: Bradley-Terry (arXiv 2203.02155, equation 1), with
    the margin of Llama 2 (arXiv 2307.09288, equation 2), and what `BradleyTerry` adds."""
    chosen_BxH, rejected_BxH = rewards_Bx2xH[:, 0], rewards_Bx2xH[:, 1]
    difference_BxH = chosen_BxH - rejected_BxH - margin_B[:, None]
    smoothing = loss.label_smoothing
    likelihood_BxH = (1 - smoothing) * jax.nn.log_sigmoid(difference_BxH)
    likelihood_BxH += smoothing * jax.nn.log_sigmoid(-difference_BxH)
    return loss.centering * (chosen_BxH + rejected_BxH) ** 2 - likelihood_BxH


def make_loss(model: Callable[[Policy, Any], Any], settings: BradleyTerry) -> StageLoss:
    """The mean of `pair_losses` over heads and pairs.

    Args:
      model: the `RewardModel` of a policy, on `State.shared`.
    """

    def total(
        policy: Policy, shared: Any, rows: ComparedRows, drop: Drop
    ) -> tuple[jax.Array, LossSums]:
        rewards_Bx2xH = rewards_of(drop(model(policy, shared)), rows)
        losses_BxH = pair_losses(rewards_Bx2xH, rows.margin_B, settings) * rows.weight_BxH
        margin_B = (rewards_Bx2xH[:, 0] - rewards_Bx2xH[:, 1]).mean(-1)
        sums = {
            'pair_accuracy': ((1 + jnp.sign(margin_B)) / 2).sum(),
            'pair_margin': margin_B.sum(),
        }
        return losses_BxH.mean(-1).sum(), LossSums(jnp.asarray(len(margin_B), jnp.int32), sums)

    return StageLoss('pairs', total)


def rewards_of(model: RewardModel, rows: ComparedRows) -> jax.Array:
    """Float32 [B, 2, heads]."""
    return model.rewards_of_lanes(rows.tokens_Bx2xS, rows.lengths_Bx2)


@np.errstate(invalid='ignore')
def numbers(rewards_Nx2xH: np.ndarray) -> dict[str, Any]:
    """Of held-out pairs: of the heads' mean, which takes the first of each pair to be better with
    probability sigmoid(margin).

    `loss` is minus that probability's log; `confidence` the mean probability of the response that
    the model takes to be better, and `calibration_error` how far it is from how often that one is
    the chosen one: the mean distance within bins of `confidence` (arXiv 1706.04599). NaN where a
    reward is.
    """
    rewards_Nx2 = np.asarray(rewards_Nx2xH, np.float64).mean(-1)
    margin = rewards_Nx2[:, 0] - rewards_Nx2[:, 1]
    first_is_better, counts = np.ones_like(margin), np.ones_like(margin)
    means = {
        'loss': np.logaddexp(0, -margin).mean(),
        'pair_accuracy': bradley_terry.right(margin, first_is_better).mean(),
        'pair_margin': margin.mean(),
        **bradley_terry.calibration(margin, first_is_better, counts),
        'mean_reward': rewards_Nx2.mean(),
    }
    if len(margin) > 1:
        means['pair_margin_se'] = margin.std(ddof=1) / len(margin) ** 0.5
    if rewards_Nx2xH.shape[-1] > 1:
        means['reward_spread'] = rewards_Nx2xH.std(-1).mean()
    return means
