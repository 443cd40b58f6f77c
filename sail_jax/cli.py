"""The `sail-jax` command: statuses, signals, and one line for what goes wrong.

Nothing that takes long is imported before the signals of a training run are looked after.
"""

import errno
import os
import sys
import traceback

from sail_jax import streams
from sail_jax.errors import Interrupted, NotJoined, TrainingFailed, UserError, one_line
from sail_jax.training import signals


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    training = arguments[:1] == ['train']
    with streams.lasting() as out:
        try:
            status = _status(arguments, training)
        except SystemExit:  # After `--help`, which leaves nothing but what it prints.
            out.flush()
            if out.error is None:
                raise
            status, training = 0, False
        out.flush()
        lost = out.error
        if lost is None or lost.errno == errno.EPIPE:  # `| head -1` has read what it wanted.
            return status
        print(f'sail-jax: standard output: {lost.strerror}', file=sys.stderr)
    # A run is in its directory, whoever reads its table; other commands have nothing but it.
    return status if training else status or 1


def _status(arguments: list[str], training: bool) -> int:
    try:
        with signals.ending_the_process() if training else signals.interrupting():
            return _main(arguments)
    except KeyboardInterrupt:
        print('sail-jax: interrupted', file=sys.stderr)
        return 130


def _main(arguments: list[str]) -> int:
    from sail_jax import commands, terminal

    terminal.log_to_stderr()
    try:
        return commands.run(arguments)
    except NotJoined as error:
        terminal.error(str(error))
        os._exit(error.status)  # An orderly end would have JAX complain at length.
    except (UserError, TrainingFailed, Interrupted) as error:
        terminal.error(str(error))
        return error.status
    except Warning as error:  # Of a library, as it is imported.
        terminal.error(f'the environment: PYTHONWARNINGS makes an error of {one_line(error)!r}')
        return UserError.status
    except Exception as error:
        if _of_the_environment(error):
            terminal.error(f'the environment: {one_line(error)}')
            return UserError.status
        if 'jax' not in sys.modules:
            raise
        return _jax_failed(error)


def _of_the_environment(error: Exception) -> bool:
    """Whether it is of JAX or Matplotlib, that read their settings from the environment when they
    are imported."""
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    readers = ('jax', '_src', 'config.py'), ('matplotlib', '__init__.py')
    return isinstance(error, ValueError) and where.endswith(tuple(map(os.sep.join, readers)))


def _jax_failed(error: Exception) -> int:
    """What a device or another process did."""
    import jax

    from sail_jax import terminal
    from sail_jax.training import devices

    if not isinstance(error, jax.errors.JaxRuntimeError):
        raise error
    full, reason = devices.out_of_memory(error), one_line(error)
    if jax.process_count() == 1:
        if not full:
            raise error
        terminal.error(f'out of device memory ({reason}); use devices with more')
        return TrainingFailed.status
    what = 'out of device memory' if full else 'another process of the run is gone'
    terminal.error(
        f'process {jax.process_index()}: {what} ({reason}); start all of them again with --resume'
    )
    os._exit(1)  # An orderly end would wait for the one that is gone.


if __name__ == '__main__':
    sys.exit(main())
