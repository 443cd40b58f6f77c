"""Turns the device's numbers into rows, writes them, and keeps the clock."""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sail_jax import config, configfile
from sail_jax.core.update import OF_PAIRS, State
from sail_jax.errors import TrainingFailed, one_line
from sail_jax.files import ROOM, writing
from sail_jax.sweep import Members
from sail_jax.training import hosts, metrics
from sail_jax.training.compilation import Stopwatch
from sail_jax.training.metrics import Row
from sail_jax.training.notices import Notices
from sail_jax.training.progress import ProgressBar
from sail_jax.training.task import Task


class Recorder:
    """Rows are lists of lists: for each member of a sweep (a run alone is one) those to write."""

    def __init__(
        self,
        members: Members,
        task: Task,
        run_dir: Path,
        began: float,
        resumed: State | None,
        held: bool,
        bar: ProgressBar,
    ):
        # A row that waited for its evaluation is written now, perhaps for the second time.
        step = None if resumed is None else int(np.max(resumed.step)) - held
        self._run, self._task = members.run, task
        self._directories = members.directories(run_dir)
        self._began, self._since = began, time.perf_counter()
        self._labels = (
            np.zeros(len(members.each), int) if resumed is None else np.ravel(resumed.labels)
        )
        self._spent_at: int | None = None
        self._compile_s: float | None = None
        self._compiling = Stopwatch()
        self._failed: set[int] = set()
        self.saves_failed = 0
        """Checkpoints that could not be written; the run goes on without them."""
        self._writers: list[list[metrics.Writer]] = [[] for _ in members.each]
        if hosts.is_main():
            self._writers = [
                self._open(member.run, member.directory(run_dir), members.sweep, step)
                for member in members.each
            ]
        self._bar = bar
        self._notices = Notices(members.run, [member.name for member in members.each], self._say)

    def _open(
        self, run: config.Trained, directory: Path, sweep: bool, step: int | None
    ) -> list[metrics.Writer]:
        if sweep:
            with writing(directory, ROOM):
                configfile.write(run, directory / 'config.yaml')
        at = None if step is None else step * self._task.units_per_update
        return metrics.open_writers(run, directory, step, self._task.unit, at)

    def __enter__(self) -> 'Recorder':
        self._compiling.start()
        return self

    def _say(self, line: str) -> None:
        if hosts.is_main():
            metrics.say(line)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._notices.end()
        self._compiling.stop()
        for writers in self._writers:
            for writer in writers:
                writer.close()

    def wall_s(self) -> float:
        """Seconds since the run began, earlier processes of a resumed run included."""
        return time.perf_counter() - self._began

    def at(self, step: int) -> str:
        """How far the run is, in words."""
        return f'{step * self._task.units_per_update:,} {self._task.unit.replace("_", " ")}'

    def position(self, step: int, labels: int) -> Row:
        """The keys that every row has."""
        return {
            'step': step,
            self._task.unit: step * self._task.units_per_update,
            'labels': labels,
            'wall_s': round(self.wall_s(), 3),
        }

    def compile(self, dispatch: Any, state: State) -> Any:
        """The compiled program, which cannot recompile; its time goes into the next row."""
        began = time.perf_counter()
        self._bar.stage('compiling the update')
        compiled = dispatch.lower(state).compile()
        self._compile_s = time.perf_counter() - began
        return compiled

    def restart_clock(self) -> None:
        """Leaves what was done since the last rows out of the throughput."""
        self._since = time.perf_counter()
        self._compiling.take()

    def rows(self, numbers: Any) -> list[list[Row]]:
        """One row for each update of a dispatch; waits for the device.

        Raises:
          TrainingFailed: too many gradient steps in a row were skipped; of a sweep, in every
            member.
        """
        count = len(self._directories)
        # Leaves [updates], or [members, updates].
        numbers = {
            key: np.reshape(value, (count, -1)) for key, value in jax.device_get(numbers).items()
        }
        now, compiled_s = time.perf_counter(), self._compiling.take()
        steps, labels = numbers.pop('step')[0], numbers.pop('labels')
        in_a_row = numbers.pop('skipped_in_a_row').max(1)
        units = steps.size * self._task.units_per_update * count
        # Where the host has a part in an update, its programs are compiled within the first ones.
        per_s = units / max(now - self._since - compiled_s, 1e-6)
        speed = {f'time/{self._task.unit}_per_s': float(f'{per_s:.4g}')}
        if self.saves_failed:
            speed['time/saves_failed'] = self.saves_failed
        self._since, self._labels = now, labels[:, -1]
        if self._spent_at is None and self.budget_spent():
            limit = self._task.max_labels
            self._spent_at = int(steps[(labels >= limit).all(0).argmax()])
        rows = [
            [
                {
                    **self.position(int(step), int(labels[m, i])),
                    **{
                        f'train/{name}': float(value[m, i])
                        for name, value in numbers.items()
                        if not (name in OF_PAIRS and np.isnan(value[m, i]))
                    },
                    **speed,
                }
                for i, step in enumerate(steps)
            ]
            for m in range(count)
        ]
        compiled_s = round(self._compile_s or compiled_s, 3)
        if compiled_s:
            for member in rows:
                member[0]['time/compile_s'] = compiled_s
        self._compile_s = None
        self._note_failures(rows, in_a_row, int(steps[-1]))
        self._notices.updates(rows)
        return rows

    def _note_failures(self, rows: list[list[Row]], in_a_row: np.ndarray, step: int) -> None:
        failed = set(np.flatnonzero(in_a_row >= self._run.optimizer.max_skipped).tolist())
        where = lambda m: (
            f'{in_a_row[m]} gradient steps in a row were not finite by update {step}; look at '
            f'train/grad_norm and train/not_finite in {self._directories[m]}/metrics.jsonl'
        )
        if len(failed) == len(self._directories):
            self.write(rows)
            raise TrainingFailed(
                f'{where(min(failed))}; the last good checkpoint is in '
                f'{self._directories[0] if len(failed) == 1 else self._directories[0].parent}'
                '/checkpoints'
            )
        for m in failed - self._failed:
            metrics.say(f'{where(m)}; the others go on')
        self._failed |= failed

    def note_failed_save(self, step: int, error: Exception) -> None:
        """Says that a checkpoint could not be written."""
        self.saves_failed += 1
        reason = one_line(error)
        metrics.say(
            f'the checkpoint of update {step} could not be written ({reason}); the run goes on, '
            f'{self.saves_failed} failed so far'
        )

    def write(self, rows: list[list[Row]]) -> None:
        """To all writers, and the mean of the last ones to the progress bar."""
        for writers, member in zip(self._writers, rows, strict=True):
            for row in member:
                for writer in writers:
                    writer.write(row)
        last = [member[-1] for member in rows if member]
        if not last:
            return
        broken = (
            'rewards or judgements that are not a finite number; a response with such a reward '
            'counts as the worst, such a judgement not at all'
        )
        if self._task.unit == 'env_steps':
            broken = (
                'episodes in which the simulator returned NaN or infinity; '
                'each counts as the worst sound one'
            )
        self._notices.evaluation(last, broken)
        shared = set.intersection(*map(set, last))
        self._bar.show(
            {key: float(np.mean([row[key] for row in last])) for key in last[0] if key in shared}
        )

    def note_spent_budget(self, step: int) -> None:
        """Says that the labeller was asked no more, where that was before the end of the run."""
        spent_at = step if self._spent_at is None else self._spent_at
        if self.budget_spent() and spent_at < self._task.updates:
            self._say(
                f'labeller.max_labels: the budget of {self._task.max_labels:,} comparisons was '
                f'spent at {self.at(spent_at)}, and no more is learned from the labeller; the run '
                f'ends at {self.at(step)} of {self.at(self._task.updates)}'
            )

    def require_written(self) -> None:
        """Raises TrainingFailed where rows of `metrics.jsonl` have found no room."""
        for writers in self._writers:
            for writer in writers:
                if isinstance(writer, metrics.JsonLines):
                    writer.require_written()

    def budget_spent(self) -> bool:
        """Whether the label budget was used up by the last rows, by every member."""
        limit = self._task.max_labels
        return limit is not None and bool((self._labels >= limit).all())
