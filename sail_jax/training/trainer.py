"""The host loop: dispatch, log, evaluate, checkpoint, stop."""

import contextlib
import math
import os
import platform
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax import config, configfile, files
from sail_jax.core import update
from sail_jax.core.update import Hyper, Metrics, Policy, State, Workload
from sail_jax.errors import TrainingFailed, UserError
from sail_jax.files import ROOM, leads_out, writing
from sail_jax.training import checkpoint, devices, hosts, lock, metrics, signals
from sail_jax.training.metrics import Row
from sail_jax.training.progress import ProgressBar
from sail_jax.training.recorder import Recorder, directories
from sail_jax.training.rows import scan
from sail_jax.training.saver import Saver

BROKEN = 1e12
"""What a broken episode, or a response without a reward, takes from an evaluation's score: one with
fewer of them is better, whatever its numbers are."""

Evaluate = Callable[[Policy, Policy, jax.Array, Hyper], Mapping[str, jax.typing.ArrayLike]]
"""`(policy, start policy, seed, settings) -> numbers`."""


class Task(NamedTuple):
    """What the host needs of a workload."""

    workload: Workload | None
    """None where `init` and `dispatch` do all of its work."""
    shardings: Callable[[State], State]
    """From the shapes of a state to how it lies on the devices."""
    start: Callable[[int], Policy]
    """Makes or loads the policy that training starts from, for a seed."""
    abstract_policy: Policy
    """Shapes and types of a policy, without what is frozen."""
    evaluate: Evaluate
    """Of a sweep it is vmapped over the members."""
    updates: int
    updates_per_dispatch: int
    evaluate_every: int
    """Updates between evaluations."""
    unit: str
    """What the length of a run is counted in: `env_steps`, `prompts`."""
    units_per_update: int
    max_labels: int | None
    watch: dict[str, str]
    """Metrics for the progress bar, with short titles."""
    best: tuple[str, ...]
    """What the best checkpoint is chosen by, as `checkpoints.metric`: the first that there is."""
    batch_bytes: Callable[[], int] = int
    """What an update or an evaluation holds at the least, over all devices."""
    smaller: str = 'lower the size of a batch'
    """What to do where the devices' memory is not enough."""
    frozen: Callable[[], Any] = tuple
    """Makes or loads `Policy.frozen`, which no checkpoint holds."""
    dispatch: Callable[[State], tuple[State, Metrics]] | None = None
    """Stands in for the compiled program where the host has a part in every update."""
    init: Callable[[Policy, jax.Array], State] | None = None
    """`(start policy, seed) -> state`: stands in for `update.init` where there is no reference."""
    hyper: Callable[[Any], Any] = Hyper.of
    """`State.hyper` of a configuration."""
    digests: Callable[[], dict[str, str]] = dict
    """Of the files that a run reads, by what errors call them; every checkpoint has them."""


_TOLD = ('eval/return', 'eval/reward', 'eval/loss', 'eval/win_rate', 'eval/kl_policy_to_ref')
"""What of the evaluations a `Result` shows."""


class Result(NamedTuple):
    """What a finished run gives back."""

    policy: Policy
    start: Policy
    before: Row
    """Evaluation of the start policy."""
    after: Row
    """Evaluation of the trained policy."""
    length: int
    """In `unit`s."""
    unit: str
    """`Task.unit`."""
    labels: int
    wall_s: float
    """Of this process, compilation included."""

    def __repr__(self) -> str:
        """Without the parameters, which are pages of numbers."""
        parts = [f'{self.length:,} {self.unit}', f'{self.labels:,} labels', f'{self.wall_s:.0f} s']
        parts += [
            f'{key} {before:.4g} -> {self.after[key]:.4g}'
            for key in _TOLD
            if (before := self.before.get(key)) is not None and self.after.get(key) is not None
        ]
        return f'Result({", ".join(parts)})'


