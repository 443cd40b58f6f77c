"""`sail-jax plan`: what a run needs, before anything is rented."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sail_jax import configfile, files, option_types, runs, terminal, workloads
from sail_jax.errors import UserError
from sail_jax.plan import targets
from sail_jax.plan.targets import Target

PROG = 'sail-jax plan CONFIG.yaml'
HELP = """\
  sail-jax plan CONFIG.yaml --on TARGET [TARGET ...] [--json FILE] [--section.key VALUE ...]

  Compiles every program of a run with the target's own compiler, without the target, and says
  whether it fits, how long it takes at the least, and where the time goes. Neither data nor
  weights are read; of a model only its config.json, or what is published of it.

  --on TARGET    h100:8 (GPUs of one host), h100:16x8 (hosts x GPUs), v5e:4x4 (a TPU slice); of
                 several a table says where the run is fastest. `--on list` shows all chips.
  --json FILE    takes all figures.
  --section.key  settings, as of `sail-jax train CONFIG.yaml --help`.

  Exit status: 0 it fits everywhere, 1 it does not, 2 bad input."""


def plan(arguments: list[str]) -> int:
    """Does what the arguments after `plan` say; returns the exit status: 0 where the run fits on
    all targets, 1 where not.

    Raises:
      UserError: bad input; a compiler that is not installed.
    """
    path = None
    if arguments and not arguments[0].startswith('-'):
        path, *arguments = arguments
    options, overrides = _parser().parse_known_args(arguments)
    if configfile.wants_help(overrides):
        terminal.out(HELP)
        return 0
    asked = [text for group in options.on or [] for text in group.split(',') if text]
    if asked == ['list']:
        heading, *rows = targets.table()
        terminal.print_table('', heading, rows, justify='left')
        for chip in targets.CHIPS.values():  # A column of addresses would be cut into pieces.
            terminal.out(f'{chip.name}: {chip.source}')
        return 0
    chosen = [targets.parse(text) for text in asked]
    run = workloads.KINDS[0].settings() if path is None else runs.load(path)
    run = configfile.override(run, overrides, PROG, '')
    if path is None:
        raise UserError('plan: which configuration? e.g. sail-jax plan CONFIG.yaml --on h100:8')
    if not chosen:
        raise UserError('plan: --on which target? h100:8 for example; --on list shows them all')
    return _plan(run, path, chosen, options.json)


def _parser() -> argparse.ArgumentParser:
    parser = option_types.Parser(add_help=False, allow_abbrev=False)
    parser.add_argument('--on', nargs='+', metavar='TARGET')
    parser.add_argument('--json', type=option_types.file, metavar='FILE')
    return parser


def _plan(run: Any, path: str, chosen: Sequence[Target], json_file: Path | None) -> int:
    from sail_jax.plan import needs

    kind = workloads.of(run)
    if kind.programs is None:
        raise UserError(
            f'plan: not for {kind.name} runs, but for those of {workloads.names("plan")}'
        )
    kind.check(run)
    for target in chosen:
        needs.require(target)
    # Nothing is run, and a GPU of this host is left to others.
    if 'jax' not in sys.modules:
        os.environ['JAX_PLATFORMS'] = 'cpu'
    from sail_jax.plan import report, screen, topology
    from sail_jax.training.progress import Stages

    made = []
    with Stages() as stages:
        for target in chosen:
            stages.stage(f'{target}: tracing the programs')
            programs = kind.programs(run, topology.devices(target))
            made.append(report.make(programs, target, stages.stage))
    for one in made:
        screen.show(one, path)
    if len(made) > 1:
        screen.compare(made)
    if json_file is not None:
        config = run.model_dump(mode='json')
        said = [report.as_json(one, config) for one in made]
        content = json.dumps(said[0] if len(said) == 1 else said, indent=1) + '\n'
        files.write(json_file, content.encode())
    return 0 if all(one.fits for one in made) else 1
