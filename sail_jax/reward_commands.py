"""`sail-jax labels` and `sail-jax reward`: what a run was told of pairs, and what it made of it."""

import argparse
from pathlib import Path
from typing import Any

from sail_jax import files, option_types, saved, terminal
from sail_jax.errors import UserError
from sail_jax.training.progress import busy


def add(commands: Any) -> None:
    """Adds both to the parser of `sail-jax`."""
    labels = commands.add_parser('labels', help='answered pairs of a run, as a file')
    _add_export(
        labels.add_subparsers(required=True, metavar='COMMAND'),
        'the pairs that a run has asked about, with the answers',
        'a file to write: JSON lines, or an ArrayRecord if it ends in .arrayrecord',
        _export_labels,
    )
    reward = commands.add_parser('reward', help='the reward that a run has learned')
    of_reward = reward.add_subparsers(required=True, metavar='COMMAND')
    _add_export(
        of_reward,
        'the reward as a file, for reward.path of other runs',
        'a file to write, .safetensors',
        _export_reward,
    )
    _add_evaluate(of_reward)


def _add_export(commands: Any, what: str, out: str, do: Any) -> None:
    command = commands.add_parser('export', help=what, description=what)
    command.add_argument('run', type=option_types.path, help='a run directory')
    command.add_argument('out', type=option_types.file, help=out)
    command.set_defaults(do=do)


def _add_evaluate(commands: Any) -> None:
    what = 'how learned and true returns go together, on segments and episodes, with a picture'
    command = commands.add_parser('evaluate', help=what, description=what)
    command.add_argument(
        'reward', type=option_types.path, help='a run directory, or a file of `reward export`'
    )
    command.add_argument(
        '--on',
        type=option_types.path,
        metavar='RUN',
        help="whose policies act; default: the reward's own run",
    )
    command.add_argument(
        '--episodes',
        type=option_types.integer(2, 2**16),
        default=32,
        help='of the start policy and of the trained one',
    )
    command.add_argument(
        '--answers',
        type=option_types.path,
        metavar='FILE',
        help='answered pairs of `labels export`, of another run for example: accuracy, calibration',
    )
    command.add_argument('--out', type=option_types.file, default=Path('reward.png'))
    command.set_defaults(do=_evaluate)


def _export_labels(options: argparse.Namespace) -> None:
    terminal.out(str(saved.export_labels(options.run, options.out)))


def _export_reward(options: argparse.Namespace) -> None:
    terminal.out(str(saved.export_reward(options.run, options.out)))


def _evaluate(options: argparse.Namespace) -> None:
    if not files.exists(options.reward):
        raise UserError(f'{options.reward}: no such file or directory')
    file = None if options.reward.is_dir() else options.reward
    if file is not None and options.on is None:
        raise UserError(
            f'{file}: a reward has no behaviour to judge; name a run whose policies act: --on RUN'
        )
    with busy('evaluating'):
        report = saved.evaluate_reward(
            options.on or options.reward,
            reward=options.reward if options.on else None,
            episodes=options.episodes,
            answers=options.answers,
        )
    report.picture.write(options.out)
    for name, value in report.numbers.items():
        terminal.out(f'{name:28} {value:.4g}')
    terminal.out(str(options.out))
