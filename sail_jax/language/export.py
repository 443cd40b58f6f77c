"""A run's model outside of training: as a Hugging Face directory, or answering a prompt."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from sail_jax import configfile, files, sweep, terminal
from sail_jax.core import precision
from sail_jax.core.types import Policy
from sail_jax.errors import UserError
from sail_jax.language.config import LanguageRun
from sail_jax.language.data import template, tokens
from sail_jax.language.data.rows import Message
from sail_jax.language.data.tokens import Tokenizer
from sail_jax.language.data.variables import Variables
from sail_jax.language.model import companions, lora, sampler, weights
from sail_jax.language.model import policy as language_policy
from sail_jax.language.model.architecture import Architecture
from sail_jax.language.model.policy import Decoders
from sail_jax.language.model.sampler import Sampling
from sail_jax.language.model.tensors import DTYPES
from sail_jax.language.model.transformer import Decoder
from sail_jax.language.reward import reward_model
from sail_jax.language.reward.reward_model import RewardModel
from sail_jax.language.reward.stage.config import RewardRun
from sail_jax.language.sft.config import SftRun, SupervisedModel
from sail_jax.language.supervised.config import MODEL, SupervisedRun
from sail_jax.training import checkpoint, devices, platform


class OpenedModel(NamedTuple):
    """A run's newest or best model; neither data nor labeller are looked at."""

    run: LanguageRun | SupervisedRun
    decoders: Decoders
    policy: Policy
    shared: Any
    """`State.shared`."""

    @property
    def decoder(self) -> Decoder:
        """With its adapter, where it has one."""
        return self.decoders.policy(self.policy, self.shared)

    @property
    def merged(self) -> Decoder:
        """With its adapter in the weights, where it has one."""
        return lora.merge(self.decoder) if self.decoders.adapted else self.decoder


def decoders_of(
    run: LanguageRun | SupervisedRun,
    mesh: Mesh | None = None,
    architecture: Architecture | None = None,
) -> Decoders:
    """What makes the decoders of a run's policies; arguments and errors as of `policy.read`."""
    if isinstance(run, SftRun):
        architecture = architecture or run.model.architecture
    model = partial(RewardModel, heads=run.model.heads) if isinstance(run, RewardRun) else Decoder
    return language_policy.read(run.model, mesh, architecture, length=run.longest, model=model)


def open_run(run_dir: Path, run: LanguageRun | SupervisedRun, best: bool = False) -> OpenedModel:
    """Reads a run's newest checkpoint, or its best.

    Raises:
      UserError: no readable checkpoint; the model that training started from is gone; a sweep.
    """
    sweep.require_alone(run, run_dir)
    platform.require_usable()
    decoders = decoders_of(run)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = jax.tree.map(lambda _: device, decoders.abstract)
    abstract = checkpoint.abstract_like(decoders.abstract, places)
    policy = checkpoint.restore_policy(run_dir / 'checkpoints', abstract, best)
    return OpenedModel(run, decoders, policy, decoders.shared())


def export(opened: OpenedModel, out: Path, adapter: bool = False, dtype: str | None = None) -> Path:
    """Writes a directory that `transformers` loads, tokeniser included; vLLM reads the same layout.
    Its chat template takes `model.chat_template_kwargs` where it is rendered without them.

    Args:
      out: a new directory.
      adapter: write the adapter alone, as PEFT does, instead of adding it into the weights.
      dtype: of the tensors; None keeps the parameters'.

    Raises:
      UserError: it exists; there is no adapter; a type that is not read here either.
    """
    settings, of_tensors = opened.run.model, _type_of_tensors(dtype)
    if adapter and isinstance(opened.run, RewardRun):
        raise UserError('--adapter: a reward model has a score besides; export the whole model')
    if adapter and settings.train != 'lora':
        raise UserError('--adapter: the run trained all parameters (model.train: full)')
    if adapter:
        adapted = opened.decoders.settings.lora
        return lora.save(opened.decoder, adapted, out, settings.path, of_tensors)
    with files.new_directory(out) as directory:  # Whole, with what is added to its configuration.
        weights.fill(opened.merged, directory, settings.path, of_tensors)
        _complete(opened.run, directory)
    return out


