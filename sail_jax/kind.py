"""What the rest of the package knows of a workload: one record, in the workload's folder.

`sail_jax.workloads` lists the records. The command line and `sail_jax.train` look a run's record up
there and ask it for everything that is particular to the workload, so that a new one is a folder
and a line.

All records are made whenever anything of `sail_jax` is asked for, and a refusal or `--help` should
take no second: their functions import JAX and what else is large when they are called, as `late`
does for a function of another module.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, NamedTuple

from sail_jax import config
from sail_jax.errors import UserError

if TYPE_CHECKING:
    from sail_jax.core.types import Policy
    from sail_jax.episode import Episode
    from sail_jax.training.program import Plan
    from sail_jax.training.result import Result
    from sail_jax.training.task import Task

Doing = Literal['train', 'resume', 'evaluate', 'open']
"""What somebody wants of a run."""
Command = Literal[
    'evaluate',
    'plot',
    'render',
    'export',
    'generate',
    'load_policy',
    'plan',
    'export_labels',
    'learned_reward',
    'evaluate_reward',
]
"""The commands, and functions of Python, that not every workload knows."""


def late(where: str) -> Callable[..., Any]:
    """A function that is imported when it is first called.

    Args:
      where: 'package.module:function'.
    """
    module, _, name = where.partition(':')

    @functools.wraps(late, assigned=(), updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    call.__qualname__ = call.__name__ = name
    call.__module__ = module
    return call


class Line(NamedTuple):
    """A line of the table at the end of a run."""

    title: str
    metric: str
    """Of `Task.evaluate`; evaluations without it have no such line."""
    error: str | None = None
    """The metric of its standard error."""
    if_nan: str | None = None
    """What it means that there is no such number, after "none of its"."""
    good: str = ''
    """Which numbers are good, in a word or two: `high`, `above 0.5`, `0`."""


class Figure(NamedTuple):
    """What `sail-jax plot` draws of a workload's runs: every `y` against every `x`."""

    x: dict[str, str]
    """Metrics of `metrics.jsonl` and their titles: what the length of a run is counted in
    (`Task.unit`), `labels`, `wall_s`."""
    y: dict[str, str]
    """Metrics of evaluations, `eval/...`, and their titles."""
    subject: Callable[[Any], str]
    """Of a configuration, what its run is about: runs of one subject compare."""
    penalised: Callable[[Any], dict[str, str]] = lambda run: {}
    """Of a configuration, the KL that its run penalises, as of `y`, where `y` does not have it."""


class Study(NamedTuple):
    """A workload that has a course of its own instead of the common loop."""

    train: Callable[[Any, Path, bool, bool], Any]
    """`(run, run_dir, resume, quiet) -> what it came to`."""
    report: Callable[[Any], None]
    """Prints what it came to."""
    next_commands: Callable[[Path], tuple[tuple[str, ...], ...]] = lambda run_dir: ()
    """Of the run directory, commands of `sail-jax` that go on from there, each as its arguments."""


