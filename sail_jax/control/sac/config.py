"""Configuration of a soft actor-critic run."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from sail_jax import config, sweep, unused
from sail_jax.config import Section
from sail_jax.control.config import MAX_ENV_STEPS, Environment, Success, Width, check_success
from sail_jax.control.reward.config import RewardEnsemble
from sail_jax.errors import UserError
from sail_jax.labels import settings as people
from sail_jax.labels.settings import PeopleTeacher
from sail_jax.scalars import INT_MAX

Layers = Annotated[tuple[Width, ...], Field(min_length=1, max_length=64)]


class Mlp(Section):
    """A multilayer perceptron."""

    hidden: Layers = (1024, 1024)
    """Sizes of the hidden layers."""
    activation: Literal['relu', 'swish', 'tanh', 'elu', 'gelu'] = 'relu'
    """Between the layers."""
    init: Literal['orthogonal', 'lecun_uniform'] = 'orthogonal'
    """How matrices begin; biases begin as 0."""


class TanhActor(Mlp):
    """The policy: a normal whose mean and log standard deviation a network gives, squashed by tanh.

    The log standard deviation is `min + (max - min) / 2 * (tanh(x) + 1)` of the network's x.
    """

    log_std_min: float = Field(default=-5.0, ge=-20, le=5)
    """The smallest log standard deviation."""
    log_std_max: float = Field(default=2.0, ge=-20, le=5)
    """The largest."""


class TwinCritic(Mlp):
    """Two networks that value a state and an action, and slow copies of them."""

    discount: float = Field(default=0.99, gt=0, lt=1)
    """Of what comes after, per env step."""
    tau: float = Field(default=0.005, gt=0, le=1)
    """How far the slow copies go towards the critics."""
    target_every: int = Field(default=2, ge=1, le=INT_MAX)
    """Gradient steps after which they do."""


class Temperature(Section):
    """What entropy is worth, learned so that the policy has the target entropy."""

    initial: float = Field(default=0.1, gt=0)
    """What it begins with."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Adam's step size on its logarithm."""
    target_entropy: float | None = None
    """Nats per step; none is minus the number of the action's entries."""


class SacRollout(Section):
    """How the replay is filled."""

    envs: int = Field(default=1, ge=1, le=2**20)
    """Environments in parallel, N."""
    steps: int = Field(default=100, ge=1, le=2**20)
    """Env steps of each of them in an update. An update is a row of metrics, not a gradient step,
    of which there may be many in it."""
    random_env_steps: int = Field(default=1000, ge=1, le=MAX_ENV_STEPS)
    """Env steps of random actions at the start, without a gradient step; rounded up to whole
    updates."""
    update_to_data: float = Field(default=1.0, gt=0, le=1024)
    """Gradient steps for each env step. They are made after every step of the N environments, so
    N times this must be a whole number."""


class ReplaySize(Section):
    """The env steps that are learned from, kept on the device."""

    capacity: int = Field(default=400_000, ge=1, le=2**31 - 1)
    """Env steps that it keeps, the newest; rounded down to whole steps of the N environments."""
    batch: int = Field(default=512, ge=1, le=2**20)
    """Of them in a gradient step, drawn evenly, with replacement."""


class Unsupervised(Section):
    """Exploration before there is any reward: be where the replay has few states (PEBBLE, arXiv
    2106.05091)."""

    env_steps: int = Field(default=0, ge=0, le=MAX_ENV_STEPS)
    """How long, after the random steps; rounded up to whole updates. Then the critics begin anew.
    0 leaves it out; PEBBLE has 900."""
    neighbours: int = Field(default=5, ge=1, le=2**10)
    """The reward is the distance to this neighbour among the states of the replay, over the
    standard deviation of all such distances so far."""
    reset_gradient_steps: int = Field(default=100, ge=0, le=2**20)
    """Gradient steps at once on the new critics."""


class RevKL(Section):
    """The KL penalty of the actor's loss, `coefficient * KL(pi_ref || pi)` at replayed states, of
    the normals before the squash, exact."""

    coefficient: float = Field(default=1e-4, ge=0)
    """Lambda; 0 is plain soft actor-critic."""


class SacReference(Section):
    """The policy that the penalty holds to: the policy as it was, at first the random one."""

    refresh_env_steps: int | None = Field(default=50_000, ge=1, le=MAX_ENV_STEPS)
    """Replace it by the policy this often, rounded up to whole updates; none never does."""


