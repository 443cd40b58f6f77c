"""Does the quickstart learn, whatever the seed?

Trains it once for each seed, each in a process of its own as a user would, and writes the first and
the last evaluation and the run's seconds, compilation included. Runs that are already in the
directory are read, not repeated.

    python -m benchmarks.quickstart_seeds --runs runs/quickstart --out benchmarks/results/x.json
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, make_parser, write
from sail_jax.training import metrics

CONFIG = 'configs/quickstart.yaml'
KEYS = ('return', 'return_se', 'deterministic_return', 'deterministic_return_se', 'length')


def train(seed: int, run_dir: Path) -> None:
    command = [sys.executable, '-m', 'sail_jax.cli', 'train', CONFIG]
    subprocess.run([*command, '--seed', str(seed), '--run-dir', run_dir], check=True)


def summary(run_dir: Path) -> dict[str, Any]:
    """First and last evaluation of a run."""
    rows = metrics.read_rows(run_dir / 'metrics.jsonl')
    first, last = rows[0], rows[-1]
    gain = last['eval/return'] - first['eval/return']
    error = (first['eval/return_se'] ** 2 + last['eval/return_se'] ** 2) ** 0.5
    return {
        'env_steps': last['env_steps'],
        'labels': last['labels'],
        'wall_s': last['wall_s'],
        'reference': {key: round(first[f'eval/{key}'], 3) for key in KEYS},
        'trained': {key: round(last[f'eval/{key}'], 3) for key in KEYS},
        'gain_in_standard_errors': round(gain / error, 1),
    }


def main() -> None:
    parser = make_parser(__doc__, needs_out=True)
    parser.add_argument('--seeds', type=int, nargs='+', default=list(range(6)))
    parser.add_argument('--runs', type=Path, required=True, help='directory of the runs')
    options = parser.parse_args()
    results: dict[str, Any] = {'machine': machine('benchmarks.quickstart_seeds'), 'seeds': {}}
    for seed in options.seeds:
        run_dir = options.runs / f'seed{seed}'
        if not run_dir.exists():
            train(seed, run_dir)
        results['seeds'][seed] = summary(run_dir)
    write(results, options.out)


if __name__ == '__main__':
    main()
