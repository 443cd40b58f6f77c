"""Which member of the family learns control, and how surely: a study over seeds.

Offline and online DPO, SAIL and SAIL-RevKL (both directions of the KL), with a fixed and with a
refreshed reference; SAIL-RevKL without a learned value; REINFORCE on the returns of the same
segments; Brax PPO on the true reward. What an arm is told is in `convergence_arms`, and in the
tables.

Protocol. All arms start from the same policies and run the same env steps. An arm chooses its
settings on tuning seeds that are not reported, by the return of the stochastic policy at the end of
runs of half the length: 16 settings, of which the learning rate has the same four for all; then the
neighbours of the best one on every axis, until it is better than each of them or 24 settings were
tried (`convergence_tuning`). All settings tried, with their returns, are in `raw.json`, and so are
the axes on which a choice has a neighbour that was not tried.

    python -m benchmarks.convergence --runs runs/convergence --out benchmarks/results/convergence
    python -m benchmarks.convergence --quick --runs runs/quick --out runs/quick
    python -m benchmarks.convergence --merge FROM_A FROM_B --out benchmarks/results/convergence

What is finished in --runs is read, not repeated, and what was stopped goes on, so the study may be
stopped and started. It may be done in pieces (--envs, --arms, --seeds): the report in --out keeps
what it has of the others, and --merge takes in those of other machines.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

import sail_jax
from benchmarks import convergence_ppo, convergence_report, convergence_tuning, kept
from benchmarks.convergence_arms import ARMS, BASE, FALLS, OF_PPO, PPO, Arm
from benchmarks.convergence_tuning import Box, Choice
from benchmarks.machine import machine, write
from benchmarks.rounds import stopwatch
from sail_jax import configfile, sweep
from sail_jax.control.config import ControlRun
from sail_jax.errors import UserError
from sail_jax.sweep import Members
from sail_jax.training import devices, metrics

TUNING_SEEDS = (1000, 1001)

COLUMNS = {
    'return': 'eval/return',
    'deterministic_return': 'eval/deterministic_return',
    'action_std': 'eval/action_std',
    'entropy': 'eval/entropy',
    'kl_policy_to_start': 'eval/kl_policy_to_start',
    'kl_start_to_policy': 'eval/kl_start_to_policy',
}
"""What every arm reports of each evaluation."""
OF_TRAINING = {'J': 'train/preference', 'kl_to_reference': 'train/kl'}
"""And what those report besides that learn from comparisons."""


class Size(NamedTuple):
    """What all of a report has in common."""

    env_steps: int
    tuning_env_steps: int
    """0 tunes nothing."""
    episodes: int
    """Start states of an evaluation."""
    evaluations: int
    """After the first, evenly spaced."""


class Pieces(NamedTuple):
    """What of the study is done now."""

    envs: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]


FULL = Size(1_000_000, 500_000, 8, 4)
WHOLE = Pieces(('hopper', 'reacher', 'walker2d', 'ant'), (*ARMS, PPO), tuple(range(10)))
QUICK = Size(40_000, 0, 4, 1)
QUICK_ARMS = (
    'online DPO, refreshed',
    'SAIL, refreshed',
    'SAIL-RevKL, ref to policy, refreshed',
    'REINFORCE on the returns',
    PPO,
)
QUICK_PIECES = Pieces(('hopper',), QUICK_ARMS, (0, 1))


def configuration(env: str, arm: Arm, env_steps: int, size: Size, **extra: Any) -> ControlRun:
    """The run of an arm, with evaluations evenly spaced and checkpoints with them."""
    data = {**BASE, **arm.settings, 'total_env_steps': env_steps, **extra}
    data['env'] = {**BASE['env'], 'name': env}
    if env == 'swimmer':  # Which no other physics has.
        data['env']['backend'] = 'generalized'
    updates = ControlRun.model_validate(data)
    every = max(-(-env_steps // updates.env_steps_per_update // size.evaluations), 1)
    data |= {
        'updates_per_dispatch': every,
        'total_env_steps': every * size.evaluations * updates.env_steps_per_update,
        'evaluation': {'every_updates': every, 'episodes': size.episodes},
        'checkpoints': {'every_updates': every, 'keep': 1},
    }
    for falling, share in arm.falling.items():
        section, setting = FALLS[falling]
        data[section] = data[section] | {setting: max(int(share * every * size.evaluations), 1)}
    return ControlRun.model_validate(data)


class Trained(NamedTuple):
    """The members of a run."""

    evaluations: list[list[metrics.MetricsRow]]
    """Of each."""
    minutes: float | None
    """Compilation included; None where the run was stopped on the way."""


def train(run: ControlRun, run_dir: Path) -> Trained:
    """Trains all members side by side; goes on with, or reads, what is there.

    Raises:
      UserError: that is a run with other settings.
    """
    kept.require_same(run, run_dir)
    finished = run_dir / 'finished'
    if not finished.exists():
        seconds, resume = stopwatch(), (run_dir / 'config.yaml').exists()
        sail_jax.train(run, run_dir, resume=resume)
        finished.write_text('' if resume else f'{seconds() / 60:.2f}')
    rows = [
        metrics.read_rows(path / 'metrics.jsonl') for path in Members.of(run).directories(run_dir)
    ]
    minutes = finished.read_text()
    return Trained(
        [[row for row in member if 'eval/return' in row] for member in rows],
        float(minutes) if minutes else None,
    )


def tune(env: str, arm: Arm, size: Size, runs: Path) -> tuple[Choice, float | None]:
    """An arm's settings, and the minutes that it took to choose them; None where that was stopped
    on the way."""
    if not size.tuning_env_steps:
        return convergence_tuning.untuned(arm.axes), 0.0
    taken: list[Any] = []

    def score(box: Box) -> list[list[float]]:
        one = size._replace(evaluations=1)
        several = {'seeds': TUNING_SEEDS, 'sweep': box}
        run = configuration(env, arm, size.tuning_env_steps, one, **several)
        trained = train(run, runs / f'tuning-{convergence_tuning.slug(box)}')
        taken.append(trained.minutes)
        ends: dict[tuple, list[float]] = {}
        for member, rows in zip(Members.of(run).each, trained.evaluations, strict=True):
            data = configfile.flatten(member.run)
            point = tuple(data[f'{sweep.SECTIONS[name]}.{name}'] for name in box)
            final = rows[-1]['eval/return']
            ends.setdefault(point, []).append(math.nan if final is None else final)
        return [ends[point] for point in convergence_tuning.points(box)]

    choice = convergence_tuning.choose(arm.axes, score)
    return choice, None if None in taken else round(sum(taken), 2)


def study(
    env: str, arm: Arm, size: Size, seeds: tuple[int, ...], runs: Path
) -> tuple[Choice, dict[str, Any]]:
    """One arm on one environment: the choice, and the piece of these seeds, side by side."""
    choice, tuning_minutes = tune(env, arm, size, runs)
    box = {key: (value,) for key, value in choice.settings.items()}
    run = configuration(env, arm, size.env_steps, size, seeds=seeds, sweep=box)
    name = f'reported-{convergence_tuning.slug({**box, "seeds": seeds})}'
    trained = train(run, runs / name)
    rows = trained.evaluations
    column = lambda key: [[row.get(key) for row in member] for member in rows]
    return choice, {
        'seeds': seeds,
        'env_steps': [row['env_steps'] for row in rows[0]],
        'labels': [row['labels'] for row in rows[0]],
        'skipped': [member[-1]['train/skipped'] for member in rows],
        **{title: column(key) for title, key in (COLUMNS | OF_TRAINING).items()},
        'minutes': trained.minutes,
        'tuning_minutes': tuning_minutes,
    }


def study_ppo(
    env: str, size: Size, seeds: tuple[int, ...], runs: Path
) -> tuple[Choice, dict[str, Any]]:
    """The same of Brax PPO, a seed after the other."""
    seconds = stopwatch()
    choice = convergence_tuning.untuned(OF_PPO.axes)
    if length := size.tuning_env_steps:
        brief = configuration(env, OF_PPO, length, size._replace(evaluations=1))

        def score(box: Box) -> list[list[float]]:
            settings = [dict(zip(box, x, strict=True)) for x in convergence_tuning.points(box)]
            ends = [
                [convergence_ppo.rows(brief, seed, x, 1, runs) for seed in TUNING_SEEDS]
                for x in settings
            ]
            return [[rows[max(rows)]['return'] for rows in seeds] for seeds in ends]

        choice = convergence_tuning.choose(OF_PPO.axes, score)
    tuned = seconds()
    run = configuration(env, OF_PPO, size.env_steps, size)
    each = [
        convergence_ppo.rows(run, seed, choice.settings, size.evaluations, runs) for seed in seeds
    ]
    column = lambda key: [[row[key.removeprefix('eval/')] for row in x.values()] for x in each]
    return choice, {
        'seeds': seeds,
        'env_steps': list(each[0]),
        **{title: column(key) for title, key in COLUMNS.items()},
        'minutes': round((seconds() - tuned) / 60, 2),
        'tuning_minutes': round(tuned / 60, 2),
    }


def reported(path: Path, size: Size) -> dict[str, Any]:
    """What --out has of other pieces, if they are of the same size."""
    if path.exists():
        raw = json.loads(path.read_text())
        if raw['size'] == size._asdict():
            return raw
    return {'size': size._asdict(), 'envs': {}}


def with_pieces(entry: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """An arm's entry of the report, with what there was; of pieces that share a seed the new one,
    and only it where other settings were chosen."""
    pieces = entry['pieces']
    if before and before['settings'] == entry['settings']:
        seeds = {seed for piece in pieces for seed in piece['seeds']}
        pieces = pieces + [old for old in before['pieces'] if not {*old['seeds']} & seeds]
    return entry | {'pieces': sorted(pieces, key=lambda x: min(x['seeds']))}


def new_entry(arm: Arm, choice: Choice, piece: dict[str, Any]) -> dict[str, Any]:
    """An arm's entry of the report, of one piece."""
    return {
        'told': arm.told,
        'tuning_seeds': TUNING_SEEDS,
        **choice._asdict(),
        'pieces': [piece | {'machine': machine('benchmarks.convergence')}],
    }


