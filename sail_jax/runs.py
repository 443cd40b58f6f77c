"""From a configuration or a run directory to something that runs.

To read a configuration takes none of JAX, Brax and the like: they are imported by what needs them,
so that a refusal, or `--help`, is there at once.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_jax import config, configfile, files, scalars, sweep, workloads
from sail_jax.errors import UserError
from sail_jax.kind import Kind
from sail_jax.sweep import Members

if TYPE_CHECKING:
    from sail_jax.core.types import Policy
    from sail_jax.training.callbacks import Callback
    from sail_jax.training.task import Task

CONFIG = 'config.yaml'
"""Of a run directory: the resolved configuration."""


def default_run_dir(name: str) -> Path:
    """`runs/NAME-DATE-TIME`."""
    return Path('runs') / f'{name}-{time.strftime("%Y%m%d-%H%M%S")}'


def default_name(path: str | Path, run: config.Settings) -> str:
    """What a run of a file is called: as the file, or as its workload where that says more, so
    that the two quickstarts do not share a name."""
    stem, workload = Path(path).stem, workloads.of(run).name
    return workload if workload.endswith(f'-{stem}') else stem


def load(path: str | Path, /, **overrides: Any) -> config.Settings:
    """Reads a configuration file.

    Args:
      path: of the file.
      **overrides: settings that win over the file's, checked as those of the command line:
        `load(path, seed=3, **{'objective.beta': 0.2})` or `load(path, objective={'beta': 0.2})`.

    Raises:
      UserError: not readable, unknown keys, wrong types, values out of bounds.
    """
    path = files.named(path, 'path')
    data, node = configfile.read_yaml(path)
    run = configfile.validate(workloads.settings(data, path), data, path, node)
    return configfile.update(run, overrides) if overrides else run


# parameters: those of the front door, all but the first by name
# lines: what each of them means
def train(
    run: config.Settings | str | Path,
    run_dir: str | Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    quiet: bool = False,
    on_update: Callback | None = None,
    on_evaluation: Callback | None = None,
    **handed: Any,
) -> Any:
    """Trains a policy from preferences, or runs a study.

    Args:
      run: a configuration, or the path of one.
      run_dir: where to put metrics and checkpoints; `runs/NAME-DATE-TIME` by default.
      overrides: settings that win over the configuration's, `{'objective.beta': 0.2}`; see `load`.
      resume: go on with the run in `run_dir`, bit for bit.
      quiet: no progress bar.
      on_update: called with the row of each update, a dict of what `metrics.jsonl` has, while the
        device works on the next dispatch; of a sweep with a list of its members' rows, but for
        language runs, which are trained in turn. True ends the run (of several in turn the one) as
        at its end, evaluated and saved; an exception ends it in one line, saved.
      on_evaluation: the same for each evaluation, that of the start policy included.
      env: of a control run, any environment with Brax's interface instead of the configuration's,
        whose `config.yaml` then has its class's name and `backend: python`; see
        `sail_jax.control.contract.sound`.
      segment_reward: of a control run, what the labeller goes by instead of the environment's
        reward; see `sail_jax.control.judgement.SegmentReward`. Its name is recorded.
      reward: of a language run, scores responses instead of the configuration's reward; see
        `sail_jax.Reward`. Several are a dict, by their names in the configuration's `rewards`.
      judge: of a language run, says which of two responses is better; see
        `sail_jax.Judge`. With both, `reward` is for evaluation.
      **handed: what a workload of your own takes (`Kind.from_python`). None is nothing.

    Returns:
      The trained policy, the one it started from, and their evaluations, a
      `sail_jax.Result`; of a sweep, a list of these; of a study, what it came to: the table of the
      exact problem, or the `QuickstartResult` of the language quickstart.

    Raises:
      UserError: bad input; nothing was overwritten.
      TrainingFailed: too many gradient steps in a row were not finite.
      Interrupted: a signal; the state was saved.
    """
    name, settings = _named(run)
    if overrides is not None:
        settings = configfile.update(settings, overrides)
    run_dir = default_run_dir(name) if run_dir is None else _directory(run_dir)
    kind = workloads.of(settings)
    handed = kind.accepted(handed)
    kind.check(settings)
    from sail_jax.training import hosts, platform

    platform.require_usable()
    if not kind.processes:
        hosts.require_one_process(f'{kind.name} runs')
    callbacks = {'on_update': on_update, 'on_evaluation': on_evaluation}
    if kind.study is not None:
        kind.accepted(callbacks)  # A study has no updates to show.
        return kind.study.train(settings, run_dir, resume, quiet)
    run_dir = files.absolute(run_dir)  # A callback or reward may change the current directory.
    options: dict[str, Any] = {'quiet': quiet, 'callbacks': callbacks, 'handed': handed}
    if Members.of(settings).sweep and not kind.side_by_side:
        _require_handed(kind, settings, run_dir, handed, resume)
        return _train_in_turn(Members.of(settings), run_dir, resume, options)
    return _train(settings, run_dir, resume, **options)


# parameters: those of `train` that a run, or a member of several in turn, is trained with
def _train(
    run: Any,
    run_dir: Path,
    resume: bool,
    *,
    quiet: bool,
    callbacks: Mapping[str, Any],
    handed: Mapping[str, Any],
    in_turn: bool = False,
) -> Any:
    """Trains what is neither a study nor trained in turn; `in_turn` as of `trainer.train`."""
    kind = workloads.of(run)
    _require_handed(kind, run, run_dir, handed, resume)
    run = kind.recorded(run, handed)
    from sail_jax.training import accelerator, hosts

    accelerator.warn_if_idle()
    task = hosts.together(lambda: make_task(run, run_dir, **handed))
    from sail_jax.training import trainer
    from sail_jax.training.callbacks import Callbacks

    finish = functools.partial(kind.finish, run, run_dir)
    hooks = Callbacks(**callbacks)
    result = trainer.train(run, task, run_dir, resume, quiet, finish, hooks, in_turn)
    if isinstance(result, list):  # Of a sweep.
        return [each._replace(table=kind.table) for each in result]
    return result._replace(table=kind.table)


def _train_in_turn(
    members: Members, run_dir: Path, resume: bool, options: dict[str, Any]
) -> list[Any]:
    """Trains the members of a sweep one after the other, each as a run of its own; one that was
    begun goes on, and one that is at its end is only evaluated.

    Args:
      options: of `_train`.

    Raises:
      UserError: as of `train`; nothing is left where that is before the first member's run.
    """
    from sail_jax.training import hosts, rundir

    results = []
    directories = members.directories(run_dir)
    with rundir.claimed(members.run, run_dir, resume, in_turn=True):
        for member, directory in zip(members.each, directories, strict=True):
            # The first process says it for all: it may be writing the file before others look.
            begun = hosts.any_process(hosts.is_main() and files.exists(directory / CONFIG))
            if not options['quiet']:
                hosts.say(f'{directory}: {len(results) + 1} of {len(directories)} runs')
            try:
                workloads.of(member.run).check(member.run)
                result = _train(member.run, directory, resume and begun, in_turn=True, **options)
            except UserError:
                if not any(map(files.exists, directories)) and hosts.is_main():
                    (run_dir / CONFIG).unlink()  # The directory is free for the corrected run.
                raise
            # The devices are the next one's.
            policy, start = hosts.whole((result.policy, result.start))
            shared = results[0].shared if results else hosts.whole(result.shared)
            results.append(result._replace(policy=policy, start=start, shared=shared))
        if resume and hosts.is_main():
            configfile.write(members.run, run_dir / CONFIG)
    return results


def _named(run: Any) -> tuple[str, Any]:
    """Name and configuration of what `train` is called with, checked.

    Raises:
      UserError: as of `load`; it is neither a configuration nor the path of one.
    """
    if isinstance(run, str | Path):
        path, run = run, load(run)
        return default_name(path, run), run
    workloads.of(run)
    return 'run', configfile.checked(run)


def _directory(run_dir: str | Path) -> Path:
    """Refuses what the system or a terminal could not take for a name."""
    files.named(run_dir, 'run_dir')
    if not str(run_dir) or '\0' in str(run_dir) or not scalars.is_text(str(run_dir)):
        raise UserError(f'run_dir: no name of a directory: {str(run_dir)!r:.80}')
    return Path(run_dir)


def _require_handed(
    kind: Kind, run: config.Settings, run_dir: Path, handed: Mapping[str, Any], resume: bool
) -> None:
    """Where a run goes on, what was handed to it is what its directory says."""
    if resume and files.exists(run_dir / CONFIG):
        run = load(run_dir / CONFIG)
        workloads.of(run).require(run, run_dir, handed, 'resume')
    else:
        kind.require(run, run_dir, handed, 'train')


def make_task(run: Any, run_dir: Path | None = None, **handed: Any) -> Task:
    """The task of a configuration, with what Python hands in beside it; None is nothing.

    Args:
      run_dir: of a run that is trained.

    Raises:
      UserError: as of the workload's `Kind.task`; something that this workload does not take.
    """
    kind = workloads.of(run)
    if kind.task is None:
        raise UserError(f'a {kind.name} run is a study, which has no task')
    handed = kind.accepted(handed)
    from sail_jax.training import platform
    from sail_jax.training.task import Task

    platform.require_usable()
    task = kind.task(run, run_dir=run_dir, **handed)
    if not isinstance(task, Task):
        raise UserError(
            f'workload {kind.name}: task: expected to get a sail_jax.training.task.Task, '
            f'got {type(task).__name__}'
        )
    return task


def open_run(run_dir: str | Path, best: bool = False, **handed: Any) -> tuple[Any, Policy, Policy]:
    """A run's configuration, its newest policy, and the policy it started from.

    Args:
      best: the policy of the best checkpoint (`checkpoints.metric`) instead of the newest.
      **handed: what `train` was called with beside the configuration, as far as it matters.

    Raises:
      UserError: no run there, no readable checkpoint, or one of an environment that is missing.
    """
    run_dir = files.named(run_dir, 'run_dir')
    run = load(run_dir / CONFIG)
    handed = workloads.of(run).accepted(handed)
    workloads.of(run).require(run, run_dir, handed, 'open')
    _, policy, start = _open(run, run_dir, best, handed)
    return run, policy, start


def _open(
    run: Any, run_dir: Path, best: bool, handed: Mapping[str, Any]
) -> tuple[Task, Policy, Policy]:
    """A run's task, and its policies as of `open_run`."""
    kind = workloads.of(run)
    if kind.task is None:
        raise UserError(f'{run_dir}: a {kind.name} study; it leaves figures, and no policy')
    sweep.require_alone(run, run_dir)
    from sail_jax.training import checkpoint, references, setup

    task = make_task(run, **handed)
    abstract = setup.Layout.of(Members.of(run), task).policy
    directory = run_dir / 'checkpoints'
    policy = checkpoint.restore_policy(directory, abstract, best)
    start = references.restore_start(directory, abstract)
    return task, policy, start


