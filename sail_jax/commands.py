"""The commands of `sail-jax`.

What takes long to import, JAX above all, each of them imports once its input is known to be right.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from sail_jax import config, configfile, option_types, reports, runs, terminal
from sail_jax.bandit import config as bandit
from sail_jax.control.config import ControlRun
from sail_jax.errors import UserError
from sail_jax.files import writing
from sail_jax.language.config import LanguageRun, Sampling
from sail_jax.language.quickstart.config import QuickstartRun
from sail_jax.language.sft.config import SftRun
from sail_jax.sweep import Members
from sail_jax.training import alarms, signals

DESCRIPTION = """\
SAIL-RevKL: online alignment of policies from preferences.

  sail-jax train configs/quickstart.yaml
  sail-jax train configs/bandit/landscape.yaml
  sail-jax train configs/control/hopper.yaml --seed 1 --objective.beta 0.2 --run-dir runs/hopper
  sail-jax train runs/hopper/config.yaml --run-dir runs/hopper --resume
  sail-jax evaluate runs/hopper --best
  sail-jax plot runs/hopper runs/other --out return.png
  sail-jax render runs/hopper --out hopper.html
  sail-jax export runs/hopper hopper-brax
  sail-jax export runs/aligned aligned-hf
  sail-jax generate runs/aligned "Tell me a story"
  sail-jax doctor
"""

PROG = 'sail-jax train CONFIG.yaml'
TRAIN = """\
sail-jax train CONFIG.yaml [--section.key VALUE ...] [--run-dir DIR] [--resume] [--quiet]

CONFIG.yaml is one of configs/, your own, or the config.yaml of a run. Every field below can be
given on the command line, where it wins over the file. --run-dir (default: runs/NAME-DATE-TIME)
takes config.yaml, metrics.jsonl, checkpoints/ and tensorboard/; --resume goes on with the run
that is there. On several hosts start the same command on each, with --distributed (SLURM, Cloud
TPU, GKE, Open MPI) or --coordinator HOST:PORT --num-processes N --process-id I; they wait for
each other for --join-timeout seconds (300). Exit status: 0 done, 1 training failed, 2 bad input,
75 stopped by SIGTERM and 130 by Ctrl-C: saved, or nothing begun; start it again with --resume."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def run(arguments: list[str]) -> int:
    """Does what the arguments say.

    Returns:
      The exit status.

    Raises:
      UserError, TrainingFailed, Interrupted: what ends a command early.
    """
    option_types.check(arguments)
    _use_compilation_cache()
    if arguments[:1] == ['train']:
        return _train(arguments[1:])
    parser = _Parser(
        prog='sail-jax',
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    commands.add_parser('train', help='train a policy; `sail-jax train --help` lists all settings')

    command = commands.add_parser('evaluate', help="evaluate a run's policy and its reference")
    command.add_argument('run', type=Path, help='a run directory')
    command.add_argument(
        '--episodes', type=option_types.integer(2, 2**20), help="start states; default: the run's"
    )
    _add_best(command)
    command.set_defaults(do=_evaluate)

    command = commands.add_parser('plot', help='return or loss, and KL, of one or several runs')
    command.add_argument('run', type=Path, nargs='+', help='run directories; seeds become a band')
    command.add_argument(
        '--out', type=option_types.file, default=Path('plot.png'), help='PNG, PDF or SVG'
    )
    command.set_defaults(do=_plot)

    command = commands.add_parser('render', help='an episode as a web page')
    command.add_argument('run', type=Path, help='a run directory')
    command.add_argument('--out', type=option_types.file, default=Path('episode.html'))
    command.add_argument(
        '--seed', type=option_types.integer(0), default=0, help='of the start state'
    )
    command.add_argument('--stochastic', action='store_true', help='sample actions')
    command.add_argument('--start', action='store_true', help='the policy before training')
    _add_best(command)
    command.set_defaults(do=_render)

    command = commands.add_parser(
        'export', help='the policy as a Brax PPO checkpoint, or as a Hugging Face directory'
    )
    command.add_argument('run', type=Path, help='a run directory')
    command.add_argument('out', type=option_types.path, help='a new directory')
    command.add_argument('--adapter', action='store_true', help='a LoRA adapter alone, for PEFT')
    command.add_argument(
        '--dtype', choices=('float32', 'bfloat16'), help="of a language model's tensors"
    )
    _add_best(command)
    command.set_defaults(do=_export)

    command = commands.add_parser('generate', help="a language model's responses to prompts")
    command.add_argument('model', type=Path, help='a run, or a Hugging Face directory')
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
    command.add_argument('--temperature', type=option_types.number, help="default: the run's, 1")
    command.add_argument('--seed', type=option_types.integer(0), default=0)
    _add_best(command)
    command.set_defaults(do=_generate)

    command = commands.add_parser('doctor', help='what this host has, and whether it works')
    command.add_argument(
        '--dir', type=option_types.path, help='where to try a checkpoint; default: temporary'
    )
    _add_hosts(command)
    command.set_defaults(do=_doctor)

    options = parser.parse_args(arguments)
    return options.do(options) or 0


def _add_best(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--best', action='store_true', help="the run's best checkpoint, not its newest"
    )


def _add_hosts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--distributed', action='store_true', help='several processes: SLURM, Cloud TPU, GKE, MPI'
    )
    parser.add_argument('--coordinator', help='HOST:PORT of process 0, elsewhere')
    parser.add_argument('--num-processes', type=option_types.integer(1, 2**16))
    parser.add_argument('--process-id', type=option_types.integer(0, 2**16))
    parser.add_argument(
        '--join-timeout',
        type=option_types.seconds,
        default=300,
        help='seconds to wait for the others; 300',
    )


