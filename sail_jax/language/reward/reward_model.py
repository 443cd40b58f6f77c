"""Reward models: sequence classifiers as rewards."""

import functools
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sail_jax import files, hub
from sail_jax.core import precision
from sail_jax.errors import UserError
from sail_jax.language.data.rows import Message, Prompt
from sail_jax.language.data.tokens import Tokenizer
from sail_jax.language.model import weights
from sail_jax.language.model.architecture import Architecture
from sail_jax.language.model.attention import prompt_positions
from sail_jax.language.model.layers import Linear
from sail_jax.language.model.logprobs import Prompts, last_hidden
from sail_jax.language.model.sampler import pad_prompts
from sail_jax.language.model.transformer import Decoder
from sail_jax.language.reward.protocols import Reward, TrlPrompt

log = logging.getLogger(__name__)


class RewardModel(Decoder):
    """A sequence classifier with one label, as `AutoModelForSequenceClassification` has it: the
    last token's hidden state times `score`."""

    def __init__(self, architecture: Architecture, *, rngs: nnx.Rngs, **kwargs: Any):
        # It predicts no tokens, so there is no output matrix.
        tied = architecture.model_copy(update={'tied': True})
        super().__init__(tied, rngs=rngs, **kwargs)
        types = {'dtype': self.dtype, 'param_dtype': self.embed_tokens.param_dtype}
        self.score = Linear(architecture.hidden_size, 1, use_bias=False, rngs=rngs, **types)

    def rewards(self, sequences: Prompts) -> jax.Array:
        """Of whole sequences, float32 [B]; pure."""
        positions = prompt_positions(sequences.lengths_B, sequences.tokens_BxP.shape[1])
        hidden, _ = self(sequences.tokens_BxP[:, None], positions)
        last_BxD = last_hidden(hidden, sequences.lengths_B)
        kernel = self.score.kernel[...].astype(last_BxD.dtype)
        return jnp.matmul(last_BxD, kernel, preferred_element_type=jnp.float32)[:, 0]


def load(path: str | Path, **kwargs: Any) -> RewardModel:
    """A sequence-classification checkpoint of a family that `Decoder` has.

    Args:
      path: the directory.
      **kwargs: of `weights.load`.

    Raises:
      UserError: as of `weights.load`; also if it has more than one label.
    """
    return weights.load(path, RewardModel, **kwargs)


def pad_id(path: str | Path) -> int | None:
    """The id that a checkpoint's `config.json` pads with, if any.

    Raises:
      UserError: the file cannot be read; it is no id.
    """
    file = hub.local(path, hub.CONFIG) / 'config.json'
    value = files.read_json(file).get('pad_token_id')
    if value is not None and type(value) is not int:
        raise UserError(f'{file}: pad_token_id: expected an id, got {value!r:.80}')
    return value


def from_model(
    model: RewardModel, tokenizer: Tokenizer, max_tokens: int, *, pad_id: int | None = None
) -> Reward:
    """The reward function of a model with a tokeniser and chat template of its own.

    Args:
      model: runs where its parameters lie.
      tokenizer: the reward model's, not the policy's.
      max_tokens: of prompt and response together; of more the first are scored, as with
        transformers' `truncation=True`, which is logged at the first time.
      pad_id: see `pad_id`. The reward is read at the last token that is another, as transformers
        does: where the end of sequence is the padding too, at the token before it.
    """
    warn_once = functools.cache(log.warning)
    graphdef, state = nnx.split(model.of_length(max_tokens))

    @jax.jit
    @precision.traced_at(precision.of(model.dtype))
    def rewards(state: nnx.State, sequences: Prompts) -> jax.Array:
        return nnx.merge(graphdef, state).rewards(sequences)

    def reward(prompts: list[TrlPrompt], responses: list[str]) -> np.ndarray:
        sequences = list(map(tokenizer.scored_ids, map(_row, prompts), responses))
        if any(len(ids) > max_tokens for ids in sequences):
            warn_once(
                '%s: prompts with responses of more than reward.max_tokens (%d) tokens: the reward '
                'is of the first %d',
                tokenizer.path,
                max_tokens,
                max_tokens,
            )
            sequences = [ids[:max_tokens] for ids in sequences]
        sequences = [_without_padding(ids, pad_id) for ids in sequences]
        return np.asarray(rewards(state, pad_prompts(sequences)))

    reward.__qualname__ = str(tokenizer.path)  # What errors call it.
    return reward


def _without_padding(ids: list[int], pad_id: int | None) -> list[int]:
    """Less the padding at its end; of nothing but padding the first, which transformers takes."""
    end = max((n for n, i in enumerate(ids, 1) if i != pad_id), default=1)
    return ids[:end]


def _row(prompt: TrlPrompt) -> Prompt:
    """The prompt as rows have it."""
    return prompt if isinstance(prompt, str) else tuple(Message(**turn) for turn in prompt)
