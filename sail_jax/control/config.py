"""Configuration of a control run."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sail_jax import config, sweep, unused
from sail_jax.config import Argument, Section, Teacher
from sail_jax.control.reward.config import RewardEnsemble, Width
from sail_jax.errors import UserError
from sail_jax.labels import settings as people
from sail_jax.labels.settings import PeopleTeacher
from sail_jax.scalars import INT_MAX
from sail_jax.step_size import StepSize, check_step_size

PYTHON = 'python'
"""`env.backend` of a run whose environment was given from Python."""

MAX_ENV_STEPS = 2**40
"""More than a run will see."""


class Environment(Section):
    """The task."""

    name: str = 'hopper'
    """inverted_pendulum, reacher, pusher, swimmer, hopper, walker2d, halfcheetah, ant, humanoid;
    with backend `playground` any MuJoCo Playground environment."""
    backend: str = 'spring'
    """Physics: spring, positional, generalized or mjx - different physics, whose returns do not
    compare (swimmer has generalized only) - or `playground`. `python` stands where an environment
    was given from Python; `name` is then its class's."""
    episode_length: int = Field(default=1000, ge=1, le=2**20)
    """Env steps after which an episode is cut off."""
    action_repeat: int = Field(default=1, ge=1, le=2**10)
    """The environment's own steps in an env step: all by one action, up to an episode's end, their
    rewards summed. Everything here counts env steps, `episode_length` too."""
    overrides: dict[str, Argument] = Field(default_factory=dict)
    """Of the environment's own configuration, with backend `playground`: by dotted keys,
    `{ctrl_dt: 0.02, impl: warp}` for example. `impl`, which physics, is `jax` where it is not
    here."""
    randomised: bool = False
    """Each episode, of training and evaluation, has physics of its own, drawn by the randomiser
    that Playground has for the environment (masses, frictions, ...)."""

    @property
    def subject(self) -> str:
        """Which task on which physics, in words."""
        return f'{self.name} ({self.backend})'


class Network(Section):
    """Brax's PPO policy: an MLP with a tanh-squashed normal on top."""

    hidden: tuple[Width, ...] = Field(default=(64, 64), min_length=1, max_length=64)
    """Sizes of the hidden layers."""
    activation: Literal['swish', 'relu', 'tanh', 'elu', 'gelu'] = 'swish'
    """Between the layers."""


class Rollout(Section):
    """Groups of segments: `contexts` states, `group_size` segments from each."""

    contexts: int = Field(default=32, ge=1, le=2**20)
    """States that segments start from, B. B * K environments run in parallel."""
    group_size: int = Field(default=8, ge=2, le=256)
    """Segments from each state, K; all K(K-1)/2 pairs of them are compared."""
    segment_length: int = Field(default=50, ge=1, le=2**20)
    """Env steps of a segment, up to the whole episode. Nothing after it counts for the labeller,
    unless `value` looks further."""
    contexts_at_once: int | None = Field(default=None, ge=1)
    """A device simulates this many contexts after this many; none: all of its contexts at once. The
    shapes that it computes with, and so the last bits of the samples, then do not depend on the
    number of devices. Takes less memory, and more time where it is small."""

    @property
    def parts(self) -> int:
        """Contexts, or groups of them, that devices may share."""
        return self.contexts // (self.contexts_at_once or 1)


class Value(Section):
    """What the labeller thinks comes after a segment."""

    terminal: Literal['none', 'learned'] = 'none'
    """`learned` adds a value of the labeller's reward, fitted on the segments, at the last state,
    so that short segments do not teach to spend what comes later."""
    discount: float = Field(default=0.99, gt=0, lt=1)
    """Per env step, for returns and value alike where the value is learned."""
    hidden: tuple[Width, ...] = Field(default=(64, 64), min_length=1, max_length=64)
    """Sizes of the hidden layers of the value network."""


class SegmentTeacher(PeopleTeacher):
    """Who labels the policy's pairs. The other settings are those of the scripted teacher; its
    defaults are B-Pref's oracle, and `sail_jax.core.labellers` has the table of its six kinds."""

    source: Literal['teacher', 'reward', 'people'] = 'teacher'  # pyright: ignore[reportIncompatibleVariableOverride]
    """`teacher`: the teacher labels every pair, by the true reward. `reward`: it answers the few
    questions of `reward.questions`, a reward is fitted on its answers, and that labels every pair,
    with Bradley-Terry's probability; nothing else that is learned depends on the true reward.
    `people`: the same, but people answer, at the page of `sail-jax label`."""


