"""What a language run says of its rewards and of its judge."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sail_jax import hub
from sail_jax.config import Argument, Section
from sail_jax.errors import UserError
from sail_jax.language.data.variables import Variables


class RewardSource(Section):
    """What the labeller goes by. From Python, `sail_jax.train(..., reward=f)` or `judge=f` stand
    in for it."""

    source: Literal['none', 'positivity', 'model'] = 'none'
    """`positivity`: the sentiment of the response by a lexicon. `model`: the sequence
    classification checkpoint at `path`."""
    path: hub.ModelPath | Annotated[tuple[hub.ModelPath, ...], Field(min_length=1)] | None = None
    """A Hugging Face directory with one label, and with its own tokeniser and chat template; or
    several, an ensemble. A model that `workload: reward` trained with several heads is one too."""
    aggregate: Literal['mean', 'minimum'] = 'mean'
    """Of an ensemble: what of its rewards is the reward of a response."""
    spread_penalty: float = Field(default=0.0, ge=0)
    """Of an ensemble: so many times the standard deviation of its rewards is taken from their
    mean."""
    chat_template_kwargs: Variables = Field(default_factory=dict)
    """Variables for the reward model's chat template."""
    max_tokens: int = Field(default=1024, ge=1)
    """The reward model's limit for prompt and response together, in its own tokens; of what is
    longer the first tokens are scored, and the run says so once."""
    batch_size: int = Field(default=64, ge=1, le=2**20)
    """Responses that are scored at once."""
    timeout_s: float = Field(default=600.0, gt=0, le=1e9)
    """Seconds after which a call that has not answered ends the run."""
    missing_eos_penalty: float | None = Field(default=None, gt=0)
    """Subtracted in training from the reward of a response that was cut off before its end of
    sequence; in evaluations the reward is as it is."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Of all reward models."""
        if self.path is None:
            return ()
        return self.path if isinstance(self.path, tuple) else (self.path,)

    @property
    def combines(self) -> bool:
        """Whether something is asked for that only an ensemble has."""
        return self.aggregate != 'mean' or self.spread_penalty > 0


class WeightedReward(RewardSource):
    """One of several rewards."""

    weight: float = 1.0
    """The reward that labels are made of is the sum of all, each times its weight."""


RewardName = Annotated[str, Field(pattern=r'^[A-Za-z]\w{0,63}$')]


class JudgeEndpoint(Section):
    """A judge behind an API of OpenAI's form (`/chat/completions`), which vLLM, Ollama and others
    have too: it is shown a prompt with two responses and says which is better. From Python,
    `sail_jax.train(..., judge=f)` stands in for it."""

    model: str | None = Field(default=None, min_length=1, max_length=256)
    """What the server calls the model; none asks nobody."""
    base_url: Annotated[str, Field(pattern=r'^https?://[^\s/?#@]+(/[^\s?#@]*)?$')] = (
        'https://api.openai.com/v1'
    )
    """What `/chat/completions` is put behind, `http://localhost:8000/v1` of a server of your own
    for example; no place for a key."""
    api_key_env: Annotated[str, Field(pattern=r'^[A-Za-z_]\w{0,127}$')] | None = 'OPENAI_API_KEY'
    """The environment variable that has the API's key, which is written nowhere; none sends no
    key."""
    labels: bool = False
    """Also label the pairs of training, in the place of a reward; else it judges evaluations
    alone."""
    template: str | None = Field(default=None, max_length=2**16)
    """What it is asked, as one turn of the user's: a text with `{prompt}`, `{first}` and `{second}`
    that wants the answer to end with [[A]], [[B]] or, of equal ones, [[C]]; none is that of
    `sail_jax.language.reward.endpoint`."""
    arguments: dict[str, Argument] = Field(default_factory=dict)
    """More of a request, `{max_completion_tokens: 4096, reasoning_effort: low}` for example. Of
    itself it has `temperature: 0` and `max_tokens: 1024`; null takes one out."""
    concurrency: int = Field(default=8, ge=1, le=1024)
    """Requests at a time, of each process."""
    timeout_s: float = Field(default=60.0, gt=0, le=1e6)
    """Seconds that a request may take."""
    retries: int = Field(default=4, ge=0, le=100)
    """How often a request is made again that found nobody, took too long, or was put off (429 and
    5xx): after 1 second, 2, 4 and so on, half a minute at most, or what the server asks for."""


PLACES: tuple[str, ...] = ('{prompt}', '{first}', '{second}')
"""Of a judge's template."""
RESERVED = ('model', 'messages', 'stream', 'n')
"""Of a judge's request."""


def by_key(reward: RewardSource, rewards: Mapping[str, WeightedReward]) -> dict[str, RewardSource]:
    """The reward, or all of several, by their keys in the configuration."""
    return {f'rewards.{name}': one for name, one in rewards.items()} or {'reward': reward}


def check_rewards(reward: RewardSource, rewards: Mapping[str, WeightedReward]) -> None:
    """Refuses settings that are each fine but do not go together.

    Raises:
      UserError: naming the keys.
    """
    for key, one in by_key(reward, rewards).items():
        if (one.source == 'model') != (one.path is not None):
            needed = 'needed for' if one.path is None else 'not used by'
            raise UserError(f'{key}.path: {needed} {key}.source: {one.source}')
        if one.chat_template_kwargs and one.source != 'model':
            raise UserError(f'{key}.chat_template_kwargs: not used by {key}.source: {one.source}')
        if one.combines and one.source != 'model':
            raise UserError(
                f'{key}.aggregate, {key}.spread_penalty: of an ensemble of models; not used by '
                f'{key}.source: {one.source}'
            )
        if one.aggregate == 'minimum' and one.spread_penalty > 0:
            raise UserError(
                f'{key}.spread_penalty: of the mean; not used by {key}.aggregate: minimum'
            )
        if rewards and one.missing_eos_penalty is not None:
            raise UserError(
                f'{key}.missing_eos_penalty: of the sum; use reward.missing_eos_penalty'
            )
    if rewards and reward.source != 'none':
        raise UserError(f'rewards: in the place of reward.source: {reward.source}; use one')
    default = RewardSource()
    # The others are limits, a judge's from Python too, and the penalty of the sum.
    for name in ('path', 'aggregate', 'spread_penalty', 'chat_template_kwargs'):
        if rewards and getattr(reward, name) != getattr(default, name):
            raise UserError(f'reward.{name}: not used beside rewards, each of which has its own')


def check_judge(judge: JudgeEndpoint) -> None:
    """Refuses settings that are each fine but do not go together.

    Raises:
      UserError: naming the keys.
    """
    default = JudgeEndpoint()
    for name in JudgeEndpoint.model_fields:
        if judge.model is None and getattr(judge, name) != getattr(default, name):
            raise UserError(f'judge.{name}: not used without judge.model')
    if judge.template is not None:
        for place in PLACES:
            if place not in judge.template:
                raise UserError(f'judge.template: has no {place}')
    for name in RESERVED:
        if name in judge.arguments:
            raise UserError(f'judge.arguments: {name}: is not for a setting to say')