def _type_of_tensors(dtype: Any) -> jnp.dtype | None:
    if dtype is None:
        return None
    names = {jnp.dtype(read).name for read in DTYPES.values()}
    try:
        found = jnp.dtype(dtype)
    except TypeError:  # Of no such name, or another library's.
        found = None
    if found is None or found.name not in names:
        raise UserError(f'dtype: {dtype!r:.80}; expected one of {", ".join(sorted(names))}')
    return found


def _complete(run: LanguageRun | SupervisedRun, out: Path) -> None:
    """What of an export is not its source's."""
    settings = run.model
    if isinstance(settings, SupervisedModel) and settings.tokenizer is not None:
        companions.copy(settings.tokenizer, out)
    _write_defaults(out, settings.chat_template_kwargs)
    tokenizer = tokens.load(out, **settings.template)
    if isinstance(run, RewardRun):
        _name_padding(out, tokenizer)
    else:
        _name_end(out, tokenizer)


def _write_defaults(out: Path, variables: Variables) -> None:
    """Whoever renders an export's chat template knows nothing of `chat_template_kwargs`: the
    template itself has the values that the model was trained with."""
    config = out / 'tokenizer_config.json'
    source, _ = template.read(files.read_json(config) if config.exists() else {}, out)
    if variables and source is not None:
        text = template.with_defaults(source, variables)
        files.write(out / template.FILE, text.encode())


def _name_padding(out: Path, tokenizer: Tokenizer) -> None:
    """`transformers` reads a reward at the last token that is no padding."""
    config = files.read_json(out / 'config.json')
    config['pad_token_id'] = reward_model.padding(out, tokenizer)
    files.write_json(out / 'config.json', config)


def _name_end(out: Path, tokenizer: Tokenizer) -> None:
    """`transformers` generates until the end that the model's files name, not the tokeniser's."""
    generation = out / 'generation_config.json'
    config = files.read_json(out / 'config.json')
    if not generation.exists() and config.get('eos_token_id') is None:
        files.write_json(generation, {'eos_token_id': list(tokenizer.eos_ids)})


def load(path: Path, best: bool = False) -> tuple[Decoder, Tokenizer, Sampling]:
    """The model of a run, or of a Hugging Face directory, and how it is sampled.

    Args:
      best: of a run, the best checkpoint instead of the newest.

    Raises:
      UserError: neither of them is there, or it cannot be read.
    """
    if files.exists(path / 'config.yaml'):
        data, node = configfile.read_yaml(path / 'config.yaml')
        settings = {'sft': SftRun, 'language': LanguageRun}.get(str(data.get('workload')))
        if settings is None:
            raise UserError(f'{path}: not a run of a language model')
        # A finished supervised run does not need what it started from.
        if settings is SftRun and not best and (path / MODEL).exists():
            return load(path / MODEL)
        run: Any = configfile.validate(settings, data, path / 'config.yaml', node)
        tokenizer = tokens.load(run.model.path or run.model.tokenizer, **run.model.template)
        sampling = run.sampling if settings is LanguageRun else Sampling()
        return open_run(path, run, best).decoder, tokenizer, sampling
    if best:
        raise UserError(f'--best: {path} is one model, without checkpoints')
    platform.require_usable()
    return weights.load(path), tokens.load(path), Sampling()


# parameters: what `respond` and the command line take, and the model.
def generate(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    settings: Sampling,
    *,
    seed: int = 0,
    samples: int = 1,
    chat: bool = False,
) -> list[list[str]]:
    """Responses to prompts, [N][samples].

    Args:
      chat: put each prompt as the user's turn into the chat template; otherwise it is plain text
        to continue.

    Raises:
      UserError: no chat template; a prompt without tokens.
    """
    if not prompts:
        return []
    turns = [(Message('user', prompt),) if chat else prompt for prompt in prompts]
    prompt_ids = [tokenizer.prompt_ids(turn) for turn in turns]
    longest, positions = max(map(len, prompt_ids)), decoder.architecture.longest
    decoder = decoder.of_length(longest + settings.max_tokens)
    if longest + settings.max_tokens > positions:
        terminal.say(
            f'a prompt of {longest} tokens and {settings.max_tokens} of a response; the model was '
            f'made for {positions} positions (max_position_embeddings), and may not make sense '
            'beyond them'
        )
    padded = sampler.pad_prompts(prompt_ids)
    key_N = jax.random.split(jax.random.key(seed), len(prompts))
    eos_E = jnp.asarray(tokenizer.eos_ids, jnp.int32)
    graphdef, state = nnx.split(decoder)
    responses = _draw(graphdef, state, padded, key_N, eos_E, group_size=samples, settings=settings)
    drawn = jax.device_get(responses)
    return tokenizer.texts(drawn.tokens_BxKxR, drawn.lengths_BxK)


