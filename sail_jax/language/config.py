"""Configuration of a language run."""

from typing import Any, Literal

from pydantic import Field

from sail_jax import config, hub, sweep, unused
from sail_jax.config import Devices, Section, Teacher
from sail_jax.errors import UserError
from sail_jax.labels import settings as people
from sail_jax.labels.settings import PeopleTeacher
from sail_jax.language import optimizer
from sail_jax.language.adapter import Lora
from sail_jax.language.data.variables import DAY, Day, Variables
from sail_jax.language.optimizer import LanguageOptimizer
from sail_jax.language.reward import config as rewarding
from sail_jax.language.reward.config import (
    JudgeEndpoint,
    RewardName,
    RewardSource,
    WeightedReward,
)
from sail_jax.scalars import INT_MAX

DType = Literal['float32', 'bfloat16']


class Data(Section):
    """A data set, and what is asked of its rows."""

    path: str
    """A `.jsonl`, `.json` (rows or an array of them; also `.gz`), `.parquet` or `.arrow` file, a
    Hugging Face data set's directory, or `hf://OWNER/NAME`, one on the hub."""
    split: str = 'train'
    """Of a directory."""
    format: Literal['trl', 'ultrafeedback', 'hh-rlhf', 'pku-safe-rlhf', 'pku-safe-rlhf-safer'] = (
        'trl'
    )
    """What its columns are; `trl` is TRL's string and conversational forms. Of PKU-SafeRLHF's two
    comparisons, the plain name takes the more helpful response, `-safer` the safer."""
    on_bad_row: Literal['error', 'skip'] = 'error'
    """Stop at a row that cannot be used, or leave it out and count it."""
    max_prompt_tokens: int = Field(default=512, ge=1, le=2**20)
    """A longer prompt is a bad row; nothing is cut."""
    max_response_tokens: int = Field(default=512, ge=2, le=2**20)
    """The same for a response, its end of sequence included."""


class Sampling(Section):
    """How responses are drawn. Anything but temperature 1 without truncation samples from another
    distribution than the policy, and is off-policy to that extent."""

    max_tokens: int = Field(default=128, ge=1, le=2**20)
    """A response's largest length, its end of sequence included."""
    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by it."""
    top_k: int | None = Field(default=None, ge=1)
    """Only the k most probable tokens."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only the smallest set of most probable tokens that has this probability."""
    opponent: Literal['policy', 'reference'] = 'policy'
    """Who draws the last response of each group: with `reference` the policy's are compared with
    one of the reference's, as in XPO (arXiv 2405.21046, alg. 1), and the exploration term is of the
    same one."""

    @property
    def on_policy(self) -> bool:
        """Whether samples are the policy's own."""
        return self.temperature == 1 and self.top_k is None and self.top_p == 1

    @property
    def greedy(self) -> 'Sampling':
        """The most probable token at each place instead."""
        return self.model_copy(update={'temperature': 1.0, 'top_k': 1, 'top_p': 1.0})


class StartModel(Section):
    """The policy at the start, which is also the reference."""

    path: hub.ModelPath
    """A Hugging Face checkpoint directory, or `hf://OWNER/NAME`: Llama, Mistral, Qwen1.5 to 3,
    Gemma 3 (text), Phi-3 and 4, OLMo 2, SmolLM2 and 3."""
    dtype: DType = 'float32'
    """Of activations; log-probabilities and KL are float32 whatever it is."""
    param_dtype: DType = 'float32'
    """Of the parameters. With `train: lora` of the frozen ones; an adapter is float32."""
    remat: bool = False
    """Compute each layer again in the backward pass instead of keeping the results of its linear
    maps; the rest is computed again in any case."""
    train: Literal['full', 'lora'] = 'full'
    """All parameters, with a copy of them as the reference; or an adapter, and the reference is
    the model without it."""
    lora: Lora = Lora()
    """For `train: lora`."""
    adapter: hub.ModelPath | None = None
    """A directory of PEFT's with the adapter to start from, for `train: lora`; rank, alpha,
    targets and layers are then the adapter's. The reference begins with it too."""
    chat_template_kwargs: Variables = Field(default_factory=dict)
    """Variables for the chat template, `{enable_thinking: false}` for example; `tools` and
    `documents` are lists of objects, or JSON of such."""
    chat_template_date: Day = DAY
    """The day that `strftime_now` tells a chat template, the reward model's too: today's would
    give every day other prompts."""

    @property
    def template(self) -> dict[str, Any]:
        """What `tokens.load` takes for the chat template."""
        return {'variables': self.chat_template_kwargs, 'date': self.chat_template_date}


