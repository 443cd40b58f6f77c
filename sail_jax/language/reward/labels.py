"""From sampled tokens to what the labeller says of them, on the host."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from sail_jax.core.types import Preferences
from sail_jax.errors import UserError
from sail_jax.language.config import LanguageRun, StartModel
from sail_jax.language.data import tokens
from sail_jax.language.data.rows import Prompt
from sail_jax.language.model import sharding
from sail_jax.language.reward import awaited, endpoint, ensemble, reward_model, rewards
from sail_jax.language.reward.config import RewardSource, WeightedReward
from sail_jax.language.reward.ensemble import Combined, Part
from sail_jax.language.reward.protocols import Judge, Reward
from sail_jax.training import devices, hosts
from sail_jax.training.shares import evenly

PROMPTS = ('prompt', 'prompts')
RESPONSES = ('completion', 'completions', 'response', 'responses', 'pair', 'pairs')
"""What functions call their arguments, which TRL gives by name, in any order."""


class Rater(NamedTuple):
    """Asks a reward or a judge; neither, where the labels come from the data and the policy."""

    score: Callable[[Sequence[Prompt], Sequence[Sequence[str]]], np.ndarray] | None = None
    """`(prompts, groups of responses) -> rewards [B, K]`, of an ensemble, or of several weighted
    ones with the members of each, [B, K, members]."""
    compare: Callable[[Sequence[Prompt], Sequence[Sequence[str]]], Preferences] | None = None
    """`(prompts, groups of responses) -> preferences`."""
    unsaid_is_tie: bool = False
    """Whether a pair of which `compare` says nothing (NaN) is a tie, and counted as `no_verdict`;
    else its update is skipped, and evaluations leave it out."""
    members: int = 1
    """Of the ensemble that `score` is, or of all weighted rewards."""
    combine: Callable[[np.ndarray], Combined] | None = None
    """Makes one reward of the members'."""
    parts: tuple[Part, ...] = ()
    """Several weighted rewards."""

    def parts_of(self, rewards: np.ndarray) -> dict[str, Combined]:
        """Each of several weighted rewards by its name; of others none."""
        return ensemble.parts_of(rewards, self.parts) if self.parts else {}

    def combined(self, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """One reward of each response; and, of an ensemble, the spread of its members'."""
        return (rewards, None) if self.combine is None else self.combine(rewards)

    def rated(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[str]]) -> dict[str, Any]:
        """The `rewards` and their `spread`, as of `combined`, None where nobody gives any; and
        their `parts`."""
        if self.score is None:
            return {'rewards': None}
        scores = self.score(prompts, groups)
        rewards, spread = self.combined(scores)
        return {'rewards': rewards, 'spread': spread, 'parts': self.parts_of(scores)}


def make(
    run: LanguageRun,
    mesh: Mesh,
    reward: Reward | Mapping[str, Reward] | None = None,
    judge: Judge | None = None,
) -> Rater:
    """The labeller of a configuration, or of Python's functions.

    Args:
      mesh: as the policy is split over it, so is a reward model, over the devices of this process:
        each process scores by itself.
      reward: one, or several by their names in `run.rewards`.

    Raises:
      UserError: two rewards; what is no function, or one for other arguments; a judge where rewards
        are needed; a reward model that cannot be read.
    """
    if judge is not None:
        if run.judge.model is not None:
            raise UserError(f'judge.model: {run.judge.model}, and a judge from Python; use one')
        if run.objective.loss == 'rebel':
            raise UserError('objective.loss: rebel: needs rewards, and a judge gives none')
        if run.reward.missing_eos_penalty is not None:
            raise UserError('reward.missing_eos_penalty: of rewards, and a judge gives none')
        _check_function('judge', judge)
    compares = _comparer(run, judge)
    several = isinstance(reward, Mapping)
    if not several and not run.rewards:
        return _scorer(run, 'reward', mesh, reward)._replace(**compares)
    if reward is not None and not several:
        raise UserError(
            f'reward: there are several, {", ".join(run.rewards)}; give functions by their names, '
            'reward={name: f}'
        )
    return _weighted(run, mesh, reward or {})._replace(**compares)


def _comparer(run: LanguageRun, judge: Judge | None) -> dict[str, Any]:
    """What a `Rater` has of its judge: Python's, or the configuration's."""
    if judge is not None:  # One may be an object that is empty, and so false.
        return {'compare': partial(rewards.compare, judge, **_limits(run.reward))}
    if run.judge.model is None:
        return {}
    # It bounds its requests by itself, how many there are at a time and what each may take.
    limits = {'batch_size': 2**31, 'timeout_s': 1e9}
    compare = partial(rewards.compare, endpoint.make(run.judge), **limits)
    return {'compare': compare, 'unsaid_is_tie': True}


def of_training(run: LanguageRun, rater: Rater) -> Rater:
    """Without a judge that is for evaluations alone."""
    if run.judge.model is None or run.judge.labels:
        return rater
    return rater._replace(compare=None, unsaid_is_tie=False)


def _limits(source: RewardSource) -> dict[str, Any]:
    return {'batch_size': source.batch_size, 'timeout_s': source.timeout_s}


