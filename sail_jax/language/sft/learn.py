"""Maximum likelihood of the chosen responses: the loss of prompts with their responses."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax.core.types import Policy
from sail_jax.language.data.dataset import Example
from sail_jax.language.model.attention import prompt_positions
from sail_jax.language.model.logprobs import Predictions, log_probs
from sail_jax.language.model.sampler import bucket, pad_prompts
from sail_jax.language.model.transformer import Decoder
from sail_jax.language.supervised.learn import Drop, LossSums, StageLoss


class Completions(NamedTuple):
    """Prompts with their responses, padded on the right."""

    tokens_BxS: jax.Array
    lengths_B: jax.Array
    """Of prompt and response together."""
    prompt_lengths_B: jax.Array


def sequence(example: Example) -> list[int]:
    """The prompt with its response."""
    return example.prompt + (example.chosen or [])


def collate(examples: Sequence[Example], places: int = 1) -> Completions:
    """Pads rows to the bucket of the longest; on the host.

    Args:
      places: of each row at the least.
    """
    whole = pad_prompts(list(map(sequence, examples)), bucket(places))
    prompt_lengths: Any = np.asarray([len(example.prompt) for example in examples], np.int32)
    return Completions(
        tokens_BxS=whole.tokens_BxP,
        lengths_B=whole.lengths_B,
        prompt_lengths_B=prompt_lengths,
    )


def nats(decoder: Decoder, rows: Completions, loss_on: str) -> tuple[jax.Array, jax.Array]:
    """Minus the log-probability of the rows' tokens, summed, and how many tokens these are.

    Args:
      loss_on: `SftRun.loss_on`.
    """
    S = rows.tokens_BxS.shape[1]
    positions = prompt_positions(rows.lengths_B, S)
    hidden_Bx1xSxD, _ = decoder(rows.tokens_BxS[:, None], positions)
    predicted = Predictions(hidden_Bx1xSxD[:, 0, :-1], decoder.head())
    logp = log_probs(predicted, rows.tokens_BxS[:, 1:])
    place = jnp.arange(1, S)
    mask = place < rows.lengths_B[:, None]
    if loss_on == 'response':
        mask &= place >= rows.prompt_lengths_B[:, None]
    return -jnp.where(mask, logp, 0).sum(), mask.sum()


def make_loss(model: Callable[[Policy, Any], Decoder], loss_on: str) -> StageLoss:
    """`nats` of a policy.

    Args:
      model: the decoder of a policy, on `State.shared`.
      loss_on: `SftRun.loss_on`.
    """

    def total(
        policy: Policy, shared: Any, rows: Completions, drop: Drop
    ) -> tuple[jax.Array, LossSums]:
        total, tokens = nats(drop(model(policy, shared)), rows, loss_on)
        return total, LossSums(tokens, {})

    return StageLoss('tokens', total)