# parameters: an operation on a model's parts, compiled once for all calls of one shape
@partial(jax.jit, static_argnums=0, static_argnames=('group_size', 'settings'))
def _draw(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    prompts: sampler.Prompts,
    key_N: jax.Array,
    eos_E: jax.Array,
    *,
    group_size: int,
    settings: Sampling,
) -> sampler.Responses:
    decoder = nnx.merge(graphdef, state)
    generate = precision.traced_at(precision.of(decoder.dtype))(sampler.generate)
    return generate(decoder, prompts, key_N, group_size=group_size, settings=settings, eos_E=eos_E)


class Respond(Protocol):
    """What `sail_jax.load_policy` gives of a language run."""

    def __call__(self, prompts: Sequence[str], seed: int = 0, *, chat: bool = False) -> list[str]:
        """A response to each prompt; arguments and errors as of `generate`."""
        ...


def responder(path: Path, best: bool = False, deterministic: bool = True) -> Respond:
    """The model of a run as a function from prompts to responses.

    Args:
      best: as of `load`.
      deterministic: the most probable token at each place; otherwise as the run samples.

    Raises:
      UserError: as of `load`.
    """
    decoder, tokenizer, sampling = load(path, best)
    if deterministic:
        sampling = sampling.greedy

    def respond(prompts: Sequence[str], seed: int = 0, *, chat: bool = False) -> list[str]:
        prompts = _listed(prompts)
        with devices.memory_named('give fewer prompts'):
            groups = generate(decoder, tokenizer, prompts, sampling, seed=seed, chat=chat)
        return [response for (response,) in groups]

    return respond


def _listed(prompts: Iterable[str]) -> list[str]:
    """The texts. A message, a mapping, would be taken for two of them."""
    several = isinstance(prompts, Iterable) and not isinstance(prompts, str | bytes | Mapping)
    texts = [*prompts] if several else []
    if not several or not all(isinstance(text, str) for text in texts):
        raise UserError(f'prompts: expected a list of texts, got {prompts!r:.80}')
    return texts


def respond(
    path: Path,
    prompts: Sequence[str],
    *,
    best: bool = False,
    max_tokens: int | None = None,
    temperature: float | None = None,
    **options: Any,
) -> list[list[str]]:
    """Responses of the model of a run, or of a Hugging Face directory.

    Args:
      best: as of `load`.
      max_tokens, temperature: instead of the run's; of temperature 0 the most probable tokens.
      **options: of `generate`.

    Raises:
      UserError: as of `load` and `generate`; a setting out of bounds.
      TrainingFailed: a device's memory was not enough.
    """
    prompts = _listed(prompts)
    decoder, tokenizer, sampling = load(path, best)
    greedy = temperature == 0 and not isinstance(temperature, bool)
    changed = {'max_tokens': max_tokens, 'temperature': None if greedy else temperature}
    changed = {key: value for key, value in changed.items() if value is not None}
    sampling = configfile.validate(Sampling, sampling.model_dump() | changed, Path('generate'))
    sampling = sampling.greedy if greedy else sampling
    if not options.get('chat') and tokenizer.no_template is None:
        terminal.say(f'{path} has a chat template; --chat (chat=True) puts prompts into it')
    with devices.memory_named('lower --samples or --max-tokens, or give fewer prompts'):
        return generate(decoder, tokenizer, prompts, sampling, **options)
