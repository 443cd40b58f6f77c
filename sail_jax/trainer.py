"""The host loop: dispatch, log, evaluate, checkpoint, stop."""

import contextlib
import os
import platform
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from sail_jax import checkpoint, config, devices, metrics, update
from sail_jax.errors import Interrupted, TrainingFailed, UserError
from sail_jax.metrics import Row
from sail_jax.update import Policy, State, Workload

# What `--resume` may change: a run can be prolonged, and logged or kept elsewhere.
FREE_ON_RESUME = (
    'total_env_steps',
    'logging.tensorboard',
    'logging.wandb',
    'checkpoints.every_updates',
    'checkpoints.keep',
)


class Task(NamedTuple):
    """What the host needs of a workload."""

    workload: Workload
    mesh: Mesh
    start: Callable[[], Policy]
    """Makes or loads the policy that training starts from."""
    abstract_policy: Policy
    """Shapes and types of a policy."""
    evaluate: Callable[[Policy, Policy], dict[str, float]]
    """`(policy, start policy) -> numbers`."""
    updates: int
    updates_per_dispatch: int
    evaluate_every: int
    """Updates between evaluations."""
    env_steps_per_update: int
    max_labels: int | None
    watch: dict[str, str]
    """Metrics for the progress bar, with short titles."""


class Result(NamedTuple):
    """What a finished run gives back."""

    policy: Policy
    start: Policy
    before: Row
    """Evaluation of the start policy."""
    after: Row
    """Evaluation of the trained policy."""
    env_steps: int
    labels: int
    wall_s: float
    """Of this process, compilation included."""


def default_run_dir(name: str) -> Path:
    """`runs/NAME-DATE-TIME`."""
    return Path('runs') / f'{name}-{time.strftime("%Y%m%d-%H%M%S")}'


def claim_run_dir(run: config.Settings, run_dir: Path, resume: bool) -> None:
    """Makes an empty directory for a new run, or checks that a run can go on.

    Raises:
      UserError: the directory exists (without resume), is missing or not writable, or belongs to
        another configuration.
    """
    if resume:
        path = run_dir / 'config.yaml'
        if not path.exists():
            raise UserError(f'{run_dir}: no run to resume (no config.yaml)')
        data, node = config.read_yaml(path)
        changed = config.differences(
            run, config.validate(type(run), data, path, node), ignore=FREE_ON_RESUME
        )
        if changed:
            raise UserError(f'{run_dir}: --resume with another configuration: {changed[0]}')
        _require_writable(run_dir)
        return
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if any(run_dir.iterdir()):
            raise UserError(f'{run_dir}: exists already; use --resume, or another --run-dir')
        _require_writable(run_dir)
    except OSError as error:
        raise UserError(f'{run_dir}: {error.strerror}') from None


def _require_writable(run_dir: Path) -> None:
    if not os.access(run_dir, os.W_OK):
        raise UserError(f'{run_dir}: not writable')


def _stopped_before_the_first_checkpoint(run_dir: Path, manager: Any) -> bool:
    """Whether a run has its start policy and nothing else yet, so that it begins again from it."""
    path = run_dir / 'metrics.jsonl'
    updated = path.exists() and any(row['step'] > 0 for row in metrics.read_rows(path))
    return not manager.all_steps() and not updated


class Layout(NamedTuple):
    """Shapes, types and shardings of what a run holds, without holding it."""

    policy: Policy
    state: State
    shardings: State

    @classmethod
    def of(cls, run: config.Run, task: Task) -> 'Layout':
        sharding = devices.replicated(task.mesh)
        policy = checkpoint.abstract_like(
            task.abstract_policy, jax.tree.map(lambda _: sharding, task.abstract_policy)
        )
        state = jax.eval_shape(lambda p: update.init(task.workload, run, p, p), policy)
        shardings = devices.state_sharding(task.mesh, state)
        return cls(policy, checkpoint.abstract_like(state, shardings), shardings)


