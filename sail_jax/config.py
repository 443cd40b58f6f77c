"""The typed, immutable run configuration: sections that every workload shares.

A docstring under a field is its documentation: it becomes the text of `--help`.
"""

import typing
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    NonNegativeFloat,
    PositiveFloat,
)
from pydantic_core import CoreSchema

from sail_jax import scalars
from sail_jax.errors import UserError


class Section(BaseModel):
    """A part of the configuration: immutable, unknown keys refused, and checked again whenever it
    comes from Python."""

    model_config = ConfigDict(
        frozen=True,
        extra='forbid',
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        revalidate_instances='always',
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return scalars.guarded(handler(source))

    @pydantic.model_validator(mode='before')
    @classmethod
    def _none(cls, data: Any) -> Any:
        """`none` is how the documentation writes YAML's null."""
        if not isinstance(data, dict):
            return data
        return {
            key: None if value == 'none' and optional(cls.model_fields.get(key)) else value
            for key, value in data.items()
        }

    @pydantic.field_validator('*')
    @classmethod
    def _text(cls, value: Any) -> Any:
        """A name of bytes that are no UTF-8 could neither be printed nor written to a file."""
        if isinstance(value, str | Path) and not scalars.is_text(str(value)):
            raise ValueError('should be UTF-8')
        return value


def optional(field: Any) -> bool:
    """Whether a field can be null."""
    return field is not None and type(None) in typing.get_args(field.annotation)


class Mixture(Section):
    """Which member of the SAIL family a row belongs to; what is left of 1 is offline DPO."""

    dpr: float = Field(default=1.0, ge=0, le=1)
    """Probability of SAIL-DPR: the policy's responses, the labeller's labels."""
    dpp: float = Field(default=0.0, ge=0, le=1)
    """Probability of SAIL-DPP: the policy's responses and the policy's labels."""
    ddp: float = Field(default=0.0, ge=0, le=1)
    """Probability of SAIL-DDP: responses from the data (in control: drawn from the reference),
    the policy's labels."""


class Objective(Section):
    """SAIL's preference objective."""

    beta: float = Field(default=0.1, gt=0)
    """Scale of the implicit reward `beta * log(pi / pi_ref)`."""
    response_grad: float = Field(default=0.3, ge=0)
    """Weight of the response-score term: 1 is the gradient of the objective, 0 is online DPO,
    0.3 what SAIL's authors ship."""
    response_grad_updates: int | None = Field(default=None, ge=1, lt=2**31)
    """Updates in which `response_grad` falls linearly to 0, where it stays; none leaves it as it
    is."""
    label_grad: float = Field(default=0.3, ge=0)
    """Weight of the label-score term in rows that the policy labels itself; 1 is the gradient."""
    loss: str = 'dpo'
    """What a labelled pair is worth by its margin D: `dpo`, log sigmoid(D), SAIL's; `ipo`,
    -(D / beta - 1 / (2 beta))^2; `hinge`, -max(0, 1 - D); `simpo`, log sigmoid(D) with D of
    log-probabilities per step and without a reference (SimPO has beta 2 to 10 and a target margin);
    `rebel`, -(D - (r1 - r2))^2 of the responses' rewards, or of the segments' returns (REBEL's eta
    is 1 / beta and its reference the last policy, as with a refresh after each update); or the name
    of a function that a program has put into `sail_jax.PAIR_LOSSES`."""
    target_margin: float = Field(default=0.0, ge=0)
    """Subtracted from every margin before it is judged: SimPO's gamma."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """The share of the labeller's (or the data's) labels that is taken to be wrong: P counts as
    (1 - s) P + s (1 - P)."""
    exploration: Literal['none', 'xpo', 'selm'] = 'none'
    """A term that is added, of one more response y to each context, drawn from the reference (or
    the group's, with `sampling.opponent`):
    `xpo`, -alpha log pi(y) (arXiv 2405.21046); `selm`, -alpha beta log(pi(y) / pi_ref(y)) (arXiv
    2405.19332). Both push the policy away from what the reference would say, against the KL
    penalty, whose coefficient is better 0 beside it."""
    alpha: float | None = Field(default=None, gt=0)
    """Of the exploration term: 1e-5 in XPO's experiments, 1e-4 to 1e-3 in SELM's, whose term has
    beta as well."""
    mixture: Mixture = Mixture()
    """Members of the family."""


class Divergence(Section):
    """The KL penalty, `-coefficient * KL`."""

    coefficient: float = Field(default=1e-3, ge=0)
    """Lambda; 0 is SAIL without the penalty."""
    coefficient_updates: int | None = Field(default=None, ge=1, lt=2**31)
    """Updates in which `coefficient` falls linearly to 0, where it stays; none leaves it as it
    is."""
    direction: Literal['ref_to_policy', 'policy_to_ref'] = 'ref_to_policy'
    """`ref_to_policy` is KL(pi_ref || pi), the paper's "reverse KL"; `policy_to_ref` is
    KL(pi || pi_ref)."""
    estimator: Literal['exact', 'sampled'] = 'exact'
    """`exact` takes each step's KL in closed form, `sampled` the drawn actions' log-ratio."""
    states: Literal['policy', 'reference', 'data'] = 'policy'
    """Where it is taken: on the policy's samples of this update, on extra samples drawn from the
    reference, or on the rows whose responses come from the data."""
    reduction: Literal['sum', 'mean'] = 'mean'
    """Over the steps of a response: `sum` is the trajectory's KL, `mean` its average per step."""
    visitation_grad: bool = False
    """Add the score-function part of the gradient: the policy also chooses the states it visits.
    For `states: policy`, `estimator: exact`, `reduction: sum`."""

    @property
    def draws_reference(self) -> bool:
        """Whether the penalty needs extra responses of the reference."""
        return self.coefficient > 0 and self.states == 'reference'


class Teacher(Section):
    """Who labels; the defaults are B-Pref's oracle. `sail_jax.core.labellers` has the table of its
    six scripted teachers."""

    kind: str = 'teacher'
    """`teacher`, the scripted one, whose settings are the others here; or the name of a function
    that a program has put into `sail_jax.LABELLERS`."""
    rationality: float | None = Field(default=None, gt=0)
    """Bradley-Terry's inverse temperature, per unit of return; none prefers the larger return."""
    soft: bool = False
    """Give the probability itself instead of a label drawn from it."""
    discount: float = Field(default=1.0, gt=0, le=1)
    """Myopia: a reward t steps before the segment's end counts `discount^t`."""
    mistake: float = Field(default=0.0, ge=0, le=0.5)
    """Probability that a label is turned round."""
    skip: float = Field(default=0.0, ge=0)
    """No label where neither return is above this share of the batch's mean return; where that is
    not positive, nothing is skipped."""
    equal: float = Field(default=0.0, ge=0)
    """"Equal" where returns differ by less than this share of the batch's mean absolute return."""
    max_labels: int | None = Field(default=None, ge=1, lt=2**31)
    """Budget of comparisons, skipped ones included; the run ends when it is spent."""


Argument = bool | int | float | str | None
"""What a function that a file names can be given."""


class OptaxRule(Section):
    """An optimizer of Optax."""

    rule: str = 'adam'
    """What it is called in `optax` or `optax.contrib`: `adam`, `adamw`, `rmsprop`, `sgd`, `lion`,
    `muon`, ..."""
    arguments: dict[str, Argument] = Field(default_factory=dict)
    """Its arguments beside the learning rate, `{decay: 0.99, eps: 1.0e-8}` for example; what is not
    here is as in Optax."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Its step size."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Clips the global norm of the gradient, a value function's included; none leaves it."""


class Optimizer(OptaxRule):
    """An optimizer of Optax on the surrogate."""

    epochs: int = Field(default=1, ge=1, le=2**10)
    """Passes over a batch."""
    minibatches: int = Field(default=1, ge=1, le=2**20)
    """Gradient steps per pass, each on its share of the batch's rows."""
    clip: float | None = Field(default=0.2, gt=0, lt=1)
    """PPO's bound on the importance ratios of the score-function terms (the response score, and the
    KL's where it has one) after a batch's first gradient step; none leaves the ratios."""
    param_bound: float | None = Field(default=None, gt=0)
    """Radius of the L2 ball that the policy's parameters are projected on after every gradient
    step; none leaves them free."""
    max_skipped: int = Field(default=10, ge=1)
    """The run stops after this many gradient steps in a row were skipped as not finite."""


class Checkpoints(Section):
    """Orbax checkpoints in `RUN_DIR/checkpoints`."""

    every_updates: int = Field(default=100, ge=1)
    """Updates between checkpoints; one more is written at the end."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest are kept."""
    keep_best: int = Field(default=1, ge=0)
    """How many of the best are kept besides, for `--best`: an evaluation that is among them is
    saved at once. A sweep keeps none."""
    metric: str | None = None
    """What is best: a number of the evaluations, `-eval/loss` with a minus where less is better.
    None is eval/return; of a language run the first that there is of eval/reward, eval/win_rate and
    eval/pair_accuracy; of a supervised stage -eval/loss."""


class Logging(Section):
    """Where metrics go besides `metrics.jsonl`."""

    tensorboard: bool = True
    """Write TensorBoard events to `RUN_DIR/tensorboard`; to look at them,
    `pip install 'sail-jax[tensorboard]'` and `tensorboard --logdir RUN_DIR`."""
    wandb: Annotated[str, Field(pattern=r'^[^/\\#?%:]{1,128}$')] | None = None
    """Weights & Biases project to log to; none does not. Runs are called as their directory is, and
    members of a sweep SWEEP/MEMBER; samples of a language run and, at the end, the plot are there
    as media."""
    wandb_entity: Annotated[str, Field(pattern=r'^[\w.-]{1,128}$')] | None = None
    """Whose project that is, a user or a team; none is yours."""
    wandb_group: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """What W&B groups runs by; none is the sweep's name, of a run alone nothing."""
    wandb_tags: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = ()
    """W&B's tags of the run."""


Size = Literal['auto'] | Annotated[int, Field(ge=1)]


class Devices(Section):
    """The mesh: how many devices lie along each axis. `auto` is what the other axes leave."""

    data: Size = 'auto'
    """Rows of a batch are split over it; every device has the whole model."""
    fsdp: Size = 1
    """Rows are split over it, and so are parameters, gradients and optimizer state, which are
    gathered a layer at a time (ZeRO-3, arXiv 1910.02054)."""
    tensor: Size = 1
    """Attention heads, the width of the MLP and the vocabulary are split (arXiv 1909.08053)."""


class Sweep(Section):
    """Values that are trained with `seeds`: every combination."""

    beta: tuple[PositiveFloat, ...] = ()
    """Values of `objective.beta`."""
    response_grad: tuple[NonNegativeFloat, ...] = ()
    """Values of `objective.response_grad`."""
    coefficient: tuple[NonNegativeFloat, ...] = ()
    """Values of `divergence.coefficient`."""
    learning_rate: tuple[PositiveFloat, ...] = ()
    """Values of `optimizer.learning_rate`."""


Seed = Annotated[int, Field(ge=0, lt=2**31)]
MAX_MEMBERS = 2**12


class Settings(Section):
    """What every configuration file has."""

    seed: Seed = 0
    """All randomness is a function of it, the update and the row."""


class Trained(Settings):
    """What everything that is trained has."""

    checkpoints: Checkpoints = Checkpoints()
    logging: Logging = Logging()
    matmul_precision: Literal['auto', 'default', 'high', 'highest'] = 'auto'
    """How exactly float32 matrices are multiplied. `highest` is float32; `high` is TF32 on NVIDIA
    GPUs and three passes of bfloat16 on TPUs; `default` is JAX's own choice, TF32 and bfloat16
    there. On CPUs all are float32, and bfloat16 factors are not touched by it. `auto` is `highest`
    for control, soft actor-critic and language models of `dtype: float32`, and `default` for those
    of `dtype: bfloat16`."""

    @property
    def default_matmul_precision(self) -> Literal['default', 'highest']:
        """What `matmul_precision: auto` is."""
        return 'highest'


class Seeded(Trained):
    """What several seeds and values of settings can be trained of at once."""

    seeds: (
        Annotated[int, Field(ge=1, le=MAX_MEMBERS)]
        | Annotated[tuple[Seed, ...], Field(min_length=1)]
        | None
    ) = None
    """Train several seeds, each as if alone: a number (from `seed` on), or the seeds; in control
    side by side, in language in turn."""
    sweep: Sweep = Sweep()


class Aligned(Trained):
    """What learning from preferences takes."""

    objective: Objective = Objective()
    divergence: Divergence = Divergence()
    optimizer: Optimizer = Optimizer()


class Run(Seeded, Aligned):
    """What every workload that is trained from preferences has."""

    @property
    def draws_reference(self) -> bool:
        """Whether each context also gets a response of the reference."""
        return self.divergence.draws_reference or self.objective.exploration != 'none'


def check_regression(objective: Objective, labeller: Teacher) -> None:
    """Refuses settings of labels where the loss goes by rewards.

    Raises:
      UserError: naming the keys.
    """
    if objective.loss != 'rebel':
        return
    if objective.mixture.dpr < 1 - 1e-6:
        raise UserError(
            'objective.loss: rebel: every response needs a reward; use objective.mixture.dpr: 1'
        )
    for name in ('rationality', 'soft', 'mistake', 'equal'):
        if getattr(labeller, name):
            raise UserError(
                f'labeller.{name}: of labels, and objective.loss: rebel goes by the rewards'
            )


RunT = TypeVar('RunT', bound=Settings)


def check(run: Run) -> None:
    """Refuses settings that are each fine but do not go together.

    Raises:
      UserError: naming the keys.
    """
    mixture, divergence = run.objective.mixture, run.divergence
    if mixture.dpr + mixture.dpp + mixture.ddp > 1 + 1e-6:
        raise UserError('objective.mixture: dpr + dpp + ddp is above 1')
    exploration, alpha = run.objective.exploration, run.objective.alpha
    if (exploration == 'none') != (alpha is None):
        needed = 'needed for' if alpha is None else 'not used by'
        raise UserError(f'objective.alpha: {needed} objective.exploration: {exploration}')
    if run.objective.loss == 'rebel' and run.objective.target_margin > 0:
        raise UserError(
            'objective.target_margin: not used by objective.loss: rebel, whose margins are to equal'
            ' differences of rewards'
        )
    if run.objective.loss == 'rebel' and run.objective.label_smoothing > 0:
        raise UserError(
            'objective.label_smoothing: of labels, and objective.loss: rebel goes by the rewards'
        )
    from_policy = mixture.dpr + mixture.dpp
    if divergence.coefficient > 0:
        if divergence.states == 'policy' and from_policy == 0:
            raise UserError(
                'divergence.states: "policy" needs rows with the policy\'s responses, but '
                'objective.mixture has none; give divergence.states "data", the states of the rows '
                'that there are, or "reference"'
            )
        if divergence.states == 'data' and from_policy > 1 - 1e-6:
            raise UserError(
                'divergence.states: "data" needs rows with responses from the data, but '
                'objective.mixture has none; use "policy" or "reference"'
            )
        if divergence.estimator == 'sampled':
            on_policy = divergence.direction == 'policy_to_ref'
            if on_policy != (divergence.states == 'policy'):
                raise UserError(
                    'divergence.estimator: "sampled" takes policy_to_ref from states "policy" and '
                    'ref_to_policy from "reference" or "data"; '
                    f'got {divergence.direction} from "{divergence.states}"'
                )
    if divergence.visitation_grad and (
        divergence.states,
        divergence.estimator,
        divergence.reduction,
    ) != ('policy', 'exact', 'sum'):
        raise UserError(
            'divergence.visitation_grad: needs states "policy", estimator "exact", reduction "sum"'
        )
