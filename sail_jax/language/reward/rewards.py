"""Asks rewards and judges, on the host: `score` the one, `compare` the other.

Both are functions of two lists of one length that give one number for each place. Whatever they
answer is checked here.
"""

import decimal
import itertools
import numbers
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sail_jax.core.types import Preferences
from sail_jax.errors import TrainingFailed, UserError, one_line
from sail_jax.language.data.rows import Prompt
from sail_jax.language.reward import awaited
from sail_jax.language.reward.protocols import Judge, Reward, TrlPrompt
from sail_jax.training import devices


def trl_prompt(prompt: Prompt) -> TrlPrompt:
    """The prompt as a function from Python gets it."""
    return prompt if isinstance(prompt, str) else [turn._asdict() for turn in prompt]


def score(
    reward: Reward,
    prompts_B: Sequence[Prompt],
    responses_BxK: Sequence[Sequence[str]],
    *,
    batch_size: int = 64,
    timeout_s: float = 60.0,
    members: int = 1,
) -> np.ndarray:
    """Rewards of K responses to each of B prompts, float32 [B, K]; of an ensemble [B, K, members].

    Args:
      reward: called on the host, with at most `batch_size` responses at a time.
      timeout_s: of each call, seconds.
      members: of the ensemble that the function is; it gives so many numbers a response.

    Raises:
      UserError: the function raised, or gave anything but one number a response.
      TrainingFailed: it took longer than it may.
    """
    K = len(responses_BxK[0])
    prompts = [trl_prompt(prompt) for prompt in prompts_B for _ in range(K)]
    responses = [response for group in responses_BxK for response in group]
    each = () if members == 1 else (members,)
    values = _in_batches(reward, prompts, responses, batch_size, timeout_s, each)
    return values.reshape(-1, K, *each)


def compare(
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
        [trl_prompt(prompt) for prompt in prompts_B for _ in pairs],
        [(group[i], group[j]) for group in responses_BxK for i, j in pairs],
        batch_size,
        timeout_s,
    )
    if ((probability < 0) | (probability > 1)).any():
        wrong = probability[(probability < 0) | (probability > 1)][0]
        raise UserError(f'{name_of(judge)}: expected probabilities, got {wrong}')
    prob_BxKxK = np.full((B, K, K), 0.5, np.float32)
    i, j = np.asarray(pairs, int).reshape(-1, 2).T
    prob_BxKxK[:, i, j] = probability.reshape(B, -1)
    prob_BxKxK[:, j, i] = 1 - prob_BxKxK[:, i, j]
    weight_BxKxK = np.broadcast_to(1 - np.eye(K, dtype=np.float32), (B, K, K))
    return Preferences(prob_BxKxK=jnp.asarray(prob_BxKxK), weight_BxKxK=jnp.asarray(weight_BxKxK))


def name_of(function: Any) -> str:
    """What errors call it."""
    return getattr(function, '__qualname__', type(function).__qualname__)


def _in_batches(
    function: Callable[[list, list], Any],
    prompts: list[TrlPrompt],
    items: list[Any],
    batch_size: int,
    timeout_s: float,
    each: tuple[int, ...] = (),
) -> np.ndarray:
    """`function` of all places, float32 [N, *each]."""
    if awaited.is_async(function):
        function, batch_size = awaited.together(function, batch_size), max(len(items), 1)
    parts = [
        _call(function, prompts[i : i + batch_size], items[i : i + batch_size], timeout_s, each)
        for i in range(0, len(items), batch_size)
    ]
    return np.concatenate([np.zeros((0, *each), np.float32), *parts])


def _call(
    function: Callable[[list, list], Any],
    prompts: list,
    items: list,
    timeout_s: float,
    each: tuple[int, ...],
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
    if array.shape != (len(items), *each):
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
        array = np.asarray(answer)
        if array.dtype == object:
            types = numbers.Real, np.bool_, decimal.Decimal, type(None)
            if not all(isinstance(value, types) for value in array.flat):
                return None
        elif array.dtype.kind not in 'biuf' and array.dtype != jnp.bfloat16:
            return None  # Text that reads as a number, dates, complex numbers.
        if np.ma.is_masked(answer):
            array = np.ma.filled(np.ma.asarray(answer, float), np.nan)
        with np.errstate(over='ignore'):
            return np.asarray(array, np.float32)
    except Exception:  # Whatever an array of another library raises.
        return None