def merge(raw: dict[str, Any], directories: list[Path]) -> None:
    """Puts the pieces of other reports into a report; ends the program if one's size is another."""
    for directory in directories:
        other = json.loads((directory / 'raw.json').read_text())
        if other['size'] != raw['size']:
            sys.exit(f'{directory}: a report of {other["size"]}; asked for: {raw["size"]}')
        for env, arms in other['envs'].items():
            results = raw['envs'].setdefault(env, {})
            for name, entry in arms.items():
                results[name] = with_pieces(entry, results.get(name))


def keep_compiled() -> None:
    """Keeps compiled programs between runs, unless JAX_COMPILATION_CACHE_DIR says where."""
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path.home() / '.cache' / 'sail_jax'
        jax.config.update('jax_compilation_cache_dir', str(cache))


def slug(name: str) -> str:
    return name.lower().replace(',', '').replace(' ', '-')


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--runs', type=Path, help='directory of the runs')
    parser.add_argument('--out', type=Path, required=True, help='directory of the report')
    parser.add_argument('--envs', nargs='+', help='environments; default: those of the study')
    parser.add_argument('--arms', nargs='+', choices=WHOLE.arms, metavar='ARM', help='default: all')
    parser.add_argument(
        '--seeds', nargs='+', type=int, help='reported seeds, as 0 1 2; default: 0 to 9'
    )
    parser.add_argument('--env-steps', type=int, help='of a reported run; tuning gets half')
    parser.add_argument(
        '--merge', nargs='+', type=Path, metavar='OUT', help='train nothing: take these reports in'
    )
    parser.add_argument('--untuned', action='store_true', help='tune nothing')
    parser.add_argument(
        '--quick', action='store_true', help='5 arms, hopper, 2 seeds, short, untuned'
    )
    options = parser.parse_args()
    if not (options.runs or options.merge):
        parser.error('--runs, the directory of the runs, is missing')
    return options