class Reference(Section):
    """The policy that training starts from and is held to."""

    source: Literal['init', 'run', 'brax', 'ppo'] = 'init'
    """`init`: a new network. `run`: the policy of the run at `path`. `brax`: the Brax PPO
    checkpoint at `path`. `ppo`: train Brax PPO on the true reward for `ppo_env_steps` first; not
    where the reward is learned (`labeller.source`)."""
    path: Path | None = None
    """A run directory, or a Brax PPO checkpoint."""
    best: bool = False
    """With `source: run`, take its best checkpoint (`checkpoints.metric`), not its newest."""
    ppo_env_steps: int = Field(default=500_000, ge=1, le=MAX_ENV_STEPS)
    """Env steps of PPO for `source: ppo`, rounded up to whole batches. Of Playground's environments
    PPO has the settings that Playground tuned, meant for tens of millions of steps on a GPU: a
    batch of its control suite is 983,040."""
    refresh_env_steps: int | None = Field(default=None, ge=1, le=MAX_ENV_STEPS)
    """Replace the reference by the policy this often, rounded up to whole updates; none never
    does."""


class ControlOptimizer(StepSize, config.Optimizer):
    """An optimizer of Optax on the surrogate, its step size over the run included."""


class Success(Section):
    """What makes an episode a success, and `eval/success_rate` the share of them."""

    metric: str | None = Field(default=None, min_length=1, max_length=200)
    """One of the environment's own metrics (`state.metrics`); none has no `eval/success_rate`."""
    at_least: float = Field(default=1.0, allow_inf_nan=False)
    """A step after which the metric is that much makes its whole episode one."""


def check_success(success: Success) -> None:
    """Refuses a bound of no metric.

    Raises:
      UserError: naming the key.
    """
    if success.metric is None:
        unused.refuse('evaluation.success', success, 'evaluation.success.metric: null')


class EpisodeEvaluation(Section):
    """Full episodes under the true reward."""

    every_updates: int = Field(default=100, ge=1)
    """Updates between evaluations; there is one before the first and after the last."""
    episodes: int = Field(default=128, ge=2, le=2**20)
    """Initial states; each gets two stochastic and one deterministic episode."""
    success: Success = Success()


