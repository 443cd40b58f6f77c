"""The loop on the host: dispatch, read the last, if due evaluate and save, if told stop."""

import math
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax
import numpy as np

from sail_jax.core.types import Metrics, Policy, State
from sail_jax.errors import Busy, TrainingFailed, UserError
from sail_jax.training import checkpoint, devices, hosts, lock, setup, signals
from sail_jax.training.budget import LabelBudget
from sail_jax.training.callbacks import Listeners
from sail_jax.training.opening import Opened
from sail_jax.training.patience import Patience
from sail_jax.training.progress import ProgressBar
from sail_jax.training.recorder import Recorder
from sail_jax.training.rows import MetricsRow, MetricsRows
from sail_jax.training.saver import Saver, score
from sail_jax.training.setup import Job
from sail_jax.training.task import Dispatch, HostExchange

T = TypeVar('T')

POLL_S = 0.5
"""Between looks at whether what is waited for has come."""


class Instruments(NamedTuple):
    """What the loop shows, writes and listens with."""

    bar: ProgressBar
    saver: Saver
    recorder: Recorder
    caught: list[int]
    """Signals that came, see `signals.collected`."""


class Due(NamedTuple):
    """What there is to do after a dispatch."""

    end: bool
    """The run is at its end, which is evaluated and saved."""
    evaluation: bool
    save: bool
    stop: bool
    """A signal came, and the run is not at its end."""


def compiled(dispatch: Any, state: State) -> Dispatch:
    """The compiled program, which cannot recompile."""
    return dispatch.lower(state).compile()