def chosen(options: argparse.Namespace) -> tuple[Size, Pieces]:
    """What the options ask for."""
    size, pieces = (QUICK, QUICK_PIECES) if options.quick else (FULL, WHOLE)
    steps = options.env_steps or size.env_steps
    tuning = 0 if options.quick or options.untuned else steps // 2
    size = size._replace(env_steps=steps, tuning_env_steps=tuning)
    named = {name: getattr(options, name) for name in Pieces._fields}
    return size, pieces._replace(**{name: tuple(x) for name, x in named.items() if x})


def each_piece(pieces: Pieces) -> Iterable[tuple[str, str]]:
    return ((env, name) for env in pieces.envs for name in pieces.arms)


def add_pieces(raw: dict[str, Any], size: Size, pieces: Pieces, runs: Path, out: Path) -> None:
    """Trains what is asked for, and writes the report's numbers after each arm."""
    # What divides the members of a tuning sweep, and the reported seeds.
    devices.use_cores(math.gcd(len(TUNING_SEEDS), len(pieces.seeds)))
    keep_compiled()
    for env, name in each_piece(pieces):
        directory, arm = runs / env / slug(name), ARMS.get(name, OF_PPO)
        if name == PPO:
            choice, piece = study_ppo(env, size, pieces.seeds, directory)
        else:
            choice, piece = study(env, arm, size, pieces.seeds, directory)
        results = raw['envs'].setdefault(env, {})
        results[name] = with_pieces(new_entry(arm, choice, piece), results.get(name))
        # Each PPO compiles programs of its own; after 50 of them LLVM has no room for more.
        jax.clear_caches()
        write(raw, out / 'raw.json', indent=None)


def main() -> None:
    options = arguments()
    size, pieces = chosen(options)
    options.out.mkdir(parents=True, exist_ok=True)
    raw = reported(options.out / 'raw.json', size)
    if options.merge:
        merge(raw, options.merge)
        write(raw, options.out / 'raw.json', indent=None)
    else:
        try:
            add_pieces(raw, size, pieces, options.runs, options.out)
        except UserError as error:
            sys.exit(str(error))
    convergence_report.write(raw, options.out)


if __name__ == '__main__':
    main()
