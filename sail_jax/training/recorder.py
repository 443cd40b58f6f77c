"""Turns the device's numbers into rows, writes them, and keeps the clock."""

import time
from typing import Any

import jax
import numpy as np

from sail_jax import configfile
from sail_jax.core.types import Metrics
from sail_jax.errors import TrainingFailed
from sail_jax.files import ROOM, writing
from sail_jax.sweep import Member
from sail_jax.training import hosts, metrics
from sail_jax.training.compilation import Stopwatch
from sail_jax.training.notices import Notices
from sail_jax.training.progress import ProgressBar
from sail_jax.training.rows import MetricsRow, MetricsRows
from sail_jax.training.saver import FailedSaves
from sail_jax.training.setup import Job


class Recorder:
    """What a run leaves in `metrics.jsonl` and shows on its progress bar.

    Only the main process writes; the others make the same rows, since all of them must agree on
    what they say.
    """

    compile_s: float | None = None
    """Seconds in which the update was compiled, until they are in a row."""

    def __init__(
        self,
        job: Job,
        began: float,
        written: int | None,
        failed_saves: FailedSaves,
        bar: ProgressBar,
    ):
        """Opens the files; of a run that goes on, rows after `written` are dropped.

        Args:
          began: when, by `time.perf_counter`, less the seconds of earlier processes.
          written: the last update whose rows stay; None of a run that begins.
          failed_saves: counts what `time/saves_failed` says.
        """
        self._job, self._task = job, job.task
        self._began, self._since = began, time.perf_counter()
        self._compiling = Stopwatch()
        self._failed: set[int] = set()
        """Members that learn no more, by number."""
        self._failed_saves, self._bar = failed_saves, bar
        members = job.members.each
        self._writers: list[list[metrics.Writer]] = [[] for _ in members]
        if hosts.is_main():
            self._writers = [self._open(member, written) for member in members]
        names = [member.name for member in members]
        told = self._task.stepless, self._task.unasked
        self._notices = Notices(job.run, names, hosts.say, *told)

    def _open(self, member: Member, written: int | None) -> list[metrics.Writer]:
        directory = member.directory(self._job.run_dir)
        if self._job.members.sweep:
            with writing(directory, ROOM):
                configfile.write(member.run, directory / 'config.yaml')
        at = None if written is None else written * self._task.units_per_update
        return metrics.open_writers(member.run, directory, written, self._task.unit, at)

    def __enter__(self) -> 'Recorder':
        self._compiling.start()
        return self

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

    def position(self, step: int, labels: int) -> MetricsRow:
        """The keys that every row has."""
        return {
            'step': step,
            self._task.unit: step * self._task.units_per_update,
            'labels': labels,
            'wall_s': round(self.wall_s(), 3),
        }

    def restart_clock(self) -> None:
        """Leaves what was done since the last rows out of the throughput."""
        self._since = time.perf_counter()
        self._compiling.take()

    def rows(self, numbers: Metrics) -> MetricsRows:
        """The rows of a dispatch; waits for the device.

        Args:
          numbers: of each update, [updates]; of a sweep [members, updates].

        Raises:
          TrainingFailed: too many gradient steps in a row were skipped; of a sweep, in every
            member.
        """
        count = len(self._job.members.each)
        host = {
            key: np.reshape(value, (count, -1)) for key, value in jax.device_get(numbers).items()
        }
        steps, labels = host.pop('step')[0], host.pop('labels')
        skipped_in_a_row = host.pop('skipped_in_a_row').max(1)
        times, compile_s = self._times(updates=steps.size * count)
        rows = [
            [
                self.position(int(step), int(labels[m, i])) | self._of_update(host, m, i) | times
                for i, step in enumerate(steps)
            ]
            for m in range(count)
        ]
        if compile_s:
            for member in rows:
                member[0]['time/compile_s'] = compile_s
        self._note_failures(rows, skipped_in_a_row, int(steps[-1]))
        self._notices.updates(rows)
        return rows

    def _of_update(self, numbers: dict[str, np.ndarray], member: int, update: int) -> MetricsRow:
        """What an update gave; NaN of what there was nothing for is left out."""
        return {
            f'train/{name}': float(value[member, update])
            for name, value in numbers.items()
            if not (name in self._task.absent and np.isnan(value[member, update]))
        }

    def _times(self, updates: int) -> tuple[MetricsRow, float]:
        """The throughput since the last rows, and the seconds of compilation, which it is without.

        Where the host has a part in an update, programs are compiled within the first ones.
        """
        now, compile_s = time.perf_counter(), self._compiling.take()
        per_s = updates * self._task.units_per_update / max(now - self._since - compile_s, 1e-6)
        times = {f'time/{self._task.unit}_per_s': float(f'{per_s:.4g}')}
        if self._failed_saves.count:
            times['time/saves_failed'] = self._failed_saves.count
        compile_s, self.compile_s = self.compile_s or compile_s, None
        self._since = now
        return times, round(compile_s, 3)

    def _note_failures(self, rows: MetricsRows, in_a_row: np.ndarray, step: int) -> None:
        directories = self._job.members.directories(self._job.run_dir)
        run: Any = self._job.run  # `config.Trained` has no optimizer: each workload brings its own.
        failed = set(np.flatnonzero(in_a_row >= run.optimizer.max_skipped).tolist())

        def what(m: int) -> str:
            return (
                f'{in_a_row[m]} gradient steps in a row were not finite by update {step}; look at '
                f'train/grad_norm and train/not_finite in {directories[m]}/metrics.jsonl'
            )

        if len(failed) == len(directories):
            self.write(rows)
            raise TrainingFailed(
                f'{what(min(failed))}; the last good checkpoint is in {self._job.checkpoints}'
            )
        for m in failed - self._failed:
            metrics.say(f'{what(m)}; the others go on')
        self._failed |= failed

    def write(self, rows: MetricsRows) -> None:
        """To all writers, and the mean of the members' last ones to the progress bar."""
        for writers, member in zip(self._writers, rows, strict=True):
            for row in member:
                for writer in writers:
                    writer.write(row)
        last = [member[-1] for member in rows if member]
        if not last:
            return
        self._notices.evaluation(last, self._task.broken)
        # Members that had nothing to learn from have fewer numbers.
        shared = set.intersection(*map(set, last))
        self._bar.show(
            {key: float(np.mean([row[key] for row in last])) for key in last[0] if key in shared}
        )

    def require_written(self) -> None:
        """Raises TrainingFailed where rows of `metrics.jsonl` have found no room."""
        for writers in self._writers:
            for writer in writers:
                if isinstance(writer, metrics.JsonLines):
                    writer.require_written()
