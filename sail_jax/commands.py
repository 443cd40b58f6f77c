"""The commands of `sail-jax`.

What takes long to import, JAX above all, each of them imports once its input is known to be right.
"""

import argparse
import os
import shutil
import textwrap
from pathlib import Path
from typing import Any

from sail_jax import (
    meanings,
    option_types,
    program_cache,
    reports,
    reward_commands,
    runs,
    saved,
    terminal,
    train_command,
    workloads,
)
from sail_jax.errors import UserError
from sail_jax.labels import command as label_command
from sail_jax.plan import command as plan_command
from sail_jax.training.progress import busy

Commands = Any
"""What `add_subparsers` returns; argparse gives its class no public name."""

DESCRIPTION = """\
SAIL-RevKL: online alignment of policies from preferences.

  sail-jax train configs/quickstart.yaml
  sail-jax train configs/bandit/landscape.yaml
  sail-jax train configs/control/hopper.yaml --seed 1 --objective.beta 0.2 --run-dir runs/hopper
  sail-jax train runs/hopper/config.yaml --run-dir runs/hopper --resume
  sail-jax plan configs/language/qwen2.5-0.5b-ultrafeedback.yaml --on h100:8 v5e:2x4
  sail-jax evaluate runs/hopper --best
  sail-jax plot runs/hopper runs/other --out return.png
  sail-jax render runs/hopper --out hopper.html
  sail-jax export runs/hopper hopper-brax
  sail-jax export runs/aligned aligned-hf
  sail-jax export runs/aligned hf://me/aligned --private
  sail-jax generate runs/aligned "Tell me a story"
  sail-jax label runs/hopper
  sail-jax labels export runs/learned answers.jsonl
  sail-jax reward evaluate runs/learned
  sail-jax metrics
  sail-jax doctor
"""


def run(arguments: list[str]) -> int:
    """Does what the arguments say.

    Returns:
      The exit status.

    Raises:
      UserError, TrainingFailed, Interrupted: what ends a command early.
    """
    option_types.check(arguments)
    program_cache.use()
    if arguments[:1] == ['train']:
        return _train(arguments[1:])
    if arguments[:1] == ['plan']:
        return plan_command.plan(arguments[1:])
    options = parser().parse_args(arguments)
    return options.do(options) or 0