@contextlib.contextmanager
def claimed(run: config.Settings, run_dir: Path, resume: bool) -> Iterator[None]:
    """`claim_run_dir`, with a lock that keeps other processes from the directory meanwhile.

    Raises:
      UserError: as of `claim_run_dir`, in all processes of the run; another run is at work there.
    """
    with contextlib.ExitStack() as exits:

        def claim() -> None:
            files.check_checkpoint_path(run_dir)
            if resume:
                _require_a_run(run_dir)
            else:
                _make_directory(run_dir)
            exits.enter_context(lock.held(run_dir))
            claim_run_dir(run, run_dir, resume)

        hosts.on_main(claim)
        yield


def claim_run_dir(run: config.Settings, run_dir: Path, resume: bool) -> None:
    """Makes a directory with the configuration of a new run, or checks that a run can go on.

    Raises:
      UserError: the directory exists (without resume), is missing or not writable, belongs to
        another configuration, or has a link that leads out of it.
    """
    if resume:
        path = _require_a_run(run_dir)
        _refuse_links_out(run_dir)
        checkpoint.refuse_odd_names(run_dir / 'checkpoints')
        data, node = configfile.read_yaml(path)
        changed = configfile.differences(
            run, configfile.validate(type(run), data, path, node), ignore=configfile.FREE_ON_RESUME
        )
        if changed:
            raise UserError(f'{run_dir}: --resume with another configuration: {changed[0]}')
        _require_writable(run_dir)
        return
    _make_directory(run_dir)
    try:
        # All that a run leaves which was killed before it had its configuration.
        part = run_dir / 'config.part'
        if any(path not in (part, run_dir / lock.NAME) for path in run_dir.iterdir()):
            raise UserError(f'{run_dir}: exists already; use --resume, or another --run-dir')
        _require_writable(run_dir)
        part.unlink(missing_ok=True)  # It may be a link, which a write would follow.
    except OSError as error:
        raise UserError(f'{run_dir}: {error.strerror}') from None
    configfile.write(run, run_dir / 'config.yaml')


def _hold_members(
    found: Sequence[config.Member], run_dir: Path, exits: contextlib.ExitStack
) -> None:
    """Each member's directory is that of a run, which could be resumed alone."""
    for member in found:
        _make_directory(run_dir / member.name)
        exits.enter_context(lock.held(run_dir / member.name))


def _require_a_run(run_dir: Path) -> Path:
    """The configuration of the run that is there."""
    path = run_dir / 'config.yaml'
    if not files.exists(path):
        raise UserError(f'{run_dir}: no run to resume (no config.yaml)')
    return path