def initial_state(run: config.Run, task: Task, start: Policy) -> State:
    """The state before the first update, laid out over the mesh; `start` stays usable."""
    shardings = Layout.of(run, task).shardings
    init = jax.jit(lambda p: update.init(task.workload, run, p, p), out_shardings=shardings)
    return init(jax.device_put(start, devices.replicated(task.mesh)))


def train(
    run: config.Run, task: Task, run_dir: Path, resume: bool = False, quiet: bool = False
) -> Result:
    """Trains to the end of the configuration, or of the label budget.

    Args:
      run: the configuration.
      task: the workload.
      run_dir: where everything goes; see `default_run_dir`.
      resume: go on from the newest checkpoint, bit for bit.
      quiet: no progress bar.

    Raises:
      UserError: a run directory or a reference that cannot be used; nothing was overwritten.
      TrainingFailed: too many gradient steps in a row were not finite.
      Interrupted: SIGINT or SIGTERM; the state was saved.
    """
    began = time.perf_counter()
    metrics.check(run)
    claim_run_dir(run, run_dir, resume)
    start = None if resume else task.start()
    directory, layout = run_dir / 'checkpoints', Layout.of(run, task)
    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(checkpoint.open_manager(directory, run.checkpoints.keep))
        signals = stack.enter_context(_signals())
        if start is None:
            start = checkpoint.restore_start(directory, layout.policy)
        else:
            start = jax.device_put(start, devices.replicated(task.mesh))
            checkpoint.save_start(directory, start)
        if resume and not _stopped_before_the_first_checkpoint(run_dir, manager):
            state, meta = checkpoint.restore(manager, layout.state)
            before, began = meta['before'], began - meta['wall_s']
        else:
            state, before = initial_state(run, task, start), {}
        config.write(run, run_dir / 'config.yaml')
        step, size = int(state.step), task.updates_per_dispatch
        recorder = stack.enter_context(
            Recorder(run, task, run_dir, began, state if before else None, quiet)
        )

        def evaluate() -> Row:
            numbers = task.evaluate(state.policy, start)
            return {f'eval/{name}': value for name, value in numbers.items()}

        def save() -> None:
            meta = {'before': before, 'wall_s': recorder.wall_s(), 'versions': versions()}
            checkpoint.save(manager, state, meta)

        if not before:
            before = evaluate()
            recorder.write([{**recorder.position(0, 0), **before}])
            save()
            if signals:
                manager.wait_until_finished()
                raise _interrupted(signals[0], 0, run_dir)
        after, pending = {}, None
        last = step >= task.updates or recorder.budget_spent()
        if not last:
            dispatch = recorder.compile(
                update.make_dispatch(task.workload, run, size, layout.shardings), state
            )
        while not last:
            state, numbers = dispatch(state)
            step += size
            if pending is not None:  # Read while the device works on the next.
                recorder.write(recorder.rows(pending))
            pending = numbers
            last = step >= task.updates or recorder.budget_spent()
            stopped = bool(signals)
            evaluating = last or _due(step, size, task.evaluate_every)
            saving = last or stopped or _due(step, size, run.checkpoints.every_updates)
            if evaluating or saving:
                rows, pending = recorder.rows(pending), None
                if evaluating:
                    after = evaluate()
                    rows[-1] |= after
                recorder.write(rows)
                if saving:
                    save()
                recorder.restart_clock()
            if stopped and not last:
                manager.wait_until_finished()
                raise _interrupted(signals[0], step * task.env_steps_per_update, run_dir)
        return Result(
            policy=state.policy,
            start=start,
            before=before,
            after=after or evaluate(),
            env_steps=step * task.env_steps_per_update,
            labels=int(state.labels),
            wall_s=recorder.wall_s(),
        )