def _weighted(run: LanguageRun, mesh: Mesh, functions: Mapping[str, Reward]) -> Rater:
    """Several rewards, each as if alone; those to be awaited all at once. Nobody, where one is
    missing."""
    if run.rewards and (others := sorted(functions.keys() - run.rewards.keys())):
        raise UserError(f'reward: {others[0]!r:.80} is none of rewards: {", ".join(run.rewards)}')
    if not run.rewards and run.reward.source != 'none':
        raise UserError(
            f'reward.source: {run.reward.source}, and rewards from Python; leave reward.source out'
        )
    limits = WeightedReward(**_limits(run.reward))
    settings = run.rewards or dict.fromkeys(functions, limits)
    run = run.model_copy(update={'rewards': settings})
    scorers = {
        name: _scorer(run, f'rewards.{name}', mesh, functions.get(name)) for name in settings
    }
    if not scorers or any(scorer.score is None for scorer in scorers.values()):
        return Rater()
    later = [name for name in scorers if awaited.is_async(functions.get(name))]

    def one(name: str, prompts: Sequence[Prompt], groups: Sequence[Sequence[str]]) -> np.ndarray:
        scorer = scorers[name]
        assert scorer.score is not None  # See above.
        scores = scorer.score(prompts, groups)
        return scores[..., None] if scorer.combine is None else scores

    def score(prompts: Sequence[Prompt], groups: Sequence[Sequence[str]]) -> np.ndarray:
        with ThreadPoolExecutor(max(len(later), 1)) as pool:
            waited = {name: pool.submit(one, name, prompts, groups) for name in later}
            now = {name: one(name, prompts, groups) for name in scorers if name not in waited}
            each = now | {name: future.result() for name, future in waited.items()}
        return np.concatenate([each[name] for name in scorers], -1)

    parts = tuple(
        Part(name, weight=settings[name].weight, members=one.members, combine=one.combine)
        for name, one in scorers.items()
    )
    return Rater(
        score=score,
        members=sum(part.members for part in parts),
        combine=partial(ensemble.weighted, parts=parts),
        parts=parts,
    )


def _scorer(run: LanguageRun, key: str, mesh: Mesh, function: Reward | None) -> Rater:
    """Of one reward, whose settings are at that key of the configuration."""
    source = run.sources[key]
    if function is not None:
        _check_function(key, function)
        if source.source != 'none':
            raise UserError(
                f'{key}.source: {source.source}, and a reward from Python; leave {key}.source out'
            )
    match source.source:
        case 'positivity':
            from sail_jax.language.reward import sentiment

            function = sentiment.positivity
        case 'model':
            local = devices.local_part(mesh)
            of_models, members = _of_models(source, key, run.model, local)
            return Rater(
                score=partial(rewards.score, of_models, members=members, **_limits(source)),
                members=members,
                combine=partial(ensemble.combine, source=source) if members > 1 else None,
            )
    if function is None:
        return Rater()
    return Rater(score=partial(rewards.score, function, **_limits(source)))


def _of_models(
    source: RewardSource, key: str, policy: StartModel, mesh: Mesh
) -> tuple[Callable[..., np.ndarray], int]:
    """The function of reward models, and how many rewards it gives.

    Args:
      key: of the source in the configuration.
      policy: says the type that is computed in, and the day that templates are told.

    Raises:
      UserError: one cannot be read; something is asked for that only an ensemble has.
    """
    functions, members = [], 0
    for path in source.paths:
        model = reward_model.load(
            path, dtype=policy.dtype, sharding=sharding.of_parameter(mesh), mesh=mesh
        )
        tokenizer = tokens.load(
            path, variables=source.chat_template_kwargs, date=policy.chat_template_date
        )
        padding = reward_model.pad_id(path)
        function = reward_model.from_model(model, tokenizer, source.max_tokens, pad_id=padding)
        functions.append(function)
        members += model.heads
    if members > 1:
        return ensemble.together(functions), members
    if source.combines:
        raise UserError(
            f'{key}.aggregate, {key}.spread_penalty: of an ensemble; {key}.path is one model with '
            'one head'
        )
    return functions[0], members


def _check_function(name: str, function: Any) -> None:
    """Refuses what cannot be called with prompts and responses, in this order, or answers another
    question.

    Args:
      name: `judge`, or the key of the reward that it stands in for.
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
    takes = 'prompts, pairs of responses' if name == 'judge' else 'prompts, responses'
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
    """Refuses to train without the labeller that the mixture asks for, or without a judge's key.

    Args:
      rater: that of training.

    Raises:
      UserError: naming the keys.
    """
    endpoint.check(run.judge)
    if run.needs_function and rater == Rater():
        if missing := [name for name, x in run.rewards.items() if x.source == 'none']:
            raise UserError(
                f'rewards.{missing[0]}.source: none; give positivity, model, or a function from '
                f'Python, reward={{{missing[0]!r}: f}}'
            )
        raise UserError(
            "reward.source: none, but the rows of objective.mixture's dpr need a labeller: "
            'positivity, model, or a function from Python; or a judge, with judge.labels'
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
    shape = (B, K) if rater.combine is None else (B, K, rater.members)
    if not len(rows):
        return spread(0, *shape)
    assert rater.score is not None  # See `check`.
    return spread(rater.score(asked_prompts, asked_groups), *shape)


def with_ties(rater: Rater, judged: Preferences) -> tuple[Preferences, dict[str, Any]]:
    """What a judge says of the pairs of an update, with a tie where it says nothing, if that is
    one; and metrics."""
    if not rater.unsaid_is_tie:
        return judged, {}
    unsaid = np.isnan(judged.prob_BxKxK)
    # A pair stands twice in the matrices.
    metrics = {'no_verdict': np.asarray([unsaid.sum() // 2])}
    return judged._replace(prob_BxKxK=np.where(unsaid, 0.5, judged.prob_BxKxK)), metrics


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
