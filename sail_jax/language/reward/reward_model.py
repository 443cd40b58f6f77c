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
from sail_jax.language.data import turns
from sail_jax.language.data.rows import Message, Prompt
from sail_jax.language.data.tokens import Tokenizer
from sail_jax.language.model import architecture as architectures
from sail_jax.language.model import weights
from sail_jax.language.model.architecture import Architecture
from sail_jax.language.model.attention import lane_positions
from sail_jax.language.model.families import FAMILIES
from sail_jax.language.model.layers import Linear
from sail_jax.language.model.logprobs import Prompts, last_of_lanes
from sail_jax.language.model.sampler import pad_prompts
from sail_jax.language.model.transformer import Decoder
from sail_jax.language.reward.protocols import Reward, TrlPrompt

log = logging.getLogger(__name__)


class RewardModel(Decoder):
    """A sequence classifier, as `AutoModelForSequenceClassification` has it: the last token's
    hidden state times `score`, whose labels are heads of an ensemble. `score` is float32."""

    def __init__(
        self, architecture: Architecture, *, rngs: nnx.Rngs, heads: int = 1, **kwargs: Any
    ):
        # It predicts no tokens, so there is no output matrix.
        tied = architecture.model_copy(update={'tied': True})
        super().__init__(tied, rngs=rngs, **kwargs)
        self.heads = heads
        size = architecture.hidden_size
        self.score = Linear(size, heads, use_bias=False, rngs=rngs, dtype=self.dtype)

    def own_keys(self) -> dict[str, Any]:
        """As of `Decoder`; the labels are named, so that who reads them knows what they are."""
        labels = [f'reward_{head}' for head in range(self.heads)]
        return {
            'architectures': [FAMILIES[self.architecture.family].classifier_class],
            'id2label': {str(head): label for head, label in enumerate(labels)},
            'label2id': {label: head for head, label in enumerate(labels)},
        }

    def rewards(self, sequences: Prompts) -> jax.Array:
        """Of whole sequences, float32 [B, heads]; pure."""
        tokens_BxLxT, lengths_BxL = sequences.tokens_BxP[:, None], sequences.lengths_B[:, None]
        return self.rewards_of_lanes(tokens_BxLxT, lengths_BxL)[:, 0]

    def rewards_of_lanes(self, tokens_BxLxT: jax.Array, lengths_BxL: jax.Array) -> jax.Array:
        """Of L whole sequences a row, float32 [B, L, heads]; pure."""
        hidden, _ = self(tokens_BxLxT, lane_positions(lengths_BxL, tokens_BxLxT.shape[-1]))
        last_BxLxD = last_of_lanes(hidden, lengths_BxL)
        kernel = self.score.kernel[...].astype(last_BxLxD.dtype)
        return jnp.matmul(last_BxLxD, kernel, preferred_element_type=jnp.float32)


def load(path: str | Path, **kwargs: Any) -> RewardModel:
    """A sequence-classification checkpoint of a family that `Decoder` has.

    Args:
      path: the directory.
      **kwargs: of `weights.load`.

    Raises:
      UserError: as of `weights.load`; also if it has several labels that are no heads of ours.
    """
    return weights.load(path, functools.partial(RewardModel, heads=heads_of(path)), **kwargs)


def heads_of(path: str | Path) -> int:
    """How many rewards a checkpoint gives: several only where its labels are named as
    `RewardModel.own_keys` names them, since other classifiers' labels are no rewards.

    Raises:
      UserError: `config.json` cannot be read.
    """
    architectures.read(Path(path))  # Says what else it may be.
    config = hub.local(path, hub.CONFIG) / 'config.json'
    labels = files.read_json(config).get('id2label')
    count = len(labels) if isinstance(labels, dict) else 0
    ours = {str(head): f'reward_{head}' for head in range(count)}
    return count if count and labels == ours else 1


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


def padding(path: str | Path, tokenizer: Tokenizer) -> int:
    """The id that a model of this checkpoint pads with once it scores: what `config.json` names,
    else the tokeniser's.

    Raises:
      UserError: as of `pad_id`.
    """
    named = pad_id(path)
    return tokenizer.pad_id() if named is None else named


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

    Returns:
      A reward; of a model with several heads a function that gives [N, heads].
    """
    warn_once = functools.cache(log.warning)
    graphdef, state = nnx.split(model.of_length(max_tokens))

    @jax.jit
    @precision.traced_at(precision.of(model.dtype))
    def rewards(state: nnx.State, sequences: Prompts) -> jax.Array:
        return nnx.merge(graphdef, state).rewards(sequences)

    def reward(prompts: list[TrlPrompt], responses: list[str]) -> np.ndarray:
        rows = [row_of(prompt, tokenizer) for prompt in prompts]
        sequences = list(map(tokenizer.scored_ids, rows, responses))
        if any(len(ids) > max_tokens for ids in sequences):
            warn_once(
                '%s: prompts with responses of more than reward.max_tokens (%d) tokens: the reward '
                'is of the first %d',
                tokenizer.path,
                max_tokens,
                max_tokens,
            )
            sequences = [ids[:max_tokens] for ids in sequences]
        sequences = [without_padding(ids, pad_id) for ids in sequences]
        rewards_NxH = np.asarray(rewards(state, pad_prompts(sequences)))
        return rewards_NxH if model.heads > 1 else rewards_NxH[:, 0]

    reward.__qualname__ = str(tokenizer.path)  # What errors call it.
    return reward


def without_padding(ids: list[int], pad_id: int | None) -> list[int]:
    """Less the padding at its end; of nothing but padding the first, which transformers takes."""
    end = max((n for n, i in enumerate(ids, 1) if i != pad_id), default=1)
    return ids[:end]


def row_of(prompt: TrlPrompt, tokenizer: Tokenizer) -> Prompt:
    """The prompt as rows have it; without tools where the chat template takes none."""
    if isinstance(prompt, str):
        return prompt
    messages = tuple(Message(**turn) for turn in prompt)
    tools, conversation = turns.told(messages)
    return conversation if tools and not tokenizer.takes_tools else messages