class Loop:
    """A run under way. Its phases in their order: `evaluate_start`, `evaluate_waiting`, `train`."""

    state: State
    """After `step` updates."""
    before: list[MetricsRow]
    """The evaluation of the start policy, a row a member."""
    after: list[MetricsRow]
    """The newest evaluation of this process; empty before there is one."""
    newest: list[MetricsRow]
    """The row of the update that `after` evaluates, with it."""

    def __init__(self, job: Job, opened: Opened, instruments: Instruments):
        self.job, self._start, self.state = job, opened.start, opened.state
        self.before, self.after, self._waiting = opened.before, [], opened.waiting
        self.newest = []
        self.step = int(np.max(opened.state.step))
        self.bar, self.saver, self.recorder, self._caught = instruments
        labels = np.ravel(opened.state.labels).tolist()
        self.budget = LabelBudget(job.task.max_labels, labels, opened.closed)
        self._patience = Patience(job.task.patience, opened.patience)
        # A longer one goes on.
        self._stays = job.in_turn and opened.ended == job.task.updates
        self._listeners = Listeners(job.callbacks, job.members.sweep)
        self._identity = setup.identity(job.members, job.task)
        self._evaluate = setup.evaluation(job.members, job.task)
        self._unread: Metrics | None = None
        """Numbers of the last dispatch, on the device."""

    @property
    def start(self) -> Policy:
        """What training began from."""
        return self.state.reference if self._start is None else self._start

    def evaluate_start(self) -> None:
        """The first evaluation and the first checkpoint, unless the run has been here before."""
        if self.before:
            return
        self.bar.stage('compiling and evaluating')
        self.before = self.evaluate()
        position = self.recorder.position(0, 0)
        rows = [[position | row] for row in self.before]
        self.recorder.write(rows)
        worth = self._rate(self.before)
        self._show_evaluation(rows, worth)
        if hosts.any_process(bool(self._caught)):
            self._stop(worth)
        self._save(worth, wait=self._listeners.ended)

    def evaluate_waiting(self) -> None:
        """The evaluation that a signal kept the last process from."""
        if not self._waiting:
            return
        self.after = self.evaluate()
        waited = zip(self._waiting, self.after, strict=True)
        rows = [[row | numbers] for row, numbers in waited]
        self.newest = [member[-1] for member in rows]
        self.recorder.write(rows)
        worth = self._rate(self.after)
        self.saver.rate(self.step, worth)
        self._waiting = []
        self._show_evaluation(rows, worth)

    def train(self) -> None:
        """Updates to the end of the run: to its length, until the label budget is spent, until
        evaluations get no better (`Task.patience`), or until a callback says so.

        Raises:
          UserError, TrainingFailed: the host's part of an update or evaluation failed, or a
            callback, or a device's memory was not enough; the state was saved where there was one.
          Interrupted: a signal came; the state was saved.
        """
        ended = self._at_end(self.budget.spent and self.budget.closed)
        if ended and self.job.resume:
            self.job.say(f'nothing is left to train: the run is at its end, {self._here}')
        ended = ended or self._listeners.ended
        dispatch = None if ended else self._program()
        exchange = None if ended else self._exchange()
        self.bar.training(self.step)
        self.recorder.restart_clock()
        while dispatch is not None and not ended:
            if exchange is not None:
                self._wait_and_take(exchange)
            self._dispatch(dispatch)
            if exchange is not None:
                self._publish(exchange)
            due = self._due()
            # Where the host has a part in every update, nothing is gained by reading late.
            if any(due) or self.job.task.dispatch is not None or exchange is not None:
                due = self._settle(due)
                self.recorder.restart_clock()
            ended = due.end
        if self._listeners.ended_by is not None:
            self.job.say(f'{self._listeners.ended_by} ended the run at {self._here}')
        if self._patience.ended and self.step < self.job.task.updates:
            self.job.say(
                f'evaluation.patience: {self.job.task.patience} evaluations in a row were no '
                f'better than the best before them; the run ends at {self._here}'
            )

    def evaluate(self) -> list[MetricsRow]:
        """Numbers of the policy as it is now, a row a member; waits for the device."""
        self._require_directory()
        state = self.state
        with self.bar.evaluating():
            numbers = jax.device_get(
                self._evaluate(state.policy, self.start, state.shared, *self._identity)
            )
        rows = setup.split(self.job.members, numbers)
        return [{f'eval/{key}': float(value) for key, value in row.items()} for row in rows]

    def _program(self) -> Dispatch:
        """The task's own dispatch, or the compiled one, whose time goes into the next rows."""
        job = self.job
        if job.task.dispatch is not None:
            return job.task.dispatch
        began = time.perf_counter()
        self.bar.stage('compiling the update')
        program = setup.make_program(job.members, job.task, job.layout.shardings)
        program = compiled(program, self.state)
        self.recorder.compile_s = time.perf_counter() - began
        return program

    def _exchange(self) -> HostExchange | None:
        """What the host does between dispatches; what a resumed state asks is given out again."""
        if self.job.task.exchange is None:
            return None
        open_exchange = self.job.task.exchange
        exchange = self._patiently(lambda: open_exchange(self.job.run_dir))
        if exchange is None:
            self._stop()
        self._publish(exchange)
        return exchange

    def _publish(self, exchange: HostExchange) -> None:
        try:
            with devices.memory_named(self.job.task.smaller):
                self._patiently(lambda: exchange.publish(self.state))
        except (UserError, TrainingFailed) as error:
            self._give_up(error)

    def _wait_and_take(self, exchange: HostExchange) -> None:
        """Has the next dispatch know what has come in; who stops a run that waits loses nothing."""
        ready = lambda: exchange.ready(self.state)
        try:
            if not self._patiently(ready):
                self._wait(exchange)
            with devices.memory_named(self.job.task.smaller):
                state = self._patiently(lambda: exchange.take(self.state))
        except (UserError, TrainingFailed) as error:
            self._give_up(error)
        if state is None:
            self._stop()
        self.state = state
        self.recorder.restart_clock()

    def _wait(self, exchange: HostExchange) -> None:
        if not self.saver.has(self.step):
            self._save(wait=True)
        self.job.say(exchange.waiting)
        self.bar.stage('waiting')
        while not self._patiently(lambda: exchange.ready(self.state)):
            if self._caught:
                self._stop()
            time.sleep(POLL_S)
        self.bar.training(self.step)

    def _patiently(self, call: Callable[[], T]) -> T | None:
        """What the call gives, once another program has left what it needs; says so once. None
        where a signal comes before."""
        said = False
        while True:
            try:
                return call()
            except Busy as error:
                if self._caught:
                    return None
                if not said:
                    hosts.say(f'{error}: training waits for whoever has it')
                said = True
                time.sleep(POLL_S)

    def _settle(self, due: Due) -> Due:
        """Reads the last dispatch, then evaluates, saves and stops as far as that is due.

        Returns:
          The same, and whether a callback ends the run.
        """
        rows = self._read()
        try:
            self._listeners.see_updates(rows)
        except UserError as error:
            self._write(rows, waiting=due.evaluation)
            self._give_up(error)
        if self._listeners.ended:
            due = Due(end=True, evaluation=True, save=True, stop=False)
        # One may have come while the device was waited for.
        if due.stop or (not due.end and hosts.any_process(bool(self._caught))):
            # Who stops us may not wait for an evaluation: the run makes it as it goes on.
            self._write(rows, waiting=due.evaluation)
            self._stop()
        worth = self._evaluate_last(rows) if due.evaluation else -math.inf
        self.recorder.write(rows)
        if due.evaluation:
            self._show_evaluation(rows, worth)
        end = due.end or self._listeners.ended or self._patience.ended
        keep_best = self.job.run.checkpoints.keep_best
        if end or due.save or self.saver.is_among_best(worth, keep_best):
            self._save(worth, wait=end)
        return due._replace(end=end)

    def _dispatch(self, dispatch: Dispatch) -> None:
        """The next updates; the rows of those before are read while the device works on them."""
        try:
            with devices.memory_named(self.job.task.smaller):
                self.state, numbers = dispatch(self.state)
        except (UserError, TrainingFailed) as error:
            self._give_up(error)
        self.step += self.job.task.updates_per_dispatch
        unread, self._unread = self._unread, numbers
        if unread is None:
            return
        rows = self._rows(unread)
        self.recorder.write(rows)
        try:
            self._listeners.see_updates(rows)
        except UserError as error:
            self._give_up(error)

    def _read(self) -> MetricsRows:
        """The rows of the last dispatch; waits for the device."""
        unread, self._unread = self._unread, None
        assert unread is not None
        return self._rows(unread)

    def _rows(self, numbers: Metrics) -> MetricsRows:
        rows = self.recorder.rows(numbers)
        self.budget.see(rows)
        return rows

    def _show_evaluation(self, rows: MetricsRows, worth: float) -> None:
        try:
            self._listeners.see_evaluation(rows)
        except UserError as error:
            self._give_up(error, worth)

    def _evaluate_last(self, rows: MetricsRows) -> float:
        """Evaluates, adds the numbers to the last rows, and says what they are worth."""
        try:
            with devices.memory_named(self.job.task.smaller):
                self.after = self.evaluate()
        except (UserError, TrainingFailed) as error:
            self._write(rows, waiting=True)
            self._give_up(error)
        for member, numbers in zip(rows, self.after, strict=True):
            member[-1] |= numbers
        self.newest = [member[-1] for member in rows]
        return self._rate(self.after)

    def _write(self, rows: MetricsRows, waiting: bool) -> None:
        """Writes rows; where they wait for an evaluation, the last ones go into the checkpoint."""
        if waiting:
            self._waiting = [member.pop() for member in rows]
        self.recorder.write(rows)

    def _rate(self, evaluation: list[MetricsRow]) -> float:
        """What a new evaluation is worth."""
        worth = score(self.job.members, self.job.task.best, evaluation)
        self._patience.see(worth)
        return worth

    def _save(self, worth: float = -math.inf, wait: bool = False) -> bool:
        """As of `Saver.save`."""
        self._require_directory()
        meta = {
            'before': self.before,
            'held': self._waiting,
            'wall_s': self.recorder.wall_s(),
            'read': self.job.digests,
            'patience': self._patience.kept,
            'closed': self.budget.closed,
            'ended': self.job.task.updates if self._listeners.ended else None,
            **checkpoint.origin(self.job.run),
        }
        return self.saver.save(self.step, self.state, meta, worth, wait)

    def _require_directory(self) -> None:
        """What evaluations and saves write goes to the run's own directory, see `lock`."""
        hosts.on_main(lambda: lock.require_held(self.job.run_dir))

    def _stop(self, worth: float = -math.inf) -> NoReturn:
        """Ends the process that a signal stopped, with a checkpoint."""
        if self.saver.has(self.step) or self._save(worth, wait=True):
            number = self._caught[0] if self._caught else signal.SIGTERM  # Another process got it.
            raise signals.interrupted(number, self._here, self.job.run_dir)
        raise TrainingFailed(
            f'stopped at {self._here} by a signal, and this checkpoint could not be '
            f'written; --resume goes on from the newest in {self.job.checkpoints}'
        )

    def _give_up(self, error: UserError | TrainingFailed, worth: float = -math.inf) -> NoReturn:
        """Ends a run whose host's part failed, a reward function for example.

        Nothing learnt is lost unless the device's part has taken the state's memory.
        """
        where = self.job.saved
        if not any(x.is_deleted() for x in jax.tree.leaves(self.state)):
            if self._unread is not None:
                self._write(self._read(), waiting=self._due().evaluation)
            if self.saver.has(self.step) or self._save(worth, wait=True):
                where = f'saved at {self._here}'
        raise type(error)(f'{error}; {where}') from error

    def _at_end(self, spent: bool) -> bool:
        over = spent or self._patience.ended or self._stays
        return self.step >= self.job.task.updates or over

    def _due(self) -> Due:
        """What there is to do after the last dispatch."""
        before = self.step - self.job.task.updates_per_dispatch
        end = self._at_end(self.budget.spent) or self._listeners.ended

        def within(every: int) -> bool:
            """Whether a multiple of `every` updates lies in the last dispatch."""
            return self.step // every > before // every

        return Due(
            end=end,
            evaluation=end or within(self.job.task.evaluate_every),
            save=end or within(self.job.run.checkpoints.every_updates),
            stop=hosts.any_process(bool(self._caught)) and not end,
        )

    @property
    def _here(self) -> str:
        return self.job.task.at(self.step)
