"""From a configuration or a run directory to something that runs.

To read a configuration takes none of JAX, Brax and the like: they are imported by what needs them,
so that a refusal, or `--help`, is there at once.
"""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_jax import config, configfile, files, scalars
from sail_jax.bandit import config as bandit
from sail_jax.control import config as control
from sail_jax.control.config import ControlRun
from sail_jax.errors import UserError
from sail_jax.language import config as language
from sail_jax.language.config import LanguageRun
from sail_jax.language.quickstart import config as quickstart_config
from sail_jax.language.quickstart.config import QuickstartRun
from sail_jax.language.sft import config as sft
from sail_jax.language.sft.config import SftRun
from sail_jax.sweep import Members

if TYPE_CHECKING:
    from brax.envs.base import Env

    from sail_jax.bandit import study as bandit_study
    from sail_jax.control.workload import SegmentReward
    from sail_jax.core.update import Policy
    from sail_jax.language.quickstart import study as quickstart
    from sail_jax.language.reward.rewards import Judge, Reward
    from sail_jax.training.result import Result
    from sail_jax.training.task import Task

CONFIGS: dict[str, Callable[[dict[str, Any], Path], type[config.Settings]]] = {
    'control': lambda data, path: ControlRun,
    'bandit': bandit.model,
    'sft': lambda data, path: SftRun,
    'language-quickstart': lambda data, path: QuickstartRun,
    'language': lambda data, path: LanguageRun,
}
TASKS: dict[type[config.Trained], str] = {
    ControlRun: 'sail_jax.control.task',
    LanguageRun: 'sail_jax.language.task',
    SftRun: 'sail_jax.language.sft.task',
}
"""The modules that make the workloads' tasks."""
CHECKS: dict[type[config.Settings], Callable[[Any], None]] = {
    ControlRun: control.check,
    LanguageRun: language.check,
    SftRun: sft.check,
    QuickstartRun: quickstart_config.check,
}


def check(run: config.Settings) -> None:
    """Refuses settings that are each fine but do not go together; `train` does so too.

    Raises:
      UserError: naming the keys.
    """
    if type(run) in CHECKS:
        CHECKS[type(run)](run)


def default_run_dir(name: str) -> Path:
    """`runs/NAME-DATE-TIME`."""
    return Path('runs') / f'{name}-{time.strftime("%Y%m%d-%H%M%S")}'


def make_task(run: config.Trained, **given: Any) -> Task:
    """The task of a configuration, with what Python gives beside it; None is not given.

    Raises:
      UserError: as of the workload's `make`; or something that this workload does not take.
    """
    make = importlib.import_module(TASKS[type(run)]).make
    given = {key: value for key, value in given.items() if value is not None}
    if foreign := sorted(given.keys() - inspect.signature(make).parameters.keys()):
        raise UserError(f'{foreign[0]}: not for a {run.workload} run')
    return make(run, **given)


def load(path: str | Path, /, **overrides: Any) -> config.Settings:
    """Reads a configuration file.

    Args:
      path: of the file.
      **overrides: settings that win over the file's, checked as those of the command line:
        `load(path, seed=3, **{'objective.beta': 0.2})` or `load(path, objective={'beta': 0.2})`.

    Raises:
      UserError: not readable, unknown keys, wrong types, values out of bounds.
    """
    path = Path(path)
    data, node = configfile.read_yaml(path)
    run = configfile.validate(_kind(data, path), data, path, node)
    return configfile.update(run, overrides) if overrides else run


def kind(path: str | Path) -> type[config.Settings]:
    """What a configuration file configures; the rest of it may be wrong.

    Raises:
      UserError: not readable, or no workload that there is.
    """
    data, _ = configfile.read_yaml(Path(path))
    return _kind(data, Path(path))


def _kind(data: dict[str, Any], path: Path) -> type[config.Settings]:
    name = data.get('workload', 'control')
    if not isinstance(name, str) or name not in CONFIGS:
        raise UserError(f'{path}: workload: {name!r:.80}; known: {", ".join(CONFIGS)}')
    return CONFIGS[name](data, path)