def _start_hosts(options: argparse.Namespace) -> bool:
    """Joins the processes that the options speak of; whether there are others."""
    explicit = (options.coordinator, options.num_processes, options.process_id)
    if not options.distributed and all(value is None for value in explicit):
        return False
    from sail_jax.training import hosts

    return hosts.start(*explicit, options.join_timeout) > 1


def _train(arguments: list[str]) -> int:
    path = None
    if arguments and not arguments[0].startswith('-'):
        path, *arguments = arguments
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument('--run-dir', type=option_types.path)
    parser.add_argument('--resume', action='store_true')
    parser.add_argument('--quiet', action='store_true')
    _add_hosts(parser)
    options, overrides = parser.parse_known_args(arguments)
    if path is None and any(Path(value).suffix in ('.yaml', '.yml') for value in overrides):
        raise UserError('train: CONFIG.yaml comes first, the settings after it')
    try:
        run = ControlRun() if path is None else runs.load(path)
    except UserError:
        if not configfile.wants_help(overrides):
            raise
        configfile.print_help(_kind(path), PROG, TRAIN)
    run = configfile.override(run, overrides, PROG, TRAIN)
    if path is None:
        raise UserError('train: which configuration? e.g. sail-jax train configs/quickstart.yaml')
    if options.resume and options.run_dir is None:
        raise UserError('train: --resume needs the --run-dir of the run to go on with')
    if options.run_dir is not None:
        signals.name_run(options.run_dir)
    runs.check(run)
    if not options.quiet and 'jax' not in sys.modules and options.process_id in (None, 0):
        terminal.say(f'{path}: loading JAX and what else the run needs')
    several = _start_hosts(options)
    if not several:
        _use_cores(run)
    if several and options.run_dir is None:
        raise UserError('train: several processes need the same --run-dir, on a shared disk')
    run_dir = options.run_dir or runs.default_run_dir(runs.default_name(path, run))
    signals.name_run(run_dir)
    with alarms.kept_off():
        result = runs.train(run, run_dir, resume=options.resume, quiet=options.quiet)
    from sail_jax.training import hosts

    if hosts.is_main():
        _report(run, result)
        terminal.out(f'run directory: {run_dir}')
    return 0


def _report(run: config.Settings, result: Any) -> None:
    if isinstance(run, QuickstartRun):
        from sail_jax.language.quickstart import study as quickstart

        quickstart.report(result)
    elif isinstance(run, bandit.Study):
        from sail_jax.bandit import study

        study.print_table(result)
    elif Members.of(run).sweep:
        reports.print_sweep(run, result)
    else:
        reports.print_result(result)