class ControlRun(config.Run):
    """Aligns a Brax policy with a labeller who compares segments of behaviour."""

    workload: Literal['control'] = 'control'
    """What this file configures."""
    total_env_steps: int = Field(default=1_000_000, ge=1, le=MAX_ENV_STEPS)
    """Length of the run, rounded up to whole dispatches."""
    updates_per_dispatch: int = Field(default=5, ge=1, le=2**16)
    """Updates that one call of the compiled program makes."""
    env: Environment = Environment()
    policy: Network = Network()
    rollout: Rollout = Rollout()
    value: Value = Value()
    labeller: SegmentTeacher = SegmentTeacher()
    reward: RewardEnsemble = RewardEnsemble()
    reference: Reference = Reference()
    optimizer: ControlOptimizer = ControlOptimizer()  # pyright: ignore[reportIncompatibleVariableOverride]
    evaluation: EpisodeEvaluation = EpisodeEvaluation()
    segment_reward: str | None = None
    """Name of the function that was given from Python as what the labeller goes by; none is the
    environment's reward. Recorded, not for files: a name does not find the function."""

    @property
    def env_steps_per_update(self) -> int:
        """Env steps that one update simulates, those of the extra reference lane included."""
        rollout = self.rollout
        return rollout.contexts * (rollout.group_size + self.extra_lanes) * rollout.segment_length

    @property
    def extra_lanes(self) -> int:
        """1 where each context also gets a segment of the reference."""
        return int(self.draws_reference)

    @property
    def segment_length(self) -> int:
        """Env steps of the segments that are compared."""
        return self.rollout.segment_length

    @property
    def learns_reward(self) -> bool:
        """Whether pairs are labelled by a reward that is learned from answers."""
        return self.labeller.source != 'teacher'

    @property
    def refresh_updates(self) -> int | None:
        """Updates between refreshes of the reference."""
        steps = self.reference.refresh_env_steps
        # Updates are counted in int32, which no run comes to the end of.
        return None if steps is None else min(-(-steps // self.env_steps_per_update), INT_MAX)

    @property
    def updates(self) -> int:
        """Updates of the whole run."""
        return self.dispatches * self.updates_per_dispatch

    @property
    def dispatches(self) -> int:
        """Calls of the compiled program that make the whole run."""
        return -(-self.total_env_steps // (self.env_steps_per_update * self.updates_per_dispatch))


def recorded(run: ControlRun, env: Any, segment_reward: Any) -> ControlRun:
    """The configuration with the names of what Python gives beside it; None is not given."""
    if env is not None:
        names = {'name': type(env).__name__, 'backend': PYTHON}
        run = run.model_copy(update={'env': run.env.model_copy(update=names)})
    if segment_reward is not None:
        name = getattr(segment_reward, '__name__', type(segment_reward).__name__)
        run = run.model_copy(update={'segment_reward': name})
    return run


def check(run: ControlRun) -> None:
    """Refuses settings that are each fine but do not go together.

    Raises:
      UserError: naming the keys.
    """
    config.check(run)
    sweep.check(run)
    # A reward that is learned comes from answers, which are labels.
    config.check_regression(run.objective, Teacher() if run.learns_reward else run.labeller)
    segment, episode = run.rollout.segment_length, run.env.episode_length
    if segment > episode:
        raise UserError(
            f'rollout.segment_length: {segment} is longer than the episode '
            f'(env.episode_length: {episode})'
        )
    if run.rollout.contexts % run.optimizer.minibatches:
        raise UserError(
            f'optimizer.minibatches: {run.optimizer.minibatches} does not divide '
            f'rollout.contexts: {run.rollout.contexts}'
        )
    if run.rollout.contexts % (run.rollout.contexts_at_once or 1):
        raise UserError(
            f'rollout.contexts_at_once: {run.rollout.contexts_at_once} does not divide '
            f'rollout.contexts: {run.rollout.contexts}'
        )
    if run.objective.mixture.dpp + run.objective.mixture.ddp > 1 - 1e-6:
        raise UserError(
            'objective.mixture: a policy that starts as its reference and labels every row itself '
            'has no gradient; leave some rows to dpr or offline DPO'
        )
    if run.reference.source in ('run', 'brax') and run.reference.path is None:
        raise UserError(f'reference.path: needed for reference.source: {run.reference.source}')
    if run.reference.source in ('init', 'ppo') and run.reference.path is not None:
        raise UserError(
            f'reference.path: not used by reference.source: {run.reference.source}; '
            'did you mean source: run or brax?'
        )
    used = {'run': 'best', 'ppo': 'ppo_env_steps'}.get(run.reference.source, '')
    by = f'reference.source: {run.reference.source}'
    unused.refuse('reference', run.reference, by, {'best', 'ppo_env_steps'} - {used})
    check_success(run.evaluation.success)
    people.check(run)
    check_step_size(run.optimizer, run.updates)
    _check_reward(run)
    if run.value.terminal == 'learned' and run.labeller.discount < 1 and not run.learns_reward:
        raise UserError('labeller.discount: a myopic teacher has no terminal value; use 1')


def _check_reward(run: ControlRun) -> None:
    questions, rollout = run.reward.questions, run.rollout
    if not run.learns_reward:
        by = f'labeller.source: {run.labeller.source}; did you mean labeller.source: reward?'
        unused.refuse('reward', run.reward, by)
        return
    if run.reference.source == 'ppo':
        raise UserError(
            'reference.source: ppo: trains the start policy and the reference on the true reward, '
            f'of which labeller.source: {run.labeller.source} tells only answers; start from init, '
            'or by run or brax from a policy that may know it'
        )
    if run.labeller.max_labels is not None:
        raise UserError(
            'labeller.max_labels: of comparisons that the teacher labels; with labeller.source: '
            'reward it is asked questions, of which there are reward.questions.budget'
        )
    if questions.budget == 0 and run.reward.path is None and run.reward.answers is None:
        raise UserError(
            'reward.questions.budget: 0, without reward.path and reward.answers: there is nothing '
            'to learn a reward from'
        )
    if questions.budget == 0:
        return
    pairs = rollout.contexts * rollout.group_size * (rollout.group_size - 1) // 2
    if questions.candidates > pairs:
        raise UserError(
            f'reward.questions.candidates: {questions.candidates}, and an update has {pairs} pairs '
            'of segments from one state (rollout)'
        )
    if questions.per_round > questions.candidates:
        raise UserError(
            f'reward.questions.per_round: {questions.per_round} is more than '
            f'reward.questions.candidates: {questions.candidates}'
        )
