"""From sampled tokens to what the labeller says of them, on the host."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from sail_jax.core.types import Preferences
from sail_jax.errors import UserError
from sail_jax.language.config import LanguageRun
from sail_jax.language.data import tokens
from sail_jax.language.data.rows import Prompt
from sail_jax.language.model import sharding
from sail_jax.language.reward import ensemble, reward_model, rewards
from sail_jax.language.reward.ensemble import Combined
from sail_jax.language.reward.protocols import Judge, Reward
from sail_jax.training import devices, hosts
from sail_jax.training.shares import evenly

PROMPTS = ('prompt', 'prompts')
RESPONSES = ('completion', 'completions', 'response', 'responses', 'pair', 'pairs')
"""What functions call their arguments, which TRL gives by name, in any order."""


class Rater(NamedTuple):
    """Asks a reward or a judge; neither, where the labels come from the data and the policy."""

    score: Callable[[Sequence[Prompt], Sequence[Sequence[str]]], np.ndarray] | None = None
    """`(prompts, groups of responses) -> rewards [B, K]`, of an ensemble [B, K, members]."""
    compare: Callable[[Sequence[Prompt], Sequence[Sequence[str]]], Preferences] | None = None
    """`(prompts, groups of responses) -> preferences`."""
    members: int = 1
    """Of the ensemble that `score` is."""
    combine: Callable[[np.ndarray], Combined] | None = None
    """Of an ensemble, makes one reward of its members'."""

    def combined(self, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """One reward of each response; and, of an ensemble, the spread of its members'."""
        return (rewards, None) if self.combine is None else self.combine(rewards)

    def rated(
        self, prompts: Sequence[Prompt], groups: Sequence[Sequence[str]]
    ) -> dict[str, np.ndarray | None]:
        """The `rewards` and their `spread`, as of `combined`; None where nobody gives any."""
        scores = (None, None) if self.score is None else self.combined(self.score(prompts, groups))
        return dict(zip(('rewards', 'spread'), scores, strict=True))


def make(
    run: LanguageRun, mesh: Mesh, reward: Reward | None = None, judge: Judge | None = None
) -> Rater:
    """The labeller of a configuration, or of Python's functions.

    Args:
      mesh: as the policy is split over it, so is a reward model, over the devices of this process:
        each process scores by itself.

    Raises:
      UserError: two rewards; what is no function, or one for other arguments; a judge where rewards
        are needed; a reward model that cannot be read.
    """
    if judge is not None and run.objective.loss == 'rebel':
        raise UserError('objective.loss: rebel: needs rewards, and a judge gives none')
    if judge is not None and run.reward.missing_eos_penalty is not None:
        raise UserError('reward.missing_eos_penalty: of rewards, and a judge gives none')
    for name, function in (('reward', reward), ('judge', judge)):
        if function is not None:
            _check_function(name, function)
    source = run.reward
    if reward is not None and source.source != 'none':
        raise UserError(
            f'reward.source: {source.source}, and a reward from Python; leave reward.source out'
        )
    limits = {'batch_size': source.batch_size, 'timeout_s': source.timeout_s}
    # One may be an object that is empty, and so false.
    compare = None if judge is None else partial(rewards.compare, judge, **limits)
    match source.source:
        case 'positivity':
            from sail_jax.language.reward import sentiment

            reward = sentiment.positivity
        case 'model':
            of_models, members = _of_models(run, devices.local_part(mesh))
            return Rater(
                score=partial(rewards.score, of_models, members=members, **limits),
                compare=compare,
                members=members,
                combine=partial(ensemble.combine, source=source) if members > 1 else None,
            )
    score = None if reward is None else partial(rewards.score, reward, **limits)
    return Rater(score=score, compare=compare)


def _of_models(run: LanguageRun, mesh: Mesh) -> tuple[Callable[..., np.ndarray], int]:
    """The function of a run's reward models, and how many rewards it gives.

    Raises:
      UserError: one cannot be read; something is asked for that only an ensemble has.
    """
    source, functions, members = run.reward, [], 0
    for path in source.paths:
        model = reward_model.load(
            path, dtype=run.model.dtype, sharding=sharding.of_parameter(mesh), mesh=mesh
        )
        tokenizer = tokens.load(
            path, variables=source.chat_template_kwargs, date=run.model.chat_template_date
        )
        padding = reward_model.pad_id(path)
        function = reward_model.from_model(model, tokenizer, source.max_tokens, pad_id=padding)
        functions.append(function)
        members += model.heads
    if members > 1:
        return ensemble.together(functions), members
    if source.combines:
        raise UserError(
            'reward.aggregate, reward.spread_penalty: of an ensemble; reward.path is one model '
            'with one head'
        )
    return functions[0], members


def _check_function(name: str, function: Any) -> None:
    """Refuses what cannot be called with prompts and responses, in this order, or answers another
    question.

    Args:
      name: `reward` or `judge`.
    """
    if not callable(function):
        raise UserError(f'{name}: {function!r:.80}; expected a function, or what can be called')
    if isinstance(function, type):
        raise UserError(f'{name}: the class {function.__name__}; give an instance of it')
    owner = type(getattr(function, '__self__', None))
    if name == 'judge' and any(base.__module__.startswith('trl.') for base in owner.__mro__):
        raise UserError(
            f"judge: a method of TRL's {owner.__name__}, which gives the number of the better "
            'response (0 is the first); give a function of the probability that the first is '
            'better, lambda prompts, pairs: [1 - i for i in judge.judge(prompts, pairs)] for '
            'example'
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # Functions that are not written in Python have no signature.
    takes = 'prompts, responses' if name == 'reward' else 'prompts, pairs of responses'
    try:
        arguments = signature.bind([], []).arguments
    except TypeError as error:
        raise UserError(
            f'{name}: called with two lists, ({takes}), which {rewards.name_of(function)} does not '
            f'take: {error}'
        ) from None
    first, second = (*arguments, '', '')[:2]
    if first in RESPONSES or second in PROMPTS:
        raise UserError(
            f'{name}: called with ({takes}); {rewards.name_of(function)} takes ({first}, {second})'
        )


def check(run: LanguageRun, rater: Rater) -> None:
    """Refuses to train without the labeller that the mixture asks for.

    Raises:
      UserError: naming the keys.
    """
    if run.needs_function and rater == Rater():
        raise UserError(
            "reward.source: none, but the rows of objective.mixture's dpr need a labeller: "
            'positivity, model, or a function from Python'
        )


def scores(
    rater: Rater,
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[str]],
    asked_B: np.ndarray,
    group_size: int,
) -> np.ndarray | Preferences:
    """Rewards [B, K], of an ensemble [B, K, members], or a judge's preferences of the rows that are
    asked; zeros elsewhere.

    Raises:
      UserError, TrainingFailed: as of `rewards.score`.
    """
    rows = np.flatnonzero(asked_B).tolist()
    asked_prompts, asked_groups = [prompts[i] for i in rows], [groups[i] for i in rows]
    B, K = len(asked_B), group_size

    def spread(values: ArrayLike, *shape: int) -> Any:
        whole = np.zeros(shape, np.float32)
        whole[rows] = values
        return whole

    if rater.compare is not None:
        prob, weight = rater.compare(asked_prompts, asked_groups)[:2] if len(rows) else (0, 0)
        return Preferences(prob_BxKxK=spread(prob, B, K, K), weight_BxKxK=spread(weight, B, K, K))
    shape = (B, K) if rater.members == 1 else (B, K, rater.members)
    if not len(rows):
        return spread(0, *shape)
    assert rater.score is not None  # See `check`.
    return spread(rater.score(asked_prompts, asked_groups), *shape)


def divided(rater: Rater) -> Rater:
    """The labeller for what lies in all processes: each asks for a part of it, and has all answers.

    Errors are as of `hosts.together`.
    """

    def ask(one: Rater, prompts: Sequence[Prompt], groups: Sequence[Sequence[str]]) -> Any:
        shares = evenly(len(prompts))
        rows, K = shares.rows.tolist(), len(groups[0])
        asked_prompts = [prompts[int(i)] for i in rows]
        asked_groups = [groups[int(i)] for i in rows]
        everyone = np.ones(len(rows), bool)
        answers = hosts.together(lambda: scores(one, asked_prompts, asked_groups, everyone, K))
        return jax.tree.map(shares.gather, answers)

    return rater._replace(
        score=rater.score and partial(ask, rater._replace(compare=None)),
        compare=rater.compare and partial(ask, Rater(compare=rater.compare)),
    )
