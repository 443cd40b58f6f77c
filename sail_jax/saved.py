"""What can be made of a run that lies in its directory: an episode, a function, an export,
answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_jax import configfile, files, runs, scalars, workloads
from sail_jax import episode as episodes
from sail_jax.errors import UserError
from sail_jax.kind import Command, Saved

if TYPE_CHECKING:
    from sail_jax.control.reward.evaluate import RewardReport
    from sail_jax.episode import Episode


def _saved(
    run_dir: str | Path, best: bool, command: Command, handed: Mapping[str, Any]
) -> tuple[Callable[..., Any], Saved, dict[str, Any]]:
    """What a workload has for a command, the run that it is about, and what is handed in.

    Raises:
      UserError: no run there, or one of a workload that does not know the command.
    """
    run_dir = files.named(run_dir, 'run_dir')
    run = runs.load(run_dir / runs.CONFIG)
    kind = workloads.of(run)
    write = getattr(kind, command)
    if write is None:
        raise UserError(f'{run_dir}: {command} is for {workloads.names(command)} runs')
    handed = kind.accepted(handed)
    policies = lambda: runs.open_run(run_dir, best, **handed)[1:]
    return write, Saved(run=run, run_dir=run_dir, best=best, policies=policies), handed


# parameters: those of the command, all but the first two by name
def render(
    run_dir: str | Path,
    out: str | Path | None = None,
    *,
    seed: int = 0,
    stochastic: bool = False,
    start: bool = False,
    best: bool = False,
    **handed: Any,
) -> Episode:
    """An episode of a run's policy as a web page that needs nothing else, or as a film.

    A notebook's cell that ends with it shows it.

    Args:
      out: the file to write the page to, or a film where its name ends in `.mp4` or `.gif`; none
        writes nothing.
      seed: of the start state and the noise.
      stochastic: sample actions, instead of taking the distribution's mode.
      start: the policy before training.
      best: as of `open_run`.
      **handed: the environment that `train` was called with.

    Returns:
      The page, `Episode.page`, with the episode's return and length.

    Raises:
      UserError: as of `open_run`; a workload or an environment of which there is no picture; the
        file cannot be written.
    """
    if out is not None:
        episodes.check(out)
    draw, saved, handed = _saved(run_dir, best, 'render', handed)
    seed = scalars.integer('seed', seed)
    episode = draw(saved, seed=seed, stochastic=stochastic, start=start, **handed)
    if out is not None:
        episode.write(out)
    return episode


def load_policy(
    run_dir: str | Path, best: bool = False, deterministic: bool = True, **handed: Any
) -> Callable[..., Any]:
    """A run's policy as a function, for a loop of your own.

    Args:
      best: as of `open_run`.
      deterministic: always what is most probable; otherwise actions or responses are sampled.
      **handed: the environment that `train` was called with.

    Returns:
      Of a control run, `act(obs, key=None) -> actions`, compiled, for observations [..., O] as the
      environment gives them; a policy that samples needs the key. See
      `sail_jax.control.act.Act`. Of a language run, `respond(prompts, seed=0) -> responses`; see
      `sail_jax.language.export.Respond`.

    Raises:
      UserError: as of `open_run`; a workload whose policies are no such functions.
    """
    load, saved, handed = _saved(run_dir, best, 'load_policy', handed)
    return load(saved, deterministic=deterministic, **handed)


def export_labels(run_dir: str | Path, out: str | Path, **handed: Any) -> Path:
    """Writes the pairs that a run has asked about, with the answers: segments of a control or soft
    actor-critic run, for `reward.answers` of a control run; responses that people have compared,
    for `data.path`.

    Args:
      out: a file: JSON lines, or, of segments, an ArrayRecord of the same rows if it ends in
        `.arrayrecord`; see `sail_jax.control.reward.answers` and `sail_jax.language.answers`.
      **handed: the environment that `train` was called with.

    Raises:
      UserError: no such run; one of control or soft actor-critic whose reward is not learned, or a
        language run that asks no people (`labeller.source`).
      TrainingFailed: the file cannot be written.
    """
    write, saved, handed = _saved(run_dir, False, 'export_labels', handed)
    return write(saved, files.named(out, 'out'), **handed)


def export_reward(run_dir: str | Path, out: str | Path, **handed: Any) -> Path:
    """Writes the reward that a control or soft actor-critic run has learned, for `reward.path` of a
    control run.

    Args:
      out: a file, safetensors.
      **handed: the environment that `train` was called with.

    Raises:
      UserError, TrainingFailed: as of `export_labels`.
    """
    learned, saved, handed = _saved(run_dir, False, 'learned_reward', handed)
    return learned(saved, **handed).write(files.named(out, 'out'))


def evaluate_reward(
    run_dir: str | Path,
    reward: str | Path | None = None,
    episodes: int = 32,
    answers: str | Path | None = None,
    **handed: Any,
) -> RewardReport:
    """Holds a learned reward against the true one: on episodes of a control or soft actor-critic
    run's policy and of the policy that it started from, and on their segments.

    Args:
      reward: a file of `export_reward`, or another run's directory; None is the run's own.
      episodes: of each policy.
      answers: a file of answered pairs, as of `export_labels`, to hold it against besides.
      **handed: the environment that `train` was called with.

    Returns:
      Its `numbers` and a scatter plot, `picture`.

    Raises:
      UserError: as of `export_labels`; the reward is of another environment.
    """
    hold, saved, env = _saved(run_dir, False, 'evaluate_reward', handed)
    episodes = scalars.integer('episodes', episodes, at_least=2)
    held: Any = files.named(run_dir if reward is None else reward, 'learned reward')
    if held.is_dir():
        learned, other, handed = _saved(held, False, 'learned_reward', handed)
        held = learned(other, **handed)
    pairs = None if answers is None else files.named(answers, 'answers')
    return hold(saved, reward=held, episodes=episodes, held_out=pairs, **env)


# parameters: those of the command, all but the first two by name
def export(
    run_dir: str | Path,
    out: str | Path,
    *,
    best: bool = False,
    adapter: bool = False,
    dtype: str | None = None,
    private: bool = False,
    **handed: Any,
) -> Path | str:
    """Writes a run's policy as others read it: a Brax PPO checkpoint, or a Hugging Face directory.

    Args:
      out: a new directory; or, of a language run, `hf://owner/name`, a model on the hub, with a
        card.
      best: as of `open_run`.
      adapter: of a language run, the adapter alone, as PEFT reads it.
      dtype: of a language run's tensors; None keeps the parameters'.
      private: of a new model on the hub.
      **handed: the environment that `train` was called with.

    Returns:
      Where it is.

    Raises:
      UserError: as of `open_run`; the directory exists; the hub does not take it.
      TrainingFailed: it cannot be written.
    """
    write, saved, handed = _saved(run_dir, best, 'export', handed)
    return write(
        saved, files.named(out, 'out'), adapter=adapter, dtype=dtype, private=private, **handed
    )


def generate(
    model: str | Path, prompts: Sequence[str], *, best: bool = False, **options: Any
) -> list[list[str]]:
    """A language model's responses to prompts.

    Args:
      model: a run, or a Hugging Face directory.
      prompts: N texts.
      best: of a run, as of `open_run`.
      **options: `chat=True` puts each prompt as the user's turn into the chat template; `samples`
        is of responses to each prompt, 1 by default; `max_tokens` and `temperature` stand instead
        of the run's; `seed` is 0 by default.

    Returns:
      The responses to each prompt, [N][samples].

    Raises:
      UserError: no model there; a prompt that it cannot take; a setting out of bounds.
      TrainingFailed: a device's memory was not enough.
    """
    model = files.named(model, 'model')
    options |= {
        key: scalars.integer(key, options[key], least)
        for key, least in (('samples', 1), ('seed', 0))
        if key in options
    }
    if files.exists(model / runs.CONFIG):
        data, _ = configfile.read_yaml(model / runs.CONFIG)
        respond = workloads.of_file(data, model / runs.CONFIG).generate
        if respond is None:
            raise UserError(f'{model}: generate is for {workloads.names("generate")} runs')
    else:
        respond, *_ = [kind.generate for kind in workloads.kinds() if kind.generate is not None]
    return respond(model, prompts, best=best, **options)