class SacReward(RewardEnsemble):
    """What the critics learn from: the true reward, or an ensemble of networks from an observation
    and an action to a reward between -1 and 1, fitted on answers about pairs of segments of the
    replay by Bradley-Terry, whose mean it is."""

    source: Literal['true', 'learned'] = 'true'
    """`true`: the environment's reward. `learned`: the ensemble's, and nothing that is learned
    depends on the true reward but for the teacher's answers; where people answer
    (`labeller.source`), nothing. Rounds of `questions` begin after the random and the unsupervised
    steps; after each the whole replay has the new reward."""
    segment_length: int = Field(default=50, ge=1, le=2**20)
    """Env steps of the segments that are compared."""
    newest_env_steps: int = Field(default=100_000, ge=1, le=MAX_ENV_STEPS)
    """Segments are drawn from the newest of the replay, this many."""


class SacOptimizer(Section):
    """Adam on actor and critics."""

    learning_rate: float = Field(default=5e-4, gt=0)
    """Its step size."""
    max_skipped: int = Field(default=10, ge=1)
    """The run stops after this many gradient steps in a row were skipped as not finite."""


class SacEvaluation(Section):
    """Full episodes under the true reward."""

    every_updates: int = Field(default=100, ge=1)
    """Updates between evaluations; there is one before the first and after the last."""
    episodes: int = Field(default=10, ge=2, le=2**20)
    """Initial states; each gets a stochastic and a deterministic episode."""
    success: Success = Success()


class SacSweep(Section):
    """Values that are trained with `seeds`: every combination."""

    coefficient: tuple[NonNegativeFloat, ...] = ()
    """Values of `divergence.coefficient`."""
    learning_rate: tuple[PositiveFloat, ...] = ()
    """Values of `optimizer.learning_rate`."""