def _kind(path: str) -> type[config.Settings]:
    """What a file configures; what it would without a workload, where it cannot be read."""
    try:
        return runs.kind(path)
    except UserError as error:
        terminal.error(f'{error}; these are the settings of control runs')
        return ControlRun


def _evaluate(options: argparse.Namespace) -> None:
    run = runs.load(options.run / 'config.yaml')
    _use_cores(run)
    before, after = runs.evaluate(options.run, options.episodes, options.best)
    which = ', best checkpoint' if options.best else ''
    reports.print_comparison(f'{options.run}{which}', before, after)
    if isinstance(run, LanguageRun) and run.needs_function:
        terminal.error(
            f'{options.run}: labelled by a function from Python; evaluate it from Python '
            f"for the rows of its reward: sail_jax.evaluate('{options.run}', reward=f)"
        )


def _plot(options: argparse.Namespace) -> int:
    from sail_jax import plots

    curves, refused = plots.load_all(options.run)
    if not curves:
        raise UserError('; '.join(map(str, refused)))
    plots.plot(curves, options.out)
    terminal.out(str(options.out))
    for error in refused:
        terminal.error(f'not drawn: {error}')
    return UserError.status if refused else 0


def _render(options: argparse.Namespace) -> None:
    if not isinstance(runs.load(options.run / 'config.yaml'), ControlRun):
        raise UserError(f'{options.run}: render is for control runs')
    from sail_jax.control import render

    run, policy, start = runs.open_run(options.run, options.best)
    policy = start if options.start else policy
    which = 'best checkpoint' if options.best else 'trained policy'
    episode_return = render.render(
        run,
        policy,
        options.out,
        options.seed,
        options.stochastic,
        name=options.run.resolve().name,
        whose='policy before training' if options.start else which,
    )
    terminal.out(f'{options.out}: return {episode_return:.1f}')


def _export(options: argparse.Namespace) -> None:
    run = runs.load(options.run / 'config.yaml')
    if isinstance(run, LanguageRun | SftRun):
        from sail_jax.language import export

        opened = export.open_run(options.run, run, options.best)
        with writing(options.out):
            path = export.export(opened, options.out, options.adapter, options.dtype)
        terminal.out(str(path))
        return
    if options.adapter or options.dtype:
        raise UserError('--adapter, --dtype: for language runs')
    from sail_jax.control import render

    run, policy, _ = runs.open_run(options.run, options.best)
    terminal.out(str(render.export_brax(run, policy, options.out)))


def _generate(options: argparse.Namespace) -> None:
    from sail_jax.language import export
    from sail_jax.training import devices

    decoder, tokenizer, sampling = export.load(options.model, options.best)
    given = {'max_tokens': options.max_tokens, 'temperature': options.temperature}
    given = {key: value for key, value in given.items() if value is not None}
    sampling = configfile.validate(Sampling, sampling.model_dump() | given, Path('generate'), None)
    with devices.memory_named('lower --samples or --max-tokens, or give fewer prompts'):
        responses = export.generate(
            decoder,
            tokenizer,
            options.prompt,
            sampling,
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


def _doctor(options: argparse.Namespace) -> int:
    if _start_hosts(options) and options.dir is None:
        raise UserError('doctor: several processes need the same --dir, on a shared disk')
    if options.dir is not None and not os.path.lexists(options.dir):
        raise UserError(f'--dir {options.dir}: there is no such directory')
    from sail_jax import doctor

    found = doctor.examine(options.dir)
    for finding in found:
        terminal.out(f'{"ok" if finding.well else "FAILED":7} {finding.what:20} {finding.answer}')
    return 0 if all(finding.well for finding in found) else 1


def _use_cores(run: config.Settings) -> None:
    if isinstance(run, ControlRun):
        from sail_jax.training import devices

        members = Members.of(run)
        devices.use_cores(len(members.each) if members.sweep else run.rollout.parts)


def _use_compilation_cache() -> None:
    """Has JAX, once it is imported, keep compiled programs between processes, unless the user's
    JAX_COMPILATION_CACHE_DIR says where."""
    cache = Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'))
    if cache.is_absolute():  # Not every user has a home.
        os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache / 'sail_jax'))