def parser() -> argparse.ArgumentParser:
    """Of the commands but `train` and `plan`, which take settings too."""
    top = option_types.Parser(
        prog='sail-jax',
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = top.add_subparsers(required=True, metavar='COMMAND')
    commands.add_parser('train', help='train a policy; `sail-jax train --help` lists all settings')
    commands.add_parser('plan', help='what a run needs of GPUs or TPUs that are not there')
    for add in (
        _add_evaluate,
        _add_plot,
        _add_render,
        _add_export,
        _add_generate,
        label_command.add,
        reward_commands.add,
        _add_metrics,
        _add_doctor,
    ):
        add(commands)
    return top


def _train(arguments: list[str]) -> int:
    return train_command.train(arguments)


def _add_evaluate(commands: Commands) -> None:
    command = commands.add_parser(
        'evaluate', help="evaluate a run's policy, and the one it started from"
    )
    command.add_argument('run', type=option_types.path, help='a run directory')
    command.add_argument(
        '--episodes', type=option_types.integer(2, 2**20), help="start states; default: the run's"
    )
    _add_best(command)
    command.set_defaults(do=_evaluate)


def _add_plot(commands: Commands) -> None:
    command = commands.add_parser('plot', help='return or loss, and KL, of one or several runs')
    command.add_argument(
        'run', type=option_types.path, nargs='+', help='run directories; seeds become a band'
    )
    command.add_argument(
        '--out', type=option_types.file, default=Path('plot.png'), help='PNG, PDF or SVG'
    )
    command.add_argument(
        '--metric',
        action='append',
        default=[],
        metavar='KEY',
        help='a number of metrics.jsonl, train/margin for example; can be given several times',
    )
    command.add_argument(
        '--smooth',
        type=option_types.integer(1, 2**20),
        default=1,
        metavar='N',
        help='draw the mean of the last N points',
    )
    command.add_argument(
        '--band',
        choices=('range', 'bootstrap'),
        default='range',
        help='of runs of one setting: their mean, lowest and highest (default), or their '
        'interquartile mean and its 95 %% bootstrap interval',
    )
    command.set_defaults(do=_plot)


def _add_render(commands: Commands) -> None:
    command = commands.add_parser('render', help='an episode as a web page or a film')
    command.add_argument('run', type=option_types.path, help='a run directory')
    command.add_argument(
        '--out',
        type=option_types.file,
        default=Path('episode.html'),
        help='a film where it ends in .mp4 or .gif',
    )
    command.add_argument(
        '--seed', type=option_types.integer(0), default=0, help='of the start state'
    )
    command.add_argument('--stochastic', action='store_true', help='sample actions')
    command.add_argument('--start', action='store_true', help='the policy before training')
    _add_best(command)
    command.set_defaults(do=_render)


def _add_export(commands: Commands) -> None:
    command = commands.add_parser(
        'export', help='the policy as a Brax PPO checkpoint, or as a Hugging Face directory'
    )
    command.add_argument('run', type=option_types.path, help='a run directory')
    command.add_argument(
        'out', type=option_types.path, help='a new directory, or hf://OWNER/NAME on the hub'
    )
    command.add_argument('--adapter', action='store_true', help='a LoRA adapter alone, for PEFT')
    command.add_argument(
        '--dtype', choices=('float32', 'bfloat16'), help="of a language model's tensors"
    )
    command.add_argument('--private', action='store_true', help='of a new model on the hub')
    _add_best(command)
    command.set_defaults(do=_export)


def _add_generate(commands: Commands) -> None:
    command = commands.add_parser('generate', help="a language model's responses to prompts")
    command.add_argument('model', type=option_types.path, help='a run, or a Hugging Face directory')
    command.add_argument('prompt', nargs='+')
    command.add_argument('--chat', action='store_true', help="prompts are the user's turn")
    command.add_argument(
        '--samples', type=option_types.integer(1, 2**16), default=1, help='responses to each prompt'
    )
    command.add_argument(
        '--max-tokens',
        type=option_types.integer(1, 2**20),
        help="of a response; default: the run's, 128",
    )
    words = "default: the run's, 1; 0 takes the most probable tokens"
    command.add_argument('--temperature', type=option_types.number, help=words)
    command.add_argument('--seed', type=option_types.integer(0), default=0)
    _add_best(command)
    command.set_defaults(do=_generate)


def _add_metrics(commands: Commands) -> None:
    command = commands.add_parser('metrics', help="what a run's numbers mean, and which are good")
    command.set_defaults(do=_metrics)


def _add_doctor(commands: Commands) -> None:
    command = commands.add_parser('doctor', help='what this host has, and whether it works')
    command.add_argument(
        '--dir', type=option_types.path, help='where to try a checkpoint; default: temporary'
    )
    train_command.add_hosts(command)
    command.set_defaults(do=_doctor)


def _add_best(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--best', action='store_true', help="the run's best checkpoint, not its newest"
    )


def _evaluate(options: argparse.Namespace) -> None:
    run = runs.load(options.run / runs.CONFIG)
    train_command.use_cores(run)
    with busy('evaluating'):
        before, after = runs.evaluate(options.run, options.episodes, options.best)
    kind, which = workloads.of(run), ', best checkpoint' if options.best else ''
    reports.print_comparison(kind.table, f'{options.run}{which}', before, after)
    if remark := kind.remark(run, options.run):
        terminal.error(remark)


def _plot(options: argparse.Namespace) -> int:
    from sail_jax import plots

    picture = plots.plot(
        options.run,
        options.out,
        metrics=options.metric,
        smooth=options.smooth,
        band=options.band,
    )
    terminal.out(str(options.out))
    return UserError.status if picture.left_out else 0


def _render(options: argparse.Namespace) -> None:
    with busy('rendering'):
        episode = saved.render(
            options.run,
            options.out,
            seed=options.seed,
            stochastic=options.stochastic,
            start=options.start,
            best=options.best,
        )
    terminal.out(f'{options.out}: return {episode.episode_return:.1f}')


def _export(options: argparse.Namespace) -> None:
    path = saved.export(
        options.run,
        options.out,
        best=options.best,
        adapter=options.adapter,
        dtype=options.dtype,
        private=options.private,
    )
    terminal.out(str(path))


def _generate(options: argparse.Namespace) -> None:
    with busy('generating'):
        responses = saved.generate(
            options.model,
            options.prompt,
            best=options.best,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            seed=options.seed,
            samples=options.samples,
            chat=options.chat,
        )
    shown = [
        response if options.chat else prompt + response
        for prompt, group in zip(options.prompt, responses, strict=True)
        for response in group
    ]
    terminal.out('\n---\n'.join(shown))


def _metrics(options: argparse.Namespace) -> None:
    width = min(shutil.get_terminal_size().columns, 100)
    for metrics, good, text in meanings.MEANINGS:
        indent = ' ' * 4
        said = textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)
        terminal.out(f'{", ".join(metrics)}: {good}\n{said}')


def _doctor(options: argparse.Namespace) -> int:
    if train_command.start_hosts(options) and options.dir is None:
        raise UserError('doctor: several processes need the same --dir, on a shared disk')
    if options.dir is not None and not os.path.lexists(options.dir):
        raise UserError(f'--dir {options.dir}: there is no such directory')
    from sail_jax import doctor
    from sail_jax.training import platform

    platform.require_usable()
    findings = doctor.examine(options.dir)
    for finding in findings:
        terminal.out(f'{"ok" if finding.well else "FAILED":7} {finding.what:20} {finding.answer}')
    return 0 if all(finding.well for finding in findings) else 1
