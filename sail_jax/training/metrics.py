"""Where numbers go: `metrics.jsonl`, TensorBoard, Weights & Biases, and the terminal."""

import contextlib
import html
import importlib.util
import io
import json
import math
import os
import re
import secrets
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from sail_jax import config
from sail_jax.errors import TrainingFailed, UserError, one_line
from sail_jax.files import ROOM, writing
from sail_jax.terminal import console as console
from sail_jax.terminal import say
from sail_jax.training.rows import MetricsRow, scan
from sail_jax.training.rows import read_rows as read_rows


class Writer(Protocol):
    """Takes one row per update."""

    def write(self, row: MetricsRow) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """`metrics.jsonl`: one object a line, every update once, flushed as written.

    Rows that a full disk does not take are kept, and written once there is room. Where somebody
    deletes the file meanwhile, or puts another in its place as editors do, rows go on there.
    """

    def __init__(self, path: Path, resume_step: int | None):
        """Opens the file; lines after `resume_step`, and a half line at the end, are dropped.

        Where other lines are damaged, the file as it was is kept beside it.
        """
        if path.exists():
            there = scan(path, -1 if resume_step is None else resume_step)
            part = path.with_suffix('.part')
            with writing(path, ROOM):
                part.write_bytes(b''.join(json.dumps(row).encode() + b'\n' for row in there.rows))
                if there.damaged:
                    aside = path.with_name(f'damaged-{time.time_ns()}-{path.name}')
                    path.rename(aside)
                    say(
                        f'{path}:{there.damaged[0]}; {len(there.damaged)} such lines are left out, '
                        f'the file as it was is {aside.name}'
                    )
                part.replace(path)
        with writing(path, ROOM):
            self._file, self._directory = path.open('ab', buffering=0), path.parent.stat()
        self._path = path
        self._unwritten, self._failed = b'', False

    def write(self, row: MetricsRow) -> None:
        # JSON has no NaN.
        clean = {key: value if math.isfinite(value) else None for key, value in row.items()}
        self._unwritten += json.dumps(clean).encode() + b'\n'
        self._flush()

    def require_written(self) -> None:
        """Tries a last time to write what there was no room for.

        Raises:
          TrainingFailed: there is still none.
        """
        self._flush()
        if self._unwritten:
            lost, self._unwritten = self._unwritten.count(b'\n'), b''
            raise TrainingFailed(f'{self._file.name}: {lost} rows could not be written')

    def close(self) -> None:
        try:
            self.require_written()
        except TrainingFailed as error:  # Something else ends the run.
            say(str(error))
        self._file.close()

    def _flush(self) -> None:
        try:
            self._keep_name()
            while self._unwritten:
                # A disk that is all but full takes a part.
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            if not self._failed:
                say(f'{self._file.name}: {error.strerror}; its rows are kept until there is room')
            self._failed = True

    def _keep_name(self) -> None:
        """Goes on in a new file where the old one has lost its name, and its directory has not."""
        with contextlib.suppress(FileNotFoundError):
            if not os.path.samestat(self._path.parent.stat(), self._directory):
                return
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
                    return
            old, self._file = self._file, self._path.open('ab', buffering=0)
            old.close()
            say(f'{self._path}: was deleted or replaced; the rows that follow are in a new one')


EVENTS = re.compile(r'events\.out\.tfevents\.(\d{10})\.')
"""How a file of TensorBoard's is called: by seconds since 1970."""


class TensorBoard:
    """Events for TensorBoard, by the run's unit of length, flushed as written.

    Once the disk does not take one there are no more; `metrics.jsonl` has them all.
    """

    def __init__(self, directory: Path, unit: str, resume_at: int | None):
        """Opens a new file; in older ones, what comes after `resume_at` is hidden."""
        self._directory, self._unit = directory, unit
        self._file: io.FileIO | None = None
        with self._giving_up():
            directory.mkdir(parents=True, exist_ok=True)
            self._file = (directory / _new_name(directory)).open('xb', buffering=0)
        self._append(_record(file_version='brain.Event:2'))
        if resume_at is not None:
            self._append(_record(step=resume_at + 1, session_log={'status': 'START'}))

    def write(self, row: MetricsRow) -> None:
        values = [{'tag': key, 'simple_value': value} for key, value in row.items() if '/' in key]
        self._append(_record(step=int(row[self._unit]), summary={'value': values}))

    def close(self) -> None:
        with self._giving_up():
            if self._file is not None:
                self._file.close()

    def _append(self, record: bytes) -> None:
        with self._giving_up():
            while record and self._file is not None:
                record = record[self._file.write(record) :]

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        """An error of the disk ends the file; a part of a record at its end is not read."""
        try:
            yield
        except OSError as error:
            say(
                f'{self._directory}: {error.strerror}; no more events are written there; '
                'all numbers go to metrics.jsonl'
            )
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()


def _new_name(directory: Path) -> str:
    """After those of the files that are there, which TensorBoard reads in the order of their names:
    the clock may have been set back, or be another host's."""
    seconds, rest = divmod(time.time_ns(), 10**9)
    names = (EVENTS.match(path.name) for path in directory.iterdir())
    seconds = max([seconds, *(int(name[1]) + 1 for name in names if name)])
    return f'events.out.tfevents.{seconds}.{socket.gethostname()}.{rest:09}'