class LanguageReference(Section):
    """What margins and the KL penalty are measured against. It begins as the model at the start."""

    refresh_prompts: int | None = Field(default=None, ge=1, le=2**40)
    """Replace the reference by the policy this often, rounded up to whole updates; none never
    does."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """The share of itself that the reference keeps whenever it is refreshed, after every update
    where `refresh_prompts` is none: above 0 it is a moving average of the policy's parameters, of
    an adapter's two factors each. TR-DPO's alpha (arXiv 2404.09656) is 1 less this."""


class ResponseEvaluation(Section):
    """Responses to held-out prompts, and held-out pairs where the data have them."""

    every_updates: int = Field(default=50, ge=1)
    """Updates between evaluations; there is one before the first and after the last."""
    prompts: int = Field(default=128, ge=2, le=2**20)
    """How many prompts are held out."""
    samples: int = Field(default=1, ge=1, le=64)
    """Responses to each prompt, of the policy and of the start policy."""
    decoding: Literal['sample', 'greedy', 'contrastive'] = 'sample'
    """Responses as `sampling` draws them; the most probable token at each place; or contrastive
    search with its authors' values, alpha 0.6 among 4 candidates (arXiv 2202.06417). The last two
    leave temperature, top_k and top_p out."""
    against_chosen: bool = True
    """Where held-out rows have pairs and something scores responses: also the win rate against the
    data's chosen ones. They are scored once; a judge is asked twice more for each response."""
    path: str | None = None
    """Where they come from, as `data.path`; none is `data.path`."""
    split: str | None = None
    """Of a directory. With neither path nor split, rows spread evenly over the data are held out
    of training."""
    table_rows: int = Field(default=16, ge=0)
    """Prompts in the sample table that each evaluation leaves in `RUN_DIR/samples`."""


