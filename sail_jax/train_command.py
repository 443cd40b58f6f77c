"""`sail-jax train`: its options, its help, its end."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import pydantic
import tyro

from sail_jax import config, configfile, option_types, reports, runs, terminal, workloads
from sail_jax.errors import UserError
from sail_jax.sweep import Members
from sail_jax.training import alarms, signals

PROG = 'sail-jax train CONFIG.yaml'
HELP = """\
  sail-jax train CONFIG.yaml [--run-dir DIR] [--resume] [--quiet] [--section.key VALUE ...]

  CONFIG.yaml is one of configs/, your own, or the config.yaml of a run. Its `workload` says
  what it trains:
{workloads}

  The settings below are those of {name} files; `sail-jax train CONFIG.yaml --help` has those of
  another. Each can be given on the command line, where it wins over the file. The run directory
  takes config.yaml, metrics.jsonl, checkpoints/ and tensorboard/. On several hosts start the same
  command on each, with --distributed, or with --coordinator, --num-processes and --process-id.

  Exit status: 0 done, 1 training failed, 2 bad input, 75 stopped by SIGTERM and 130 by Ctrl-C:
  saved, or nothing begun; start it again with --resume."""
# Lines that begin with a space are not joined when they are printed.

DEFAULT = ' (default: %(default)s)'
"""As argparse writes it; tyro, which prints settings, adds it by itself."""


def add_hosts(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Adds the options of a run of several processes."""
    return [
        parser.add_argument(
            '--distributed',
            action='store_true',
            help='several processes: SLURM, Cloud TPU, GKE, Open MPI',
        ),
        parser.add_argument(
            '--coordinator',
            metavar='HOST:PORT',
            help='of process 0, elsewhere',
        ),
        parser.add_argument(
            '--num-processes',
            metavar='N',
            type=option_types.integer(1, 2**16),
            help='how many there are, with --coordinator',
        ),
        parser.add_argument(
            '--process-id',
            metavar='I',
            type=option_types.integer(0, 2**16),
            help='which one this is, from 0 on, with --coordinator',
        ),
        parser.add_argument(
            '--join-timeout',
            metavar='S',
            type=option_types.seconds,
            default=300,
            help=f'seconds to wait for the others{DEFAULT}',
        ),
    ]


def start_hosts(options: argparse.Namespace) -> bool:
    """Joins the processes that the options speak of; whether there are others."""
    explicit = (options.coordinator, options.num_processes, options.process_id)
    if not options.distributed and all(value is None for value in explicit):
        return False
    from sail_jax.training import hosts

    return hosts.start(*explicit, options.join_timeout) > 1


def use_cores(run: config.Settings) -> None:
    """Makes a device of each core that the run can have a use for; see `Kind.cores`."""
    kind = workloads.of(run)
    if kind.cores is not None:
        from sail_jax.training import devices

        devices.use_cores(kind.cores(run))


def train(arguments: list[str]) -> int:
    """Does what the arguments after `train` say; returns the exit status.

    Raises:
      UserError, TrainingFailed, Interrupted: what ends a run early.
    """
    path = None
    if arguments and not arguments[0].startswith('-'):
        path, *arguments = arguments
    parser = option_types.Parser(add_help=False, allow_abbrev=False)
    actions = _add_options(parser)
    options, overrides = parser.parse_known_args(arguments)
    if path is None and any(Path(value).suffix in ('.yaml', '.yml') for value in overrides):
        raise UserError('train: CONFIG.yaml comes first, the settings after it')
    if configfile.wants_help(overrides):
        _print_help(path, actions, overrides)
    run = workloads.KINDS[0].settings() if path is None else runs.load(path)
    run = configfile.override(run, overrides, PROG, '')
    if path is None:
        raise UserError('train: which configuration? e.g. sail-jax train configs/quickstart.yaml')
    if options.resume and options.run_dir is None:
        raise UserError('train: --resume needs the --run-dir of the run to go on with')
    if options.run_dir is not None:
        signals.name_run(options.run_dir)
    workloads.of(run).check(run)
    if not options.quiet and 'jax' not in sys.modules and options.process_id in (None, 0):
        terminal.say(f'{path}: loading JAX and what else the run needs')
    _start_devices(run, options)
    run_dir = options.run_dir or runs.default_run_dir(runs.default_name(path, run))
    signals.name_run(run_dir)
    with alarms.kept_off():
        result = runs.train(run, run_dir, resume=options.resume, quiet=options.quiet)
    from sail_jax.training import hosts

    if hosts.is_main():
        _report(run, result, run_dir)
    return 0


def _add_options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [
        parser.add_argument(
            '--run-dir',
            metavar='DIR',
            type=option_types.path,
            help='where the run is, or goes; none is runs/NAME-DATE-TIME',
        ),
        parser.add_argument(
            '--resume', action='store_true', help='go on with the run that is in --run-dir'
        ),
        parser.add_argument('--quiet', action='store_true', help='no progress bar'),
        *add_hosts(parser),
    ]


def _start_devices(run: config.Settings, options: argparse.Namespace) -> None:
    several = start_hosts(options)
    if not several:
        use_cores(run)
    elif options.run_dir is None:
        raise UserError('train: several processes need the same --run-dir, on a shared disk')


def _report(run: Any, result: Any, run_dir: Path) -> None:
    kind = workloads.of(run)
    if kind.study is not None:
        kind.study.report(result)
    elif Members.of(run).sweep:
        reports.print_sweep(run, result)
    else:
        reports.print_result(run, result)
    terminal.out(f'run directory: {run_dir}')
    if kind.leaves is not None:
        terminal.out(f'{kind.leaves}: {run_dir / kind.leaves}')
    if commands := reports.next_commands(run, result, run_dir):
        terminal.out('\n  '.join(['next:', *commands]))


def _print_help(path: str | None, actions: list[argparse.Action], arguments: list[str]) -> None:
    """Prints options and settings, with a file's values where they are right, and exits."""
    kind, model, run = workloads.KINDS[0], workloads.KINDS[0].settings, None
    if path is None:
        run = model()
    else:
        try:
            data, _ = configfile.read_yaml(Path(path))
            kind, model = workloads.of_file(data, Path(path)), workloads.settings(data, Path(path))
        except UserError as error:
            terminal.error(f'{error}; these are the settings of {kind.name} runs')
        with contextlib.suppress(UserError):
            run = runs.load(path)
    others = '\n'.join(f'    {kind.name:20} {kind.trains}' for kind in workloads.kinds())
    text = HELP.format(workloads=others, name=kind.name)
    model = _with_options(model, actions)
    if run is None:
        configfile.print_help(model, PROG, text)
    configfile.override(model.model_validate(run.model_dump()), arguments, PROG, text)


def _with_options(model: type[config.Settings], actions: list[argparse.Action]) -> type[Any]:
    """The settings of a file, with the options of the command before them."""
    fields: dict[str, Any] = {}
    for action in actions:
        if action.nargs == 0:
            annotation = tyro.conf.FlagCreatePairsOff[bool]
        else:
            annotation = str | None if action.default is None else type(action.default)
        if action.metavar is not None:
            metavar: Any = action.metavar
            annotation = Annotated[annotation, tyro.conf.arg(metavar=metavar)]
        what = (action.help or '').removesuffix(DEFAULT)
        fields[action.dest] = annotation, pydantic.Field(action.default, description=what)
    options = pydantic.create_model('Options', __base__=config.Section, **fields)
    return pydantic.create_model(model.__name__, __base__=(model, options), __doc__=model.__doc__)