def evaluate(
    run_dir: str | Path, episodes: int | None = None, best: bool = False, **handed: Any
) -> tuple[dict[str, float], dict[str, float]]:
    """Evaluates a run's newest policy and its start policy on the run's evaluation keys.

    Args:
      episodes: of a control run, instead of the run's setting.
      best: as of `open_run`.
      **handed: the environment, reward or judge that `train` was called with.

    Returns:
      Numbers of the start policy, and of the trained one.

    Raises:
      UserError: as of `open_run`.
      TrainingFailed: a device's memory was not enough.
    """
    run_dir = files.named(run_dir, 'run_dir')
    run = load(run_dir / CONFIG)
    kind = workloads.of(run)
    handed = kind.accepted(handed)
    kind.require(run, run_dir, handed, 'evaluate')
    if episodes is not None:
        if kind.episodes is None:
            those = ', '.join(kind.name for kind in workloads.kinds() if kind.episodes)
            raise UserError(f'{run_dir}: --episodes is for {those} runs')
        run = configfile.update(run, {kind.episodes: episodes})
    task, policy, start = _open(run, run_dir, best, handed)
    import jax
    import numpy as np

    from sail_jax.training import devices

    identity = np.uint32(run.seed), task.hyper(run)
    with devices.memory_named(task.smaller):
        rest: tuple[Any, ...] = start, task.shared(), *identity
        numbers = jax.device_get([task.evaluate(p, *rest) for p in (start, policy)])
    before, after = ({key: float(x) for key, x in row.items()} for row in numbers)
    return before, after