def train(
    run: config.Settings | str | Path,
    run_dir: str | Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    env: Env | None = None,
    segment_reward: SegmentReward | None = None,
    reward: Reward | None = None,
    judge: Judge | None = None,
    quiet: bool = False,
) -> Result | list[Result] | bandit_study.Table | quickstart.Outcome:
    """Trains a policy from preferences, or runs a study of the exact problem.

    Args:
      run: a configuration, or the path of one.
      run_dir: where to put metrics and checkpoints; `runs/NAME-DATE-TIME` by default.
      overrides: settings that win over the configuration's, `{'objective.beta': 0.2}`; see `load`.
      resume: go on with the run in `run_dir`, bit for bit.
      env: any environment with Brax's interface instead of the configuration's, whose `config.yaml`
        then has its class's name and `backend: python`; see `sail_jax.control.contract.sound`.
      segment_reward: what the labeller goes by instead of the environment's reward; see
        `sail_jax.control.workload.SegmentReward`. Its name is recorded.
      reward: of a language run, scores responses instead of the configuration's reward; see
        `sail_jax.language.reward.rewards.Reward`.
      judge: of a language run, says which of two responses is better; see
        `sail_jax.language.reward.rewards.Judge`. With both, `reward` is for evaluation.
      quiet: no progress bar.

    Returns:
      The trained policy, the one it started from, and their evaluations; of a sweep, a list of
      these; of a study, its table; of the language quickstart, what its stages came to.

    Raises:
      UserError: bad input; nothing was overwritten.
      TrainingFailed: too many gradient steps in a row were not finite.
      Interrupted: a signal; the state was saved.
    """
    import jax

    from sail_jax.training import trainer

    name, run = _given(run)
    if overrides is not None:
        run = configfile.update(run, overrides)
    run_dir = default_run_dir(name) if run_dir is None else _directory(run_dir)
    if not isinstance(run, ControlRun) and jax.process_count() > 1:
        # Each of them would write the same directory.
        raise UserError(
            f'{run.workload} runs take one process so far, not {jax.process_count()}; '
            'use the devices of one host'
        )
    if isinstance(run, bandit.Study):
        from sail_jax.bandit import study as bandit_study

        return bandit_study.run(run, run_dir, resume, quiet)
    if isinstance(run, QuickstartRun):
        from sail_jax.language.quickstart import study as quickstart

        return quickstart.run(run, run_dir, resume, quiet)
    if isinstance(run, SftRun):
        from sail_jax.language.sft import task as sft_task

        return sft_task.train(run, run_dir, resume, quiet)
    given = {'env': env, 'segment_reward': segment_reward, 'reward': reward, 'judge': judge}
    if isinstance(run, LanguageRun):
        given['run_dir'] = run_dir
        if resume and run.needs_function and reward is None and judge is None:
            raise UserError(
                f'{run_dir}: labelled by a function from Python; resume it from Python, with the '
                f"reward: sail_jax.train('{run_dir}/config.yaml', '{run_dir}', reward=f, "
                'resume=True)'
            )
    if isinstance(run, ControlRun):
        path = run_dir / 'config.yaml'
        if resume and files.exists(path):
            call = f"train('{path}', '{run_dir}', resume=True"
            _require_given(load(path), run_dir, given, f'resume it from Python: sail_jax.{call}')
        else:
            _require_given(run, run_dir, given, 'train from Python: sail_jax.train(CONFIG')
        run = control.recorded(run, env, segment_reward)
    task = make_task(run, **given)
    return trainer.train(run, task, run_dir, resume, quiet)


def _require_given(
    run: config.Settings,
    run_dir: Path,
    given: dict[str, Any],
    call: str,
    needed: tuple[str, ...] = ('env', 'segment_reward'),
) -> None:
    """Refuses a control run to which Python gave what is not given now.

    Args:
      call: what to do instead, up to the arguments in question.

    Raises:
      UserError: says what to call.
    """
    if not isinstance(run, ControlRun):
        return
    names = {
        'env': run.env.name if run.env.backend == control.PYTHON else None,
        'segment_reward': run.segment_reward,
    }
    was = {key: name for key, name in names.items() if name is not None and key in needed}
    if any(given.get(key) is None for key in was):
        what = ' and '.join(f'{key} {name}' for key, name in was.items())
        they = ', '.join(f'{key}={key}' for key in was)
        raise UserError(
            f'{run_dir}: {what} came from Python, and is not found by its name; {call}, {they})'
        )