def _record(**event: Any) -> bytes:
    """An event of now, as it lies in a file.

    tensorboardX's own writer has a thread, which a full disk ends; its callers then wait for ever.
    """
    # Made of a file of protobuf's when it is imported.
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.record_writer import masked_crc32c

    data = Event(wall_time=time.time(), **event).SerializeToString()
    length = struct.pack('<Q', len(data))
    return b''.join(part + struct.pack('<I', masked_crc32c(part)) for part in (length, data))


class WandB:
    """A Weights & Biases run, named after the run directory; of a sweep's member, after both.

    Samples that a language run left of an evaluation go with it, the plot with the end. Once W&B's
    own process is gone nothing more is sent; `metrics.jsonl` has all numbers.
    """

    def __init__(
        self,
        project: str,
        run_dir: Path,
        settings: dict[str, Any],
    ):
        """Begins it, or goes on with it.

        Args:
          settings: of the run; `logging` has entity, group and tags.

        Raises:
          UserError: no login, no network, or whatever else W&B says.
        """
        import wandb

        self._run: Any = None
        self._run_dir, logging = run_dir, settings.get('logging', {})
        # Members of a sweep lie in its directory, side by side or in turn.
        is_member = (run_dir.parent / 'config.yaml').exists()
        sweep = run_dir.resolve().parent.name if is_member else None
        try:
            self._run = wandb.init(
                project=project,
                entity=logging.get('wandb_entity'),
                group=logging.get('wandb_group') or sweep,
                tags=logging.get('wandb_tags') or None,
                name=run_dir.name if sweep is None else f'{sweep}/{run_dir.name}',
                id=_wandb_id(run_dir),
                dir=str(run_dir),
                config=settings,
                resume='allow',
                reinit='create_new',
            )
        except Exception as error:
            raise UserError(
                f'logging.wandb: {one_line(error)}; once that is right, or with '
                'WANDB_MODE=offline, --resume goes on'
            ) from None

    def write(self, row: MetricsRow) -> None:
        with self._giving_up():
            if self._run is not None:
                self._run.log(row | self._samples(row), step=int(row['step']))

    def close(self) -> None:
        with self._giving_up():
            if self._run is not None:
                self._log_plot(self._run)
                self._run.finish()

    def _samples(self, row: MetricsRow) -> dict[str, Any]:
        """The table that an evaluation left, as it is written: Markdown."""
        import wandb

        path = self._run_dir / 'samples' / f'{int(row["step"]):06}.md'
        if not any(key.startswith('eval/') for key in row) or not path.is_file():
            return {}
        text = html.escape(path.read_text(encoding='utf-8'))
        return {'samples': wandb.Html(f'<pre style="white-space: pre-wrap">{text}</pre>')}

    def _log_plot(self, run: Any) -> None:
        import PIL.Image
        import wandb

        from sail_jax import plots

        try:
            drawn = plots.plot(self._run_dir).png()
        except UserError:  # Nothing is evaluated yet, or the workload has no plot.
            return
        run.log({'plot': wandb.Image(PIL.Image.open(io.BytesIO(drawn)))})

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        """No number on a web page is worth the run."""
        try:
            yield
        except Exception as error:
            import wandb

            self._run = None
            with contextlib.suppress(Exception):
                wandb.teardown()  # Or it does so as Python ends, with a traceback.
            say(
                f'Weights & Biases: {one_line(error)}; nothing more is sent there; all numbers go '
                'to metrics.jsonl'
            )


def _wandb_id(run_dir: Path) -> str:
    """What W&B knows a run by as long as its directory is there. Not by the name of that: there may
    be such a directory on another machine, or have been one here, whose run W&B would go on with.
    """
    file = run_dir / 'wandb' / 'id'
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(8), encoding='utf-8')
    return file.read_text(encoding='utf-8')


def check(run: config.Trained) -> None:
    """Finds out before anything else happens whether the writers are there.

    Raises:
      UserError: wandb is not installed.
    """
    if run.logging.wandb and importlib.util.find_spec('wandb') is None:
        raise UserError("logging.wandb: needs wandb (pip install 'sail-jax[wandb]')")


def open_writers(
    run: config.Trained,
    run_dir: Path,
    resume_step: int | None,
    unit: str,
    resume_at: int | None,
) -> list[Writer]:
    """The writers that the configuration asks for.

    Args:
      resume_step: updates that the run has made, None of a new one.
      unit: the key that says how far a row is, beside `step`.
      resume_at: the same as `resume_step`, in this unit.
    """
    writers: list[Writer] = [JsonLines(run_dir / 'metrics.jsonl', resume_step)]
    if run.logging.tensorboard:
        writers.append(TensorBoard(run_dir / 'tensorboard', unit, resume_at))
    if run.logging.wandb:
        writers.append(WandB(run.logging.wandb, run_dir, run.model_dump(mode='json')))
    return writers