def _make_directory(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{run_dir}: {error.strerror}') from None


def _refuse_links_out(run_dir: Path) -> None:
    """What a run writes, renames and deletes must lie in its directory, wherever that is from."""

    def stop(error: OSError) -> NoReturn:
        raise UserError(f'{error.filename}: {error.strerror}')

    for parent, children, names in os.walk(run_dir, onerror=stop):
        for entry in (Path(parent, name) for name in (*children, *names)):
            try:
                out = entry.is_symlink() and leads_out(entry, run_dir)
            except (OSError, RuntimeError):  # Links in a circle.
                out = True
            if not (entry.is_symlink() or entry.is_dir() or entry.is_file()):
                raise UserError(f'{entry}: not a regular file')
            if out:
                raise UserError(
                    f'{entry}: a link that leads out of {run_dir}, where --resume must not write; '
                    'put what it leads to in its place'
                )
        if Path(parent).name == 'wandb' and Path(parent) != run_dir:
            # Earlier sessions of W&B link to their logs in its cache, and are not written again.
            children.clear()


def _require_writable(run_dir: Path) -> None:
    if not os.access(run_dir, os.W_OK):
        raise UserError(f'{run_dir}: not writable')


def _updated(run: config.Trained, run_dir: Path) -> list[Path]:
    """The `metrics.jsonl` in which there are updates."""
    paths = [parent / 'metrics.jsonl' for parent in directories(run, run_dir)]
    return [p for p in paths if p.exists() and any(row['step'] > 0 for row in scan(p).rows)]


def _keep_rows_aside(run: config.Trained, run_dir: Path) -> None:
    """Of a run that begins again, since none of its checkpoints was written."""
    paths, now = _updated(run, run_dir), time.time_ns()
    for path in paths:
        with writing(path, ROOM):
            path.rename(path.with_name(f'before-{now}-{path.name}'))
    if paths:
        metrics.say(
            f'{run_dir}: no checkpoint had been written; the run begins again from its start '
            f'policy, and its rows so far are before-{now}-metrics.jsonl'
        )


def _require_same_files(run_dir: Path, before: dict[str, str], now: dict[str, str]) -> None:
    if changed := [name for name in before.keys() & now.keys() if before[name] != now[name]]:
        more = f' ({len(changed)} files changed)' if len(changed) > 1 else ''
        raise UserError(
            f'{run_dir}: {min(changed)} is not what the run has read so far{more}; put that back, '
            'or begin a new run'
        )


def _require_not_shortened(task: Task, step: int, run_dir: Path) -> None:
    """A run has been where it is, whatever its length is said to be now."""
    if step - task.updates_per_dispatch >= task.updates:
        done = step * task.units_per_update
        raise UserError(
            f'{run_dir}: --resume with total_{task.unit} below the {done} that are done; '
            'it prolongs a run, and does not shorten it'
        )


class Layout(NamedTuple):
    """Shapes, types and shardings of what a run holds, without holding it."""

    policy: Policy
    state: State
    shardings: State

    @classmethod
    def of(cls, run: config.Trained, task: Task) -> 'Layout':
        found = config.members(run)
        lead = lambda x: jax.ShapeDtypeStruct((len(found), *x.shape), x.dtype)
        policy = jax.tree.map(lead, task.abstract_policy) if found else task.abstract_policy
        state = jax.eval_shape(_init(run, task), policy, *_identity(run, task))
        shardings = task.shardings(state)
        state = checkpoint.abstract_like(state, shardings)
        return cls(state.policy, state, shardings)


def _init(run: config.Trained, task: Task) -> Callable[[Policy, jax.Array, Hyper], State]:
    """`(start policy, seed, settings) -> state`, over the members of a sweep."""

    def init(start: Policy, seed: jax.Array, hyper: Hyper) -> State:
        if task.init is not None:
            return task.init(start, seed)
        return update.init(task.workload, run, start, start, seed=seed, hyper=hyper)

    return jax.vmap(init) if config.members(run) else init


def _identity(run: config.Trained, task: Task) -> tuple[np.ndarray, Hyper]:
    """Seed and settings of the run; of a sweep, its members'. On the host, so that every process
    of a run has them."""
    runs = [member.run for member in config.members(run)]
    one = lambda run: (np.uint32(run.seed), task.hyper(run))
    if not runs:
        return one(run)
    return jax.tree.map(lambda *values: np.stack(values), *map(one, runs))


def stack(trees: Sequence[Any]) -> Any:
    """One tree whose leaves lead with an axis over the given ones."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def start_policy(run: config.Trained, task: Task) -> Policy:
    """What training starts from; of a sweep, every member's."""
    found = config.members(run)
    if not found:
        return task.start(run.seed)
    by_seed = {seed: task.start(seed) for seed in dict.fromkeys(m.run.seed for m in found)}
    return stack([by_seed[member.run.seed] for member in found])


def initial_state(run: config.Trained, task: Task, start: Policy) -> State:
    """The state before the first update, laid out over the devices; `start` stays usable."""
    layout = Layout.of(run, task)
    init = jax.jit(_init(run, task), out_shardings=layout.shardings)
    placed = hosts.place(start._replace(frozen=()), layout.shardings.policy)
    state = init(placed, *_identity(run, task))
    return with_frozen(state, start.frozen)


def with_frozen(state: State, frozen: Any) -> State:
    """The state with what its policy and reference share."""
    return state._replace(policy=state.policy._replace(frozen=frozen))


def train(
    run: config.Trained,
    task: Task,
    run_dir: Path,
    resume: bool = False,
    quiet: bool = False,
    finish: Callable[[Result], None] = lambda result: None,
) -> Result | list[Result]:
    """Trains to the end of the configuration, or of the label budget.

    Args:
      run: the configuration.
      task: the workload.
      run_dir: where everything goes; see `default_run_dir`.
      resume: go on from the newest checkpoint, bit for bit.
      quiet: no progress bar.
      finish: done with the result of a run that is no sweep, while the directory is still its own.

    Returns:
      One result; of a sweep, a list of its members'.

    Raises:
      UserError: a run directory or a reference that cannot be used; nothing was overwritten.
      TrainingFailed: too many gradient steps in a row were not finite; a reward that does not
        answer; a device's memory was not enough; no checkpoint could be written.
      Interrupted: SIGINT or SIGTERM; the state was saved.
    """
    began = time.perf_counter()
    metrics.check(run)
    devices.require_memory(task.batch_bytes(), 'a batch of this configuration')
    layout, read = Layout.of(run, task), task.digests()
    devices.require_memory(devices.size(layout.state), 'the training state of this configuration')
    with claimed(run, run_dir, resume):
        result = _train(run, task, layout, read, run_dir, resume, quiet, began)
        if isinstance(result, Result):
            finish(result)
        return result


def _train(
    run: config.Trained,
    task: Task,
    layout: Layout,
    read: dict[str, str],
    run_dir: Path,
    resume: bool,
    quiet: bool,
    began: float,
) -> Result | list[Result]:
    """`train`, once the directory is the run's.

    Args:
      read: `Task.digests`.
      began: when, by `time.perf_counter`.
    """
    directory = run_dir / 'checkpoints'
    found, (seed, hyper) = config.members(run), _identity(run, task)
    judge = task.evaluate
    if found:
        judge = jax.jit(jax.vmap(judge, spmd_axis_name='seed'))
    saved = f'checkpoints so far are in {directory}'
    begun = resume and checkpoint.has_begun(directory)
    if resume and not begun and _updated(run, run_dir):
        raise UserError(f'{directory}: no checkpoint, though metrics.jsonl has updates')
    with contextlib.ExitStack() as exits:
        bar = exits.enter_context(
            ProgressBar(task.updates, task.watch, task.unit, quiet or not hosts.is_main())
        )
        bar.stage('preparing the start policy')
        try:
            # Killed before anything was saved, a run begins again.
            start = None if begun else start_policy(run, task)
        except UserError:
            if not resume and hosts.is_main():  # The directory is free for the corrected run.
                (run_dir / 'config.yaml').unlink()
            raise
        frozen = task.frozen() if start is None else start.frozen
        exits.enter_context(devices.memory_named(f'{task.smaller}; {saved}'))
        with writing(directory, ROOM):
            saver = Saver(
                directory, run.checkpoints, lambda *failure: recorder.note_failed_save(*failure)
            )
        exits.enter_context(saver)
        caught = exits.enter_context(signals.collected())
        if start is None:
            checkpoint.require_own(directory, run.model_dump(mode='json'))
            start = checkpoint.restore_start(directory, layout.policy)
        else:
            start = hosts.place(start._replace(frozen=()), layout.shardings.policy)
            with writing(directory / 'start', ROOM):
                checkpoint.save_start(directory, start)
        if resume and hosts.any_process(bool(checkpoint.saved_steps(directory))):
            state, meta = checkpoint.restore(
                saver.manager, layout.state, run.model_dump(mode='json')
            )
            _require_not_shortened(task, int(np.max(state.step)), run_dir)
            state = with_frozen(state, frozen)
            before, held, began = meta['before'], meta['held'], began - meta['wall_s']
            _require_same_files(run_dir, meta.get('read', {}), read)
        else:
            if resume and hosts.is_main():
                _keep_rows_aside(run, run_dir)
            bar.stage('compiling the start')
            state = initial_state(run, task, start._replace(frozen=frozen))
            before, held = [], []
        if resume and hosts.is_main():
            configfile.write(run, run_dir / 'config.yaml')
        step, size = int(np.max(state.step)), task.updates_per_dispatch
        hosts.on_main(lambda: _hold_members(found, run_dir, exits))
        recorder = exits.enter_context(
            Recorder(run, task, run_dir, began, state if before else None, bool(held), bar)
        )

        def evaluate() -> list[Row]:
            numbers = jax.device_get(judge(state.policy, start, seed, hyper))
            rows = split(numbers, len(found))
            return [{f'eval/{key}': float(value) for key, value in row.items()} for row in rows]

        def save(score: float, wait: bool = False) -> bool:
            meta = {'before': before, 'held': held, 'wall_s': recorder.wall_s(), 'read': read}
            return saver.save(step, state, meta | _origin(run), score, wait)

        def stop(score: float = -math.inf) -> NoReturn:
            if save(score, wait=True):
                number = caught[0] if caught else signal.SIGTERM  # Another process got it.
                raise signals.interrupted(number, recorder.at(step), run_dir)
            raise TrainingFailed(
                f'stopped at {recorder.at(step)} by a signal, and this checkpoint could not be '
                f'written; --resume goes on from the newest in {directory}'
            )

        def give_up(error: UserError | TrainingFailed) -> NoReturn:
            # The host's part failed, a reward function for example; nothing learnt is lost unless
            # the device's part has taken the state's memory.
            taken = any(x.is_deleted() for x in jax.tree.leaves(state))
            where = saved
            if not taken and save(-math.inf, wait=True):
                where = f'saved at {recorder.at(step)}'
            raise type(error)(f'{error}; {where}') from error

        if not before:
            bar.stage('compiling and evaluating')
            before = evaluate()
            recorder.write([[{**recorder.position(0, 0), **row}] for row in before])
            score = _score(run, task, before)
            if hosts.any_process(bool(caught)):
                stop(score)
            save(score)
        after, pending = [], None
        if held:
            after, rows = evaluate(), held
            recorder.write([[row | numbers] for row, numbers in zip(rows, after, strict=True)])
            held = []
        last = step >= task.updates or recorder.budget_spent()
        if last and resume and hosts.is_main() and not quiet:
            metrics.say(f'nothing is left to train: the run is at its end, {recorder.at(step)}')
        dispatch = task.dispatch
        if not last and dispatch is None:
            dispatch = recorder.compile(
                update.make_dispatch(task.workload, run, size, layout.shardings, bool(found)), state
            )
        bar.training()
        recorder.restart_clock()
        while not last:
            try:
                with devices.memory_named(task.smaller):
                    state, numbers = dispatch(state)
            except (UserError, TrainingFailed) as error:
                give_up(error)
            step += size
            if pending is not None:  # Read while the device works on the next.
                recorder.write(recorder.rows(pending))
            pending = numbers
            last = step >= task.updates or recorder.budget_spent()
            stopped = hosts.any_process(bool(caught))
            evaluating = last or _due(step, size, task.evaluate_every)
            saving = last or _due(step, size, run.checkpoints.every_updates)
            # Where the host has a part in every update, nothing is gained by reading late.
            if evaluating or saving or stopped or task.dispatch is not None:
                rows, pending, score = recorder.rows(pending), None, -math.inf
                if stopped and not last:
                    # Who stops us may not wait for an evaluation: the run makes it once it goes on.
                    held = [member.pop() for member in rows] if evaluating else []
                    recorder.write(rows)
                    stop()
                if evaluating:
                    try:
                        with devices.memory_named(task.smaller):
                            after = evaluate()
                    except (UserError, TrainingFailed) as error:
                        held = [member.pop() for member in rows]
                        recorder.write(rows)
                        give_up(error)
                    score = _score(run, task, after)
                    for member, row in zip(rows, after, strict=True):
                        member[-1] |= row
                recorder.write(rows)
                if saving or saver.is_among_best(score, run.checkpoints.keep_best):
                    save(score, wait=last)
                recorder.restart_clock()
        recorder.note_spent_budget(step)
        if not hosts.any_process(saver.has(step)):
            newest = max(checkpoint.saved_steps(directory), default=None)
            if newest is None:
                raise TrainingFailed(f'{directory}: no checkpoint could be written; see above')
            raise TrainingFailed(
                f'{directory}: the last state, at {recorder.at(step)}, could not be written; see '
                f'above; --resume goes on from {recorder.at(newest)}'
            )
        recorder.require_written()
        scores = checkpoint.scores(saver.manager)
        best = max(scores, key=scores.get, default=step)
        if best != step and hosts.is_main() and not quiet:
            metrics.say(
                f'the best evaluation was at {recorder.at(best)}; --best takes its checkpoint'
            )
        after = after or evaluate()
        results = [
            Result(
                policy=policy,
                start=begin,
                before=first,
                after=row,
                length=step * task.units_per_update,
                unit=task.unit,
                labels=int(labels),
                wall_s=recorder.wall_s(),
            )
            for policy, begin, first, row, labels in zip(
                split(state.policy, len(found)),
                split(start, len(found)),
                before,
                after,
                np.ravel(state.labels),
                strict=True,
            )
        ]
        if not found:
            return results[0]
        for member, begin, own, first in zip(
            found, split(start, len(found)), split(state, len(found)), before, strict=True
        ):
            with writing(run_dir / member.name, ROOM):
                _make_a_run_of(member, run_dir / member.name, begin, own, first, recorder.wall_s())
        return results


def _score(run: config.Trained, task: Task, evaluation: Sequence[Row]) -> float:
    """How good an evaluation is, by `checkpoints.metric`: more is better, -inf says nothing.

    Raises:
      UserError: the evaluation has no such number.
    """
    # Members of a sweep are at their best at different updates.
    if config.members(run) or not run.checkpoints.keep_best:
        return -math.inf
    (row,), given = evaluation, run.checkpoints.metric
    for name in task.best if given is None else (given,):
        value = row.get(name.removeprefix('-'))
        if value is not None:
            value = -value if name.startswith('-') else value
            value -= BROKEN * row.get('eval/not_finite', 0)
            return value if math.isfinite(value) else -math.inf
    if given is None:
        return -math.inf
    raise UserError(f'checkpoints.metric: {given}; evaluations have {", ".join(row)}')


def split(tree: Any, members: int) -> list[Any]:
    """The members' parts of what a sweep holds, on the host; with no members, all of it.

    Indexing on the devices would be a program with a collective for each leaf and member.
    """
    if not members:
        return [tree]
    tree = jax.device_get(tree)
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(members)]


def _make_a_run_of(
    member: config.Member, run_dir: Path, start: Policy, state: State, before: Row, wall_s: float
) -> None:
    """Leaves a finished member of a sweep as a run that was trained alone would be left."""
    directory = run_dir / 'checkpoints'
    shutil.rmtree(directory, ignore_errors=True)
    checkpoint.save_start(directory, start)
    with checkpoint.open_manager(directory, member.run.checkpoints) as manager:
        meta = {'before': [before], 'held': [], 'wall_s': wall_s} | _origin(member.run)
        checkpoint.save(manager, int(state.step), state, meta)


def _origin(run: config.Trained) -> dict[str, Any]:
    """What every checkpoint says of where it is from."""
    return {'config': run.model_dump(mode='json'), 'versions': versions()}


def versions() -> dict[str, str]:
    """What a checkpoint was written with."""
    names = ('sail-jax', 'jax', 'flax', 'optax', 'orbax-checkpoint', 'brax')
    return {'python': platform.python_version(), **{name: _version(name) for name in names}}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # A clone that is on the path, and not installed.
        return 'not installed'


def _due(step: int, size: int, every: int) -> bool:
    """Whether a multiple of `every` lies in the `size` updates that end at `step`."""
    return step // every > (step - size) // every
