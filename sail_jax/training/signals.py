"""SIGINT and SIGTERM end a run: at the next safe point, with a checkpoint, once it has something to
save; before that, and after its last save, at once. 130 for Ctrl-C, 75 for SIGTERM."""

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from sail_jax import streams
from sail_jax.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_run_dir: Path | None = None


def status(number: int) -> int:
    """What a process that a signal stopped ends with."""
    return 130 if number == signal.SIGINT else 75


@contextlib.contextmanager
def ending_the_process() -> Iterator[None]:
    """A signal ends the process with one line, whatever it is busy with: an import, a compilation,
    a reference that is trained. Where there is a run, --resume goes on with it as after SIGKILL."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    before: dict[int, Any] = {}
    try:
        for number in SIGNALS:
            before[number] = signal.signal(number, _nothing)
        wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    except ValueError:  # Not the main thread: signals are the caller's.
        os.close(read)
        os.close(write)
        yield
        return
    # The main thread may be in compiled code for minutes, and sees no signal before it is out.
    threading.Thread(target=_wait, args=(read,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(write)  # Which ends the thread.
        name_run(None)


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt; while modules are imported it ends the process with one
    line, since what they do may swallow it, or print it at length."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # A script's job in the background.
        yield
        return
    try:
        signal.signal(signal.SIGINT, _interrupt)
    except ValueError:  # Not the main thread: signals are the caller's.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def clearing_away() -> Iterator[None]:
    """SIGTERM and a closed terminal, where nobody looks after them, end the process once what is
    half written is cleared away."""

    def end(number: int, _frame: Any) -> None:
        raise SystemExit(128 + number)

    numbers = signal.SIGTERM, signal.SIGHUP
    usual = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in usual:
            signal.signal(number, end)
    except ValueError:  # Not the main thread: signals are the caller's.
        yield
        return
    try:
        yield
    finally:
        for number in usual:
            signal.signal(number, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith('<frozen importlib'):
            _end(number, 'interrupted')
        frame = frame.f_back
    raise KeyboardInterrupt


def _nothing(_number: int, _frame: Any) -> None:
    pass


def _wait(read: int) -> None:
    while caught := os.read(read, 1):
        if caught[0] in SIGNALS:
            _end(caught[0], _how_to_go_on())
    os.close(read)


def _end(number: int, said: str) -> None:
    text = f'\nsail-jax: {said}\n'
    if streams.Lasting(sys.stderr).isatty():
        text = '\r\x1b[?25h' + text  # A progress bar hides the cursor.
    with contextlib.suppress(OSError):  # No lock, no buffer: whoever has them may be in the way.
        os.write(2, text.encode())
    os._exit(status(number))


def _how_to_go_on() -> str:
    if _run_dir is None or not os.path.exists(_run_dir / 'config.yaml'):
        return 'stopped before anything was begun'
    from sail_jax import terminal

    return terminal.one_line(f'stopped; {resume(_run_dir)}')


def name_run(run_dir: Path | None) -> None:
    """Says which run a signal stops from here on."""
    global _run_dir
    _run_dir = run_dir


def resume(run_dir: Path) -> str:
    """What goes on with a run."""
    where = shlex.quote(str(run_dir))
    return f'go on with: sail-jax train {where}/config.yaml --run-dir {where} --resume'


@contextlib.contextmanager
def collected() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying; a second one has its usual effect."""
    caught: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _frame: Any) -> None:
        from sail_jax import terminal

        caught.append(number)
        usual()
        terminal.say('stopping at the next safe point; once more to stop at once')

    def usual() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)

    try:
        for number in SIGNALS:
            before[number] = signal.signal(number, note)
        wakeup = signal.set_wakeup_fd(-1)
    except ValueError:  # Not the main thread: signals are the caller's.
        yield caught
        return
    try:
        yield caught
    finally:
        usual()


@contextlib.contextmanager
def ending_compilations(caught: list[int], run_dir: Path) -> Iterator[None]:
    """Ctrl-C, or a signal to all of a job's processes, ends the assembler that CUDA's compiler
    runs, and what fails then is the compilation: the run was stopped.

    Args:
      caught: of `collected`.
    """
    try:
        yield
    except RuntimeError as error:
        import jax

        if not caught or not isinstance(error, jax.errors.JaxRuntimeError):
            raise
        raise Interrupted(f'stopped; {resume(run_dir)}', status(caught[0])) from None


def interrupted(number: int, where_at: str, run_dir: Path) -> Interrupted:
    """What the run ends with after its save."""
    return Interrupted(f'stopped and saved at {where_at}; {resume(run_dir)}', status(number))
