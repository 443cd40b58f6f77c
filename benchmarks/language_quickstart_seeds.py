"""Does the language quickstart align, whatever the seed, and do its samples stay readable?

Runs it once for each seed, each in a process of its own as a user would, and writes where each
method began and ended, samples, and seconds. Runs that are already in the directory are read, not
repeated.

    python -m benchmarks.language_quickstart_seeds --runs runs/seeds --out x.json
"""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, make_parser, write
from benchmarks.rounds import stopwatch
from sail_jax.language.quickstart import frontier
from sail_jax.language.quickstart.config import METHODS, SFT
from sail_jax.training import metrics

CONFIG = 'configs/language/quickstart.yaml'
KEYS = ('reward', 'reward_se', 'win_rate', 'response_kl_policy_to_start', 'response_length')
SECONDS = 'seconds.json'


def train(seed: int, run_dir: Path) -> None:
    """One run; its seconds are left beside it, those of the processors too, as others may have used
    the machine."""
    taken, before = stopwatch(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, '-m', 'sail_jax.cli', 'train', CONFIG]
    done = subprocess.run(
        [*command, '--seed', str(seed), '--run-dir', run_dir],
        check=True,
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = {'wall_s': round(taken(), 1), 'cpu_s': round(cpu_s, 1)}
    (run_dir / SECONDS).write_text(json.dumps(seconds))
    (run_dir / 'printed.txt').write_text(done.stdout)


def summary(run_dir: Path) -> dict[str, Any]:
    """Of one run: loss of the supervised stage, and each method's first and last evaluation."""
    outcome: dict[str, Any] = json.loads((run_dir / SECONDS).read_text())
    supervised = metrics.read_rows(run_dir / SFT / 'metrics.jsonl')[-1]
    outcome['sft_loss_per_response'] = round(supervised['eval/response_loss'], 3)
    for name, title in METHODS.items():
        rows = metrics.read_rows(run_dir / name / 'metrics.jsonl')
        evaluations = [row for row in rows if 'eval/reward' in row]
        first, last = evaluations[0], evaluations[-1]
        outcome[title] = {
            'before': {key: round(first[f'eval/{key}'], 4) for key in KEYS},
            'after': {key: round(last[f'eval/{key}'], 4) for key in KEYS},
            'gain_in_standard_errors': round(
                last['eval/reward_gain'] / last['eval/reward_gain_se'], 1
            ),
        }
    tables = sorted((run_dir / list(METHODS)[-1] / 'samples').glob('*.md'))
    outcome['samples'] = tables[-1].read_text().splitlines()[:10]
    return outcome


def main() -> None:
    parser = make_parser(__doc__, needs_out=True)
    parser.add_argument('--seeds', type=int, nargs='+', default=list(range(5)))
    parser.add_argument('--runs', type=Path, required=True, help='directory of the runs')
    parser.add_argument('--figure', type=Path, help='the frontier over all seeds')
    options = parser.parse_args()
    results: dict[str, Any] = {
        'machine': machine('benchmarks.language_quickstart_seeds'),
        'seeds': {},
    }
    for seed in options.seeds:
        run_dir = options.runs / f'seed{seed}'
        if not (run_dir / SECONDS).exists():
            train(seed, run_dir)
        results['seeds'][seed] = summary(run_dir)
        write(results, options.out)
    if options.figure:
        curves = {
            title: [frontier.points(options.runs / f'seed{seed}' / name) for seed in options.seeds]
            for name, title in METHODS.items()
        }
        frontier.draw(curves, options.figure)


if __name__ == '__main__':
    main()
