"""How long does a user wait for the first updates, without and with compiled programs in the cache?

Starts `sail-jax train CONFIG` and stops it once `metrics.jsonl` has an update: imports, the
reference, the first evaluation and compilation are in the figure. Twice for each configuration:
with an empty compilation cache, and with the one that this has left.

    python -m benchmarks.first_update configs/quickstart.yaml --out benchmarks/results/x.json
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine, make_parser, write
from benchmarks.rounds import stopwatch
from sail_jax.errors import UserError
from sail_jax.training import metrics


def seconds(config: str, run_dir: Path, cache: Path) -> float:
    """From the start of the command until its first update is logged."""
    command = [sys.executable, '-m', 'sail_jax.cli', 'train', config, '--run-dir', str(run_dir)]
    env = os.environ | {'JAX_COMPILATION_CACHE_DIR': str(cache)}
    taken = stopwatch()
    process = subprocess.Popen([*command, '--quiet'], env=env)
    try:
        while not updated(run_dir / 'metrics.jsonl'):
            if process.poll() is not None:
                raise SystemExit(f'{config}: ended with status {process.returncode}')
            time.sleep(0.05)
        return taken()
    finally:
        process.kill()
        process.wait()


def updated(path: Path) -> bool:
    try:
        return any(row['step'] > 0 for row in metrics.read_rows(path))
    except UserError:  # Not there yet.
        return False


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('configs', nargs='+')
    options = parser.parse_args()
    results = {'machine': machine('benchmarks.first_update'), 'configs': {}}
    for config in options.configs:
        with tempfile.TemporaryDirectory() as directory:
            base = Path(directory)
            outcome = {
                f'{kind}_s': round(seconds(config, base / kind, base / 'cache'), 1)
                for kind in ('cold', 'warm')
            }
        results['configs'][config] = outcome
        print(config, outcome, file=sys.stderr)
    write(results, options.out)


if __name__ == '__main__':
    main()
