"""The `sail-jax` command."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

import jax

from sail_jax import config, configfile, devices, hosts, metrics, runs
from sail_jax.bandit import study
from sail_jax.control.config import ControlRun
from sail_jax.errors import Interrupted, TrainingFailed, UserError, one_line
from sail_jax.files import writing
from sail_jax.language.config import LanguageRun
from sail_jax.language.quickstart import study as quickstart
from sail_jax.language.quickstart.study import Outcome
from sail_jax.language.sft.config import SftRun
from sail_jax.trainer import Result, default_run_dir

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
TPU, GKE, Open MPI) or --coordinator HOST:PORT --num-processes N --process-id I. Exit status: 0
done, 1 training failed, 2 bad input, 75 stopped by SIGTERM and 130 by Ctrl-C, both after saving."""

# The rows of the final table: title, metric, and the metric of its standard error.
TABLE = (
    ('return, stochastic', 'return', 'return_se'),
    ('return, deterministic', 'deterministic_return', 'deterministic_return_se'),
    ('median return, stochastic', 'return_q50', None),
    ('episode length', 'length', None),
    ('KL(policy || reference) per step', 'kl_policy_to_ref', None),
    ('KL(reference || policy) per step', 'kl_ref_to_policy', None),
    ('win rate against the reference', 'win_rate', None),
    ('label accuracy, whole episodes', 'label_accuracy', None),
)
LANGUAGE_TABLE = (
    ('reward', 'reward', 'reward_se'),
    ('win rate against the reference', 'win_rate', None),
    ('KL(policy || reference) per response', 'response_kl_policy_to_ref', None),
    ('KL(reference || policy) per response', 'response_kl_ref_to_policy', None),
    ('accuracy on held-out pairs', 'pair_accuracy', None),
    ('margin on held-out pairs', 'pair_margin', 'pair_margin_se'),
    ('response length, tokens', 'response_length', None),
    ('responses that ended', 'ended', None),
    ('loss on held-out responses, nats per token', 'loss', None),
    ('perplexity on held-out responses', 'perplexity', None),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    logging.basicConfig(format='sail-jax: %(message)s', level=logging.WARNING, force=True)
    for name in ('absl', 'asyncio'):  # Orbax says in many lines what we say in one.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with devices.memory_named('use devices with more'):
            return _main(arguments)
    except (UserError, TrainingFailed, Interrupted) as error:
        print(f'sail-jax: {" ".join(str(error).split())}', file=sys.stderr)
        return error.status
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        full = devices.out_of_memory(error)
        what = 'out of device memory' if full else 'another process of the run is gone'
        print(
            f'sail-jax: process {jax.process_index()}: {what} ({one_line(error)}); '
            'start all of them again with --resume',
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # An orderly end would wait for the one that is gone.
    except BrokenPipeError:  # `sail-jax train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print('sail-jax: interrupted', file=sys.stderr)
        return 130


def _main(arguments: list[str]) -> int:
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
    command.add_argument('--episodes', type=int, help="start states; default: the run's setting")
    _add_best(command)
    command.set_defaults(do=_evaluate)

    command = commands.add_parser('plot', help='return or loss, and KL, of one or several runs')
    command.add_argument('run', type=Path, nargs='+', help='run directories; seeds become a band')
    command.add_argument('--out', type=Path, default=Path('plot.png'), help='PNG, PDF or SVG')
    command.set_defaults(do=_plot)

    command = commands.add_parser('render', help='an episode as a web page')
    command.add_argument('run', type=Path, help='a run directory')
    command.add_argument('--out', type=Path, default=Path('episode.html'))
    command.add_argument('--seed', type=int, default=0, help='of the start state')
    command.add_argument('--stochastic', action='store_true', help='sample actions')
    command.add_argument('--start', action='store_true', help='the policy before training')
    _add_best(command)
    command.set_defaults(do=_render)

    command = commands.add_parser(
        'export', help='the policy as a Brax PPO checkpoint, or as a Hugging Face directory'
    )
    command.add_argument('run', type=Path, help='a run directory')
    command.add_argument('out', type=Path, help='a new directory')
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
    command.add_argument('--samples', type=int, default=1, help='responses to each prompt')
    command.add_argument('--max-tokens', type=int, help="of a response; default: the run's, 128")
    command.add_argument('--temperature', type=float, help="default: the run's, 1")
    command.add_argument('--seed', type=int, default=0)
    _add_best(command)
    command.set_defaults(do=_generate)

    command = commands.add_parser('doctor', help='what this host has, and whether it works')
    command.add_argument('--dir', type=Path, help='where to try a checkpoint; default: temporary')
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
    parser.add_argument('--num-processes', type=int)
    parser.add_argument('--process-id', type=int)


def _start_hosts(options: argparse.Namespace) -> bool:
    """Joins the processes that the options speak of; whether there are any."""
    explicit = (options.coordinator, options.num_processes, options.process_id)
    if not options.distributed and all(value is None for value in explicit):
        return False
    hosts.start(*explicit)
    return True


def _train(arguments: list[str]) -> int:
    path = None
    if arguments and not arguments[0].startswith('-'):
        path, *arguments = arguments
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument('--run-dir', type=Path)
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
    several = _start_hosts(options)
    if not several:
        _use_cores(run)
    if several and options.run_dir is None:
        raise UserError('train: several processes need the same --run-dir, on a shared disk')
    run_dir = options.run_dir or default_run_dir(Path(path).stem)
    result = runs.train(run, run_dir, resume=options.resume, quiet=options.quiet)
    if not hosts.is_main():
        return 0
    if isinstance(result, Result):
        _print_result(result)
    elif isinstance(result, Outcome):
        quickstart.report(result)
    elif isinstance(run, config.Run):
        _print_sweep(run, result)
    else:
        study.print_table(result)
    print(f'run directory: {run_dir}')
    return 0


def _kind(path: str) -> type[config.Settings]:
    """What a file configures; what it would without a workload, where it cannot be read."""
    try:
        return runs.kind(path)
    except UserError as error:
        print(f'sail-jax: {error}; these are the settings of control runs', file=sys.stderr)
        return ControlRun


def _print_result(result: Result) -> None:
    print_comparison(
        f'{result.length:,} {result.unit.replace("_", " ")}, {result.labels:,} labels, '
        f'{result.wall_s:.0f} s',
        _strip(result.before),
        _strip(result.after),
    )


def _strip(row: metrics.Row) -> metrics.Row:
    return {key.removeprefix('eval/'): value for key, value in row.items()}


def _print_sweep(run: config.Run, results: list[Result]) -> None:
    names = [member.name for member in config.members(run)]
    keys = TABLE[:2] + TABLE[4:5]
    rows = []
    for name, result in zip(names, results, strict=True):
        before, after = _strip(result.before), _strip(result.after)
        cells = [_cell(row, *key) for _, *key in keys for row in (before, after)]
        rows.append((name, *cells))
    columns = [f'{title}: {who}' for title, *_ in keys for who in ('reference', 'trained')]
    title = f'{results[0].length:,} steps each, {results[0].wall_s:.0f} s'
    metrics.print_table(title, ('', *columns), rows)


def print_comparison(title: str, before: metrics.Row, after: metrics.Row) -> None:
    """The table of reference against trained policy."""
    table = TABLE if TABLE[0][1] in after else LANGUAGE_TABLE
    table = [row for row in table if row[1] in after]
    rows = [(name, _cell(before, *keys), _cell(after, *keys)) for name, *keys in table]
    metrics.print_table(title, ('', 'reference', 'trained policy'), rows)


def _cell(numbers: metrics.Row, key: str, error: str | None) -> str:
    value = f'{numbers[key]:.3f}' if abs(numbers[key]) < 10 else f'{numbers[key]:.1f}'
    if f'{key}_low' in numbers:  # A 95 % interval.
        return f'{value} ({numbers[f"{key}_low"]:.2f} to {numbers[f"{key}_high"]:.2f})'
    return f'{value} ± {numbers[error]:.2g}' if error else value


def _evaluate(options: argparse.Namespace) -> None:
    if options.episodes is not None and options.episodes < 2:
        raise UserError(f'--episodes: at least 2, got {options.episodes}')
    run = runs.load(options.run / 'config.yaml')
    _use_cores(run)
    before, after = runs.evaluate(options.run, options.episodes, options.best)
    which = ', best checkpoint' if options.best else ''
    print_comparison(f'{options.run}{which}', before, after)
    if isinstance(run, LanguageRun) and run.needs_function:
        print(
            f'sail-jax: {options.run}: labelled by a function from Python; evaluate it from Python '
            f"for the rows of its reward: sail_jax.evaluate('{options.run}', reward=f)",
            file=sys.stderr,
        )


def _plot(options: argparse.Namespace) -> int:
    from sail_jax import plots

    curves, refused = plots.load_all(options.run)
    if not curves:
        raise UserError('; '.join(map(str, refused)))
    plots.plot(curves, options.out)
    print(options.out)
    for error in refused:
        print(f'sail-jax: not drawn: {error}', file=sys.stderr)
    return UserError.status if refused else 0


def _render(options: argparse.Namespace) -> None:
    from sail_jax.control import render

    if not isinstance(runs.load(options.run / 'config.yaml'), ControlRun):
        raise UserError(f'{options.run}: render is for control runs')
    run, policy, start = runs.open_run(options.run, options.best)
    policy = start if options.start else policy
    episode_return = render.render(run, policy, options.out, options.seed, options.stochastic)
    print(f'{options.out}: return {episode_return:.1f}')


def _export(options: argparse.Namespace) -> None:
    from sail_jax.control import render
    from sail_jax.language import export

    run = runs.load(options.run / 'config.yaml')
    if isinstance(run, LanguageRun | SftRun):
        opened = export.open_run(options.run, run, options.best)
        with writing(options.out):
            path = export.export(opened, options.out, options.adapter, options.dtype)
        print(path)
        return
    if options.adapter or options.dtype:
        raise UserError('--adapter, --dtype: for language runs')
    run, policy, _ = runs.open_run(options.run, options.best)
    print(render.export_brax(run, policy, options.out))


def _generate(options: argparse.Namespace) -> None:
    from sail_jax.language import export
    from sail_jax.language.sampler import Sampling

    if options.samples < 1:
        raise UserError(f'--samples: at least 1, got {options.samples}')
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
    print('\n---\n'.join(shown))


def _doctor(options: argparse.Namespace) -> int:
    if _start_hosts(options) and options.dir is None:
        raise UserError('doctor: several processes need the same --dir, on a shared disk')
    from sail_jax import doctor

    found = doctor.examine(options.dir)
    for finding in found:
        print(f'{"ok" if finding.well else "FAILED":7} {finding.what:20} {finding.answer}')
    return 0 if all(finding.well for finding in found) else 1


def _use_cores(run: config.Settings) -> None:
    if isinstance(run, ControlRun):
        devices.use_cores(len(config.members(run)) or run.rollout.parts)


def _use_compilation_cache() -> None:
    """Keeps compiled programs between processes, unless JAX_COMPILATION_CACHE_DIR says where."""
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'sail_jax'
        jax.config.update('jax_compilation_cache_dir', str(cache))


if __name__ == '__main__':
    sys.exit(main())