class LanguageRun(config.Run):
    """Aligns a language model with a labeller, or with preference data."""

    workload: Literal['language']
    """What this file configures."""
    total_prompts: int = Field(default=10_000, ge=1)
    """Length of the run, rounded up to whole updates; the data are gone through in a new order as
    often as it takes, within an update too."""
    prompts_per_update: int = Field(default=32, ge=1, le=2**20)
    """Prompts of an update, B."""
    group_size: int = Field(default=2, ge=2, le=256)
    """Responses to each prompt, K; all K(K-1)/2 pairs of them are compared."""
    model: StartModel
    devices: Devices = Devices()
    data: Data
    sampling: Sampling = Sampling()
    reward: RewardSource = RewardSource()
    rewards: dict[RewardName, WeightedReward] = Field(default_factory=dict)
    """Several rewards in the place of `reward.source`, each by a name of yours with the keys that
    `reward` has, and a `weight`. `source: none` is a function from Python,
    `sail_jax.train(..., reward={'NAME': f})`. The mean of each is a metric, and of an
    ensemble its spread."""
    judge: JudgeEndpoint = JudgeEndpoint()
    labeller: PeopleTeacher = PeopleTeacher()
    reference: LanguageReference = LanguageReference()
    optimizer: LanguageOptimizer = LanguageOptimizer()  # pyright: ignore[reportIncompatibleVariableOverride]
    evaluation: ResponseEvaluation = ResponseEvaluation()

    @property
    def opponents(self) -> int:
        """Responses of a group that the reference draws."""
        return int(self.sampling.opponent == 'reference')

    @property
    def draws_reference(self) -> bool:
        """Whether the reference draws a response beside the group."""
        return super().draws_reference and not self.opponents

    @property
    def samples_policy(self) -> bool:
        """Whether there are rows with the policy's responses."""
        return self.objective.mixture.dpr + self.objective.mixture.dpp > 0

    @property
    def reads_pairs(self) -> bool:
        """Whether there are rows with the data's responses."""
        return self.objective.mixture.dpr + self.objective.mixture.dpp < 1 - 1e-6

    @property
    def needs_function(self) -> bool:
        """Whether its labels come from a function that only Python can give."""
        missing = any(source.source == 'none' for source in self.sources.values())
        others = self.judge.labels or self.labeller.by_people
        return self.objective.mixture.dpr > 0 and missing and not others

    @property
    def sources(self) -> dict[str, RewardSource]:
        """Of the reward, or of all of them, by their keys."""
        return rewarding.by_key(self.reward, self.rewards)

    @property
    def max_response_tokens(self) -> int:
        """The longest response that may come up in training."""
        samples = self.samples_policy or self.draws_reference
        sampled = self.sampling.max_tokens if samples else 0
        return max(sampled, self.data.max_response_tokens if self.reads_pairs else 0)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with the longest response."""
        response = max(self.max_response_tokens, self.sampling.max_tokens)
        return self.data.max_prompt_tokens + response

    @property
    def updates(self) -> int:
        """Updates of the whole run."""
        return -(-self.total_prompts // self.prompts_per_update)

    @property
    def refresh_updates(self) -> int | None:
        """Updates between refreshes of the reference."""
        prompts = self.reference.refresh_prompts
        if prompts is None:
            return 1 if self.reference.ema > 0 else None
        # Updates are counted in int32, which no run comes to the end of.
        return min(-(-prompts // self.prompts_per_update), INT_MAX)

    @property
    def default_matmul_precision(self) -> Literal['default', 'highest']:
        """Where activations are bfloat16 there are hardly any float32 factors."""
        return 'highest' if self.model.dtype == 'float32' else 'default'


def check(run: LanguageRun) -> None:
    """Refuses settings that are each fine but do not go together.

    Raises:
      UserError: naming the keys.
    """
    config.check(run)
    mixture, reward = run.objective.mixture, run.reward
    sweep.check(run)
    check_adapter(run.model)
    optimizer.check(run.optimizer, run.prompts_per_update, run.updates)
    if mixture.dpp + mixture.ddp > 1 - 1e-6:
        raise UserError(
            'objective.mixture: a policy that starts as its reference and labels every row itself '
            'has no gradient; leave some rows to dpr or offline DPO'
        )
    if run.reads_pairs and run.group_size != 2:
        raise UserError(
            f'group_size: {run.group_size}; rows with responses from the data (ddp and offline '
            'DPO, what is left of 1 in objective.mixture) have 2'
        )
    if run.opponents and run.reads_pairs:
        raise UserError(
            'sampling.opponent: reference: of responses that are sampled, and objective.mixture '
            "has rows with the data's (ddp, and what is left of 1)"
        )
    rewarding.check_rewards(run.reward, run.rewards)
    _check_comparing(run)
    if reward.missing_eos_penalty is not None and mixture.dpr == 0:
        raise UserError(
            'reward.missing_eos_penalty: of responses that the labeller compares, and '
            'objective.mixture.dpr is 0'
        )
    config.check_regression(run.objective, run.labeller)
    if run.reference.ema > 0 and (run.model.train, run.model.param_dtype) == ('full', 'bfloat16'):
        raise UserError(
            'reference.ema: in bfloat16 a moving average stands still; use model.param_dtype: '
            'float32, model.train: lora, or reference.refresh_prompts alone'
        )
    if run.evaluation.decoding != 'sample' and run.evaluation.samples > 1:
        raise UserError(
            f'evaluation.samples: {run.evaluation.samples}; evaluation.decoding: '
            f'{run.evaluation.decoding} has one response to a prompt'
        )
    if run.labeller.discount < 1:
        raise UserError('labeller.discount: a response has one reward, at its end; use 1')
    if run.labeller.skip + run.labeller.equal > 0 and mixture.dpr < 1:
        raise UserError(
            'labeller.skip, labeller.equal: in units of the mean reward of a batch, whose rows '
            'must all be labelled by it; use objective.mixture.dpr: 1'
        )


def _check_comparing(run: LanguageRun) -> None:
    """Of a judge or people who say which of two responses is better, and give no rewards."""
    rewarding.check_judge(run.judge)
    people.check(run, shared=frozenset({'max_labels'}))
    if not run.labeller.wait:
        raise UserError(
            'labeller.wait: false: an update of a language run is learned from its own questions, '
            'and waits for them'
        )
    who = {'judge.labels': run.judge.labels, 'labeller.source: people': run.labeller.by_people}
    labelling = [name for name, labels in who.items() if labels]
    if len(labelling) > 1:
        raise UserError('labeller.source: people, and judge.labels; use one')
    for name in labelling:
        if run.objective.mixture.dpr == 0:
            raise UserError(f'{name}: of the rows of objective.mixture.dpr, which is 0')
        if run.objective.loss == 'rebel':
            raise UserError(f'{name}: objective.loss: rebel needs rewards, and these are none')
        if run.reward.missing_eos_penalty is not None:
            raise UserError(f'{name}: reward.missing_eos_penalty is of rewards')
    default = Teacher()
    for name in ('kind', 'rationality', 'soft', 'mistake', 'skip', 'equal'):
        if run.judge.labels and getattr(run.labeller, name) != getattr(default, name):
            raise UserError(f'labeller.{name}: of labels made of rewards; not used by judge.labels')


def check_adapter(model: StartModel) -> None:
    """Refuses settings of an adapter where none is trained.

    Raises:
      UserError: naming the key.
    """
    if model.train == 'lora':
        return
    if model.adapter is not None:
        raise UserError(
            f'model.adapter: not used by model.train: {model.train}; to train all parameters from '
            'an adapter on, add it into the weights before (in PEFT, merge_and_unload)'
        )
    unused.refuse('model.lora', model.lora, f'model.train: {model.train}; did you mean lora?')


def check_lengths(run: LanguageRun, max_positions: int) -> None:
    """Refuses lengths that the model has no positions for.

    Raises:
      UserError: naming the keys.
    """
    if run.longest > max_positions:
        prompt = run.data.max_prompt_tokens
        raise UserError(
            f'data.max_prompt_tokens: {prompt}, and responses of {run.longest - prompt}: '
            f'{run.model.path} has {max_positions} positions'
        )