def default_name(path: str | Path, run: config.Settings) -> str:
    """What a run of a file is called: as the file, or as its workload where that says more, so
    that the two quickstarts do not share a name."""
    stem = Path(path).stem
    return run.workload if run.workload.endswith(f'-{stem}') else stem


def _given(run: Any) -> tuple[str, config.Settings]:
    """Name and configuration of what `train` was given, checked.

    Raises:
      UserError: as of `load`; it is neither a configuration nor the path of one.
    """
    if isinstance(run, str | Path):
        found = load(run)
        return default_name(run, found), found
    if not isinstance(run, (*TASKS, bandit.Study, QuickstartRun)):
        raise UserError(f'run: a configuration or the path of one, got {type(run).__name__}')
    return 'run', configfile.checked(run)


def _directory(run_dir: str | Path) -> Path:
    """Refuses what the system or a terminal could not take for a name."""
    if not str(run_dir) or '\0' in str(run_dir) or not scalars.is_text(str(run_dir)):
        raise UserError(f'run_dir: no name of a directory: {str(run_dir)!r:.80}')
    return Path(run_dir)


def open_run(run_dir: str | Path, best: bool = False, **given: Any) -> tuple[Any, Policy, Policy]:
    """A run's configuration, its newest policy, and the policy it started from.

    Args:
      best: the policy of the best checkpoint (`checkpoints.metric`) instead of the newest.
      **given: what `train` was given beside the configuration, as far as it matters.

    Raises:
      UserError: no run there, no readable checkpoint, or one of an environment that is not given.
    """
    run_dir, run = Path(run_dir), load(Path(run_dir) / 'config.yaml')
    call = f"open it from Python: sail_jax.open_run('{run_dir}'"
    _require_given(run, run_dir, given, call, ('env',))
    run, _, policy, start = _open(run, run_dir, best, given)
    return run, policy, start


def _open(
    run: config.Settings, run_dir: Path, best: bool, given: dict[str, Any]
) -> tuple[config.Trained, Task, Policy, Policy]:
    """A run with its task, and as `open_run` its policies."""
    from sail_jax.training import checkpoint, setup

    if type(run) not in TASKS:
        raise UserError(f'{run_dir}: a {run.workload} study; it leaves figures, and no policy')
    members = Members.of(run)
    if members.sweep:
        one = members.each[0].directory(run_dir)
        raise UserError(f'{run_dir}: a sweep; name one of its runs, e.g. {one}')
    task = make_task(run, **given)
    abstract = setup.Layout.of(members, task).policy
    directory = run_dir / 'checkpoints'
    policy = checkpoint.restore_policy(directory, abstract, best)
    start = checkpoint.restore_start(directory, abstract)
    return run, task, policy, start


def evaluate(
    run_dir: str | Path, episodes: int | None = None, best: bool = False, **given: Any
) -> tuple[dict, dict]:
    """Evaluates a run's newest policy and its start policy on the run's evaluation keys.

    Args:
      episodes: of a control run, instead of the run's setting.
      best: as of `open_run`.
      **given: the environment, reward or judge that `train` was given.

    Returns:
      Numbers of the start policy, and of the trained one.

    Raises:
      UserError: as of `open_run`.
      TrainingFailed: a device's memory was not enough.
    """
    run = load(Path(run_dir) / 'config.yaml')
    call = f"evaluate it from Python: sail_jax.evaluate('{run_dir}'"
    _require_given(run, Path(run_dir), given, call, ('env',))
    if episodes is not None:
        if not isinstance(run, ControlRun):
            raise UserError(f'{run_dir}: --episodes is for control runs')
        run = configfile.update(run, {'evaluation.episodes': episodes})
    import jax
    import numpy as np

    from sail_jax.training import devices

    run, task, policy, start = _open(run, Path(run_dir), best, given)
    identity = np.uint32(run.seed), task.hyper(run)
    with devices.memory_named(task.smaller):
        rest = start, task.shared(), *identity
        numbers = jax.device_get([task.evaluate(p, *rest) for p in (start, policy)])
    before, after = ({key: float(x) for key, x in row.items()} for row in numbers)
    return before, after
