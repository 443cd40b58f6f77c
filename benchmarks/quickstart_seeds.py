"""Does the quickstart learn, whatever the seed? Or another control file?

Trains it once for each seed, each in a process of its own as a user would, and writes the first and
the last evaluation, the return of all, and the run's seconds, compilation included. Runs that are
already in the directory are read, not repeated; one that was stopped goes on. What follows `--` is
given to `sail-jax train`.

    python -m benchmarks.quickstart_seeds --runs runs/quickstart --out benchmarks/results/x.json
    python -m benchmarks.quickstart_seeds --config configs/control/accelerator/ant.yaml --seeds 0 \\
        --runs runs/ant --out benchmarks/results/y.json -- --total-env-steps 4000000
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import kept
from benchmarks.machine import machine, make_parser, write
from sail_jax.errors import UserError
from sail_jax.training import metrics

DONE = 'done'
"""A file in the directory of a run that came to its end."""
KEYS = ('return', 'return_se', 'deterministic_return', 'deterministic_return_se', 'length')


def train(config: str, run_dir: Path, changes: list[str]) -> None:
    """A run from its beginning, or from where it was stopped, to its end.

    Raises:
      UserError: there is a run with other settings.
    """
    command = kept.command(config, changes, run_dir)
    if not (run_dir / DONE).exists():
        subprocess.run(command, check=True)
        (run_dir / DONE).touch()


def summary(run_dir: Path) -> dict[str, Any]:
    """Evaluations of a run: the first, the last, and the return at each."""
    rows = [x for x in metrics.read_rows(run_dir / 'metrics.jsonl') if 'eval/return' in x]
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
        'returns': {x['env_steps']: round(x['eval/return'], 3) for x in rows},
    }


def main() -> None:
    parser = make_parser(__doc__, needs_out=True)
    parser.add_argument('--config', default='configs/quickstart.yaml')
    parser.add_argument('changes', nargs='*', metavar='--section.key VALUE', help='of `train`')
    parser.add_argument('--seeds', type=int, nargs='+', default=list(range(6)))
    parser.add_argument('--runs', type=Path, required=True, help='directory of the runs')
    options = parser.parse_args()
    results: dict[str, Any] = {'machine': machine('benchmarks.quickstart_seeds'), 'seeds': {}}
    for seed in options.seeds:
        run_dir = options.runs / f'seed{seed}'
        try:
            train(options.config, run_dir, ['--seed', str(seed), *options.changes])
        except UserError as error:
            sys.exit(str(error))
        results['seeds'][seed] = summary(run_dir)
    write(results, options.out)


if __name__ == '__main__':
    main()