class SacRun(config.Seeded):
    """Trains a Brax or MuJoCo Playground policy by soft actor-critic, held to its reference."""

    workload: Literal['sac'] = 'sac'
    """What this file configures."""
    total_env_steps: int = Field(default=400_000, ge=1, le=MAX_ENV_STEPS)
    """Length of the run, rounded up to whole dispatches."""
    updates_per_dispatch: int = Field(default=5, ge=1, le=2**16)
    """Updates that one call of the compiled program makes."""
    env: Environment = Environment()
    actor: TanhActor = TanhActor()
    critic: TwinCritic = TwinCritic()
    temperature: Temperature = Temperature()
    rollout: SacRollout = SacRollout()
    replay: ReplaySize = ReplaySize()
    unsupervised: Unsupervised = Unsupervised()
    reward: SacReward = SacReward()
    labeller: PeopleTeacher = PeopleTeacher()
    divergence: RevKL = RevKL()
    reference: SacReference = SacReference()
    optimizer: SacOptimizer = SacOptimizer()
    evaluation: SacEvaluation = SacEvaluation()
    sweep: SacSweep = SacSweep()  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def env_steps_per_update(self) -> int:
        """Env steps of an update, over all environments."""
        return self.rollout.envs * self.rollout.steps

    @property
    def segment_length(self) -> int:
        """Env steps of the segments that are compared."""
        return self.reward.segment_length

    @property
    def gradient_steps(self) -> int:
        """Gradient steps after each step of the environments."""
        return round(self.rollout.update_to_data * self.rollout.envs)

    @property
    def replay_rows(self) -> int:
        """Steps of the environments that the replay keeps."""
        return self.replay.capacity // self.rollout.envs

    @property
    def random_updates(self) -> int:
        """Updates of random actions."""
        return self.updates_of(self.rollout.random_env_steps)

    @property
    def reward_updates(self) -> int:
        """Updates after which the reward is learned from: the random and the unsupervised ones."""
        return self.random_updates + self.updates_of(self.unsupervised.env_steps)

    @property
    def refresh_updates(self) -> int | None:
        """Updates between refreshes of the reference."""
        steps = self.reference.refresh_env_steps
        return None if steps is None else self.updates_of(steps)

    @property
    def updates(self) -> int:
        """Updates of the whole run."""
        return self.dispatches * self.updates_per_dispatch

    @property
    def dispatches(self) -> int:
        """Calls of the compiled program that make the whole run."""
        return -(-self.total_env_steps // (self.env_steps_per_update * self.updates_per_dispatch))

    def updates_of(self, env_steps: int) -> int:
        """Whole updates that have so many env steps at the least."""
        # Updates are counted in int32, which no run comes to the end of.
        return min(-(-env_steps // self.env_steps_per_update), INT_MAX)


def check(run: SacRun) -> None:
    """Refuses settings that are each fine but do not go together.

    Raises:
      UserError: naming the keys.
    """
    sweep.check_names(run)
    if run.actor.log_std_min >= run.actor.log_std_max:
        raise UserError(
            f'actor.log_std_min: {run.actor.log_std_min:g} is not below actor.log_std_max: '
            f'{run.actor.log_std_max:g}'
        )
    steps = run.rollout.update_to_data * run.rollout.envs
    if abs(steps - run.gradient_steps) > 1e-6 or run.gradient_steps < 1:
        raise UserError(
            f'rollout.update_to_data: {run.rollout.update_to_data:g} gradient steps for each of '
            f'the {run.rollout.envs} env steps that are made at once (rollout.envs) are {steps:g}; '
            'expected a whole number'
        )
    if run.replay.capacity < run.env_steps_per_update:
        raise UserError(
            f'replay.capacity: {run.replay.capacity} is less than an update collects '
            f'(rollout.envs times rollout.steps: {run.env_steps_per_update})'
        )
    if run.unsupervised.env_steps == 0:
        unused.refuse('unsupervised', run.unsupervised, 'unsupervised.env_steps: 0')
    before = run.reward_updates * run.env_steps_per_update
    if run.unsupervised.env_steps > 0 and run.replay.capacity < before:
        raise UserError(
            f'replay.capacity: {run.replay.capacity} is less than the {before} random and '
            'unsupervised env steps, all of which the exploration looks at'
        )
    random = run.random_updates * run.env_steps_per_update
    if run.unsupervised.env_steps > 0 and run.unsupervised.neighbours >= random:
        raise UserError(
            f'unsupervised.neighbours: {run.unsupervised.neighbours} of the {random} random env '
            'steps (rollout.random_env_steps), which have fewer others'
        )
    check_success(run.evaluation.success)
    _check_reward(run)


def _check_reward(run: SacRun) -> None:
    if run.reward.source == 'true':
        if run.labeller != PeopleTeacher():
            raise UserError('labeller: not used by reward.source: true, which nobody labels')
        by = 'reward.source: true; did you mean reward.source: learned?'
        unused.refuse('reward', run.reward, by)
        return
    people.check(run)
    if run.labeller.max_labels is not None:
        raise UserError(
            'labeller.max_labels: ends a run; with reward.source: learned the budget of answers is '
            'reward.questions.budget, and training goes on after it'
        )
    questions, length = run.reward.questions, run.reward.segment_length
    if questions.budget == 0 and run.reward.path is None and run.reward.answers is None:
        raise UserError(
            'reward.questions.budget: 0, without reward.path and reward.answers: there is nothing '
            'to learn a reward from'
        )
    if questions.budget == 0:
        return
    if questions.per_round > questions.candidates:
        raise UserError(
            f'reward.questions.per_round: {questions.per_round} is more than there are candidates '
            f'(reward.questions.candidates: {questions.candidates})'
        )
    before = run.reward_updates * run.rollout.steps
    for what, steps in (
        ('the episode (env.episode_length)', run.env.episode_length),
        ('what each environment does before the first round (rollout, unsupervised)', before),
        ('what the replay keeps of each environment (replay.capacity)', run.replay_rows),
    ):
        if length > steps:
            raise UserError(f'reward.segment_length: {length} is longer than {what}: {steps}')
    if run.labeller.by_people:
        _check_people(run)


def _check_people(run: SacRun) -> None:
    """They are asked between dispatches."""
    dispatch = run.updates_per_dispatch
    for what, updates in (
        ('before the first round (rollout.random_env_steps, unsupervised)', run.reward_updates),
        (
            'between rounds (reward.questions.every_env_steps)',
            run.updates_of(run.reward.questions.every_env_steps),
        ),
    ):
        if updates % dispatch:
            raise UserError(
                f'updates_per_dispatch: {dispatch} does not divide the {updates} updates {what}; '
                'people are asked between dispatches'
            )
