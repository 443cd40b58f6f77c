"""SIGINT and SIGTERM end a run: at the next safe point, with a checkpoint, once it has something to
save; before that, and after its last save, at once. 130 for Ctrl-C, 75 for SIGTERM."""

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
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
def _handled(numbers: Iterable[int], handler: Any) -> Iterator[Callable[[], None] | None]:
    """Signals have a handler meanwhile. Gives what ends that sooner, or None where they are left to
    the caller: not in the main thread."""
    before: dict[int, Any] = {}

    def give_back() -> None:
        for number, own in before.items():
            signal.signal(number, own)

    try:
        for number in numbers:
            before[number] = signal.signal(number, handler)
    except ValueError:
        yield None
        return
    try:
        yield give_back
    finally:
        give_back()


@contextlib.contextmanager
def ending_the_process() -> Iterator[None]:
    """A signal ends the process with one line, whatever it is busy with: an import, a compilation,
    a reference that is trained. Where there is a run, --resume goes on with it as after SIGKILL."""
    with _handled(SIGNALS, _nothing) as give_back:
        if give_back is None:
            yield
            return
        read, write = os.pipe()
        os.set_blocking(write, False)
        wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        # The main thread may be in compiled code for minutes, and sees no signal before it is out.
        threading.Thread(target=_wait, args=(read,), daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            os.close(write)  # Which ends the thread.
            name_run(None)


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt; while modules are imported it ends the process with one
    line, since what they do may swallow it, or print it at length."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # A script's job in the background.
    with _handled(() if ignored else (signal.SIGINT,), _interrupt):
        yield


@contextlib.contextmanager
def clearing_away() -> Iterator[None]:
    """SIGTERM and a closed terminal, where nobody looks after them, end the process once what is
    half written is cleared away."""

    def end(number: int, _frame: Any) -> None:
        raise SystemExit(128 + number)

    numbers = signal.SIGTERM, signal.SIGHUP
    usual = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    with _handled(usual, end):
        yield


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

    def note(number: int, _frame: Any) -> None:
        from sail_jax import terminal

        caught.append(number)
        usual()
        terminal.say('stopping at the next safe point; once more to stop at once')

    def usual() -> None:
        if give_back is not None:
            give_back()
            signal.set_wakeup_fd(wakeup)

    with _handled(SIGNALS, note) as give_back:
        if give_back is None:
            yield caught
            return
        wakeup = signal.set_wakeup_fd(-1)
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