class Recorder:
    """Turns the device's numbers into rows and writes them; keeps the clock."""

    def __init__(
        self,
        run: config.Run,
        task: Task,
        run_dir: Path,
        began: float,
        resumed: State | None,
        quiet: bool,
    ):
        step = None if resumed is None else int(resumed.step)
        self._run, self._task, self._run_dir = run, task, run_dir
        self._began, self._since = began, time.perf_counter()
        self._labels = 0 if resumed is None else int(resumed.labels)
        self._compile_s: float | None = None
        self._writers = metrics.open_writers(run, run_dir, step, task.env_steps_per_update)
        self._bar = metrics.ProgressBar(task.updates, step or 0, task.watch, quiet)

    def __enter__(self) -> 'Recorder':
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        for writer in self._writers:
            writer.close()

    def wall_s(self) -> float:
        """Seconds since the run began, earlier processes of a resumed run included."""
        return time.perf_counter() - self._began

    def position(self, step: int, labels: int) -> Row:
        """The keys that every row has."""
        return {
            'step': step,
            'env_steps': step * self._task.env_steps_per_update,
            'labels': labels,
            'wall_s': round(self.wall_s(), 3),
        }

    def compile(self, dispatch: Any, state: State) -> Any:
        """The compiled program, which cannot recompile; its time goes into the next row."""
        began = time.perf_counter()
        compiled = dispatch.lower(state).compile()
        self._compile_s = time.perf_counter() - began
        self.restart_clock()
        return compiled

    def restart_clock(self) -> None:
        """Leaves what was done since the last rows out of the throughput."""
        self._since = time.perf_counter()

    def rows(self, numbers: Any) -> list[Row]:
        """One row for each update of a dispatch; waits for the device.

        Raises:
          TrainingFailed: too many gradient steps in a row were skipped.
        """
        numbers = jax.device_get(numbers)
        now = time.perf_counter()
        steps, labels = numbers.pop('step'), numbers.pop('labels')
        in_a_row = numbers.pop('skipped_in_a_row')
        env_steps = len(steps) * self._task.env_steps_per_update
        speed = {'time/env_steps_per_s': round(env_steps / (now - self._since), 1)}
        self._since, self._labels = now, int(labels[-1])
        rows = []
        for i, step in enumerate(steps):
            values = {f'train/{name}': float(value[i]) for name, value in numbers.items()}
            rows.append({**self.position(int(step), int(labels[i])), **values, **speed})
        if self._compile_s is not None:
            rows[0]['time/compile_s'] = round(self._compile_s, 3)
            self._compile_s = None
        if in_a_row.max() >= self._run.optimizer.max_skipped:
            self.write(rows)
            raise TrainingFailed(
                f'{in_a_row.max()} gradient steps in a row were not finite by update {steps[-1]}; '
                f'look at train/grad_norm and train/not_finite in {self._run_dir}/metrics.jsonl; '
                f'the last good checkpoint is in {self._run_dir}/checkpoints'
            )
        return rows

    def write(self, rows: list[Row]) -> None:
        """To all writers, and the last one to the progress bar."""
        for row in rows:
            for writer in self._writers:
                writer.write(row)
        self._bar.show(rows[-1])

    def budget_spent(self) -> bool:
        """Whether the label budget was used up by the last rows."""
        return self._task.max_labels is not None and self._labels >= self._task.max_labels


def versions() -> dict[str, str]:
    """What a checkpoint was written with."""
    names = ('sail-jax', 'jax', 'flax', 'optax', 'orbax-checkpoint', 'brax')
    return {'python': platform.python_version(), **{name: metadata.version(name) for name in names}}


def _due(step: int, size: int, every: int) -> bool:
    """Whether a multiple of `every` lies in the `size` updates that end at `step`."""
    return step // every > (step - size) // every


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying; a second one has its usual effect."""
    caught: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _frame: Any) -> None:
        caught.append(number)
        signal.signal(number, before[number])
        metrics.console.print('stopping at the next safe point; once more to stop at once')

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # Not the main thread: signals are the caller's.
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupted(number: int, env_steps: int, run_dir: Path) -> Interrupted:
    where = shlex.quote(str(run_dir))
    return Interrupted(
        f'stopped and saved at {env_steps:,} env steps; go on with: '
        f'sail-jax train {where}/config.yaml --run-dir {where} --resume',
        status=130 if number == signal.SIGINT else 75,
    )