class Saved(NamedTuple):
    """A run that was trained, for `render`, `export` and `load_policy`."""

    run: Any
    """Its configuration."""
    run_dir: Path
    best: bool
    """Whether its best checkpoint is asked for instead of its newest."""
    policies: Callable[[], tuple[Policy, Policy]]
    """Opens the policy of that checkpoint and the one that training started from, with the run's
    task; raises UserError as of `sail_jax.open_run`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A workload. It has either a `task`, which the common loop trains, or a `study` of its own."""

    name: str
    """What configuration files call it: `workload: NAME`; `workload` of its settings is that."""
    trains: str
    """What its runs train, in a few words; for `train --help`."""
    settings: type[config.Settings]
    """The class of its configurations: a `config.Run`, which has the objective, the KL penalty,
    sweeps and what else all workloads share that are trained from preferences; or a
    `config.Trained` or `config.Settings`, which have less."""
    choose: Callable[[dict[str, Any], Path], type[config.Settings]] | None = None
    """`(mapping of a file, its path) -> class`, where configurations have several classes, all of
    them subclasses of `settings`. Raises UserError."""
    check: Callable[[Any], None] = lambda run: None
    """Refuses settings that are each fine but do not go together, before anything large is
    imported: raises UserError, naming the keys."""

    task: Callable[Concatenate[Any, ...], Task] | None = None
    """`(run, *, run_dir=None, **handed) -> Task`: what the common loop needs to train a run.
    `run_dir` is that of a run that is trained, None where one is only evaluated or opened; `handed`
    is what there is of `from_python`. Raises UserError where settings do not go together, or where
    what is handed in cannot be used."""
    finish: Callable[[Any, Path, Result], None] = lambda run, run_dir, result: None
    """Leaves in the directory of a finished run what there should be besides."""
    leaves: str | None = None
    """The name there of what `finish` leaves, for the end of a run to tell."""
    study: Study | None = None
    side_by_side: bool = True
    """Whether the members of a sweep are trained in one program; else one after the other."""
    processes: bool = False
    """Whether several processes, on several hosts say, can train one run together."""
    cores: Callable[[Any], int] | None = None
    """Where there is no accelerator, into how many equal parts a run's work can be divided: each
    core is made a device, as far as they divide that. None: the compiler splits each operation."""

    programs: Plan | None = None
    """`(run, devices) -> programs`: what is compiled for a run on those devices, which need not be
    there; None: nothing that could be planned. Reads neither data nor weights. Raises UserError
    where the devices do not divide the run."""

    from_python: tuple[str, ...] = ()
    """What `sail_jax.train` takes beside the configuration: keyword arguments, handed to `task`."""
    recorded: Callable[[Any, Mapping[str, Any]], Any] = lambda run, handed: run
    """`(run, handed) -> run` with the names of what was handed in, for `config.yaml`."""
    require: Callable[[Any, Path, Mapping[str, Any], Doing], None] = lambda *_: None
    """`(run, run_dir, handed, doing)`: raises UserError where a run cannot do without what was
    handed to it and is not handed in now; says what to call."""
    remark: Callable[[Any, Path], str | None] = lambda run, run_dir: None
    """What the numbers of `sail-jax evaluate` lack of those that Python gets."""

    table: tuple[Line, ...] = ()
    """The lines of the table at the end of a run; none: all numbers of its evaluations."""
    sweep_table: tuple[Line, ...] = ()
    """The columns of the table at the end of a sweep; none: the first three lines of `table`."""
    figure: Figure | None = None
    episodes: str | None = None
    """The setting that `evaluate --episodes` stands for."""
    render: Callable[Concatenate[Saved, ...], Episode] | None = None
    """`(saved, *, seed, stochastic, start, **handed)` gives an episode as a web page; `start`: of
    the policy before training."""
    export: Callable[Concatenate[Saved, Path, ...], Path | str] | None = None
    """`(saved, out, *, adapter, dtype, private, **handed)` writes a policy as others read it and
    returns where."""
    generate: Callable[Concatenate[Path, Sequence[str], ...], list[list[str]]] | None = None
    """`(path, prompts, **options) -> responses`, [N][samples], as `sail_jax.generate`; the path is
    that of a run, or of a model that others have trained."""
    export_labels: Callable[Concatenate[Saved, Path, ...], Path] | None = None
    """`(saved, out, **handed)` writes the pairs that a run has asked about, with their answers, and
    returns where."""
    learned_reward: Callable[Concatenate[Saved, ...], Any] | None = None
    """`(saved, **handed)` gives what a run has learned; its `write(path)` makes a file."""
    evaluate_reward: Callable[Concatenate[Saved, ...], Any] | None = None
    """`(saved, *, reward, episodes, held_out, **handed)` holds a learned reward, or a file of one,
    against the true one; see `sail_jax.saved.evaluate_reward`."""
    load_policy: Callable[Concatenate[Saved, ...], Callable[..., Any]] | None = None
    """`(saved, *, deterministic, **handed)` gives a policy as a function from what it sees to what
    it does."""

    def knows(self, command: Command) -> bool:
        """Whether there is something that the command could do with its runs."""
        match command:
            case 'evaluate':
                return self.task is not None
            case 'plot':
                return self.figure is not None
            case 'plan':
                return self.programs is not None
        return getattr(self, command) is not None

    def accepted(self, handed: Mapping[str, Any]) -> dict[str, Any]:
        """What Python hands in beside a configuration, without what is None.

        Raises:
          UserError: something that this workload does not take.
        """
        handed = {key: value for key, value in handed.items() if value is not None}
        if foreign := sorted(handed.keys() - set(self.from_python)):
            raise UserError(f'{foreign[0]}: not for a {self.name} run')
        return handed
