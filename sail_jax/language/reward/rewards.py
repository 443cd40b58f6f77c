"""Who scores responses: a Python function, a reward model, a judge of pairs.

All are functions of two lists of one length that give one number for each place. Labels are made
from them on the host: `score` and `judge`.
"""

import decimal
import functools
import itertools
import logging
import numbers
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sail_jax import files
from sail_jax.core.objective import Preferences
from sail_jax.errors import TrainingFailed, UserError, one_line
from sail_jax.language.data.rows import Message, Prompt
from sail_jax.language.data.tokens import Tokenizer
from sail_jax.language.model import weights
from sail_jax.language.model.architecture import Architecture
from sail_jax.language.model.attention import prompt_positions
from sail_jax.language.model.layers import Linear
from sail_jax.language.model.logprobs import Prompts, last_hidden
from sail_jax.language.model.sampler import pad_prompts
from sail_jax.language.model.transformer import Decoder
from sail_jax.training import devices

log = logging.getLogger(__name__)

Asked = str | list[dict[str, str]]
"""A prompt as TRL's reward functions get it: text, or a conversation of
`{'role': 'user', 'content': '...'}` that awaits the assistant's turn."""

Reward = Callable[[list[Asked], list[str]], Sequence[float]]
"""`(prompts, responses) -> rewards`: a prompt stands before each of its responses, as in TRL's
reward functions. A response is text, also to a conversation, where TRL has a message of the
assistant's. NaN is no answer: the update is skipped and counted."""

Judge = Callable[[list[Asked], list[tuple[str, str]]], Sequence[float]]
"""`(prompts, pairs of responses) -> probabilities` that the first of the pair is preferred;
prompts, responses and NaN as of `Reward`."""


def asked(prompt: Prompt) -> Asked:
    """A copy of the prompt's own, which the function may change."""
    return prompt if isinstance(prompt, str) else [turn._asdict() for turn in prompt]


def score(
    reward: Reward,
    prompts_B: Sequence[Prompt],
    responses_BxK: Sequence[Sequence[str]],
    *,
    batch_size: int = 64,
    timeout_s: float = 60.0,
) -> np.ndarray:
    """Rewards of K responses to each of B prompts, float32 [B, K].

    Args:
      reward: called on the host, with at most `batch_size` responses at a time.
      timeout_s: of each call, seconds.

    Raises:
      UserError: the function raised, or gave anything but one number a response.
      TrainingFailed: it took longer than it may.
    """
    K = len(responses_BxK[0])
    prompts = [asked(prompt) for prompt in prompts_B for _ in range(K)]
    responses = [response for group in responses_BxK for response in group]
    return _in_batches(reward, prompts, responses, batch_size, timeout_s).reshape(-1, K)


def judge(
    judge: Judge,
    prompts_B: Sequence[Prompt],
    responses_BxK: Sequence[Sequence[str]],
    *,
    batch_size: int = 64,
    timeout_s: float = 60.0,
) -> Preferences:
    """Preferences between all pairs of each group; each pair is put to the judge once.

    Arguments and errors as of `score`.

    Raises:
      UserError: also for a number that is no probability.
    """
    B, K = len(prompts_B), len(responses_BxK[0])
    pairs = list(itertools.combinations(range(K), 2))
    probability = _in_batches(
        judge,
        [asked(prompt) for prompt in prompts_B for _ in pairs],
        [(group[i], group[j]) for group in responses_BxK for i, j in pairs],
        batch_size,
        timeout_s,
    )
    if ((probability < 0) | (probability > 1)).any():
        wrong = probability[(probability < 0) | (probability > 1)][0]
        raise UserError(f'{name_of(judge)}: expected probabilities, got {wrong:g}')
    prob_BxKxK = np.full((B, K, K), 0.5, np.float32)
    i, j = np.asarray(pairs, int).reshape(-1, 2).T
    prob_BxKxK[:, i, j] = probability.reshape(B, -1)
    prob_BxKxK[:, j, i] = 1 - prob_BxKxK[:, i, j]
    weight_BxKxK = np.broadcast_to(1 - np.eye(K, dtype=np.float32), (B, K, K))
    return Preferences(jnp.asarray(prob_BxKxK), jnp.asarray(weight_BxKxK))


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
    file = Path(path) / 'config.json'
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
    graphdef, state = nnx.split(model)

    @jax.jit
    def rewards(state: nnx.State, sequences: Prompts) -> jax.Array:
        return nnx.merge(graphdef, state).rewards(sequences)

    def reward(prompts: list[Asked], responses: list[str]) -> np.ndarray:
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


def _row(prompt: Asked) -> Prompt:
    """The prompt as rows have it."""
    return prompt if isinstance(prompt, str) else tuple(Message(**turn) for turn in prompt)


def name_of(function: Any) -> str:
    """What errors call it."""
    return getattr(function, '__qualname__', type(function).__qualname__)


def _in_batches(
    function: Callable[[list, list], Any],
    prompts: list[Asked],
    items: list[Any],
    batch_size: int,
    timeout_s: float,
) -> np.ndarray:
    """`function` of all places, float32 [N]."""
    parts = [
        _call(function, prompts[i : i + batch_size], items[i : i + batch_size], timeout_s)
        for i in range(0, len(items), batch_size)
    ]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def _call(
    function: Callable[[list, list], Any], prompts: list, items: list, timeout_s: float
) -> np.ndarray:
    """One checked call, in a thread that does not keep the process from ending."""
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((function(prompts, items), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=run, daemon=True, name='reward').start()
    try:
        answer, error = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise TrainingFailed(
            f'{name_of(function)}: no answer for {len(items)} responses in {timeout_s:g} s'
        ) from None
    if devices.out_of_memory(error):
        raise error
    if isinstance(error, UserError):
        raise UserError(f'{name_of(function)}: {error}') from None
    if error is not None:
        reason = ' '.join(f'{type(error).__name__}: {one_line(error)}'.split())[:200]
        raise UserError(f'{name_of(function)}: raised {reason}') from error
    array = _numbers(answer)
    if array is None:
        raise UserError(
            f'{name_of(function)}: expected {len(items)} numbers, got {type(answer).__name__}'
        )
    if array.shape != (len(items),):
        raise UserError(
            f'{name_of(function)}: expected shape ({len(items)},), one number a response, '
            f'got {array.shape}'
        )
    return array


def _listed(value: Any) -> Any:
    """A tensor of torch as lists, which takes any type, device, and one with a gradient."""
    return value.tolist() if hasattr(value, 'detach') else value


def _numbers(answer: Any) -> np.ndarray | None:
    """An answer as float32, where it is made of real numbers and None, which is NaN."""
    try:
        if isinstance(answer, list | tuple):
            answer = [_listed(value) for value in answer]
        answer = _listed(answer)
        given = np.asarray(answer)
        if given.dtype == object:
            kinds = numbers.Real, np.bool_, decimal.Decimal, type(None)
            if not all(isinstance(value, kinds) for value in given.flat):
                return None
        elif given.dtype.kind not in 'biuf' and given.dtype != jnp.bfloat16:
            return None  # Text that reads as a number, dates, complex numbers.
        if np.ma.is_masked(answer):
            given = np.ma.filled(np.ma.asarray(answer, float), np.nan)
        with np.errstate(over='ignore'):
            return np.asarray(given, np.float32)
    except Exception:  # Whatever an array of another library raises.
        return None
