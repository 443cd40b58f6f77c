"""Does a change that should change nothing change nothing? Short runs of every workload, digested.

Trains control (the quickstart; hopper on 1 and on 8 devices of a CPU), both studies of the bandit,
the language quickstart and an adapter on its model, and writes a digest of what each of them
measured, to the last bit; clocks are left out. On the same machine and versions two commits that
compute the same have the same digests.

    python -m benchmarks.same_metrics --out before.json
    git switch other && python -m benchmarks.same_metrics --against before.json
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import machine, write


class Case(NamedTuple):
    """A short run."""

    config: str
    settings: str
    """Options of the command line."""
    devices: int = 1


HOPPER = '--total-env-steps 163840 --updates-per-dispatch 5 --evaluation.every-updates 10'
CASES = {
    'quickstart': Case(
        'configs/quickstart.yaml', '--total-env-steps 81920 --evaluation.every-updates 10'
    ),
    'hopper, 1 device': Case('configs/control/hopper.yaml', HOPPER),
    'hopper, 8 devices': Case('configs/control/hopper.yaml', HOPPER, 8),
    'seeds': Case('configs/quickstart.yaml', '--total-env-steps 40960 --seeds 2'),
    'landscape': Case('configs/bandit/landscape.yaml', '--problems.count 2'),
    'samples': Case('configs/bandit/sample_complexity.yaml', '--problems.count 2 --seeds 4'),
    'language': Case(
        'configs/language/quickstart.yaml',
        '--reviews.reviews 512 --sft.total-prompts 640 --sft.optimizer.warmup-updates 2 '
        '--alignment.total-prompts 160 --alignment.evaluation.prompts 64',
    ),
    'lora': Case(
        'sail-revkl/config.yaml',  # Of the run before.
        '--total-prompts 160 --model.train lora --evaluation.prompts 64',
    ),
}


def digest(run_dir: Path) -> dict[str, str]:
    """Of each file of measurements, clocks left out."""
    found = {}
    for path in sorted(run_dir.rglob('*')):
        name = str(path.relative_to(run_dir))
        if path.name == 'metrics.jsonl':
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = _hash([_without_clocks(row) for row in rows])
        elif path.name in ('table.json', 'frontier.json'):
            found[name] = _hash(json.loads(path.read_text()))
    return found


def _without_clocks(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != 'wall_s' and not k.startswith('time/')}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def measure(runs: Path, names: list[str]) -> dict[str, dict[str, str]]:
    """The digests of the cases."""
    digests = {}
    for name in names:
        case, run_dir = CASES[name], runs / name.replace(', ', '-').replace(' ', '-')
        config = Path(case.config)
        if name == 'lora':
            config = runs / 'language' / case.config
        command = [sys.executable, '-m', 'sail_jax.cli', 'train', str(config), '--quiet']
        command += [*case.settings.split(), '--run-dir', str(run_dir)]
        env = os.environ | {'JAX_NUM_CPU_DEVICES': str(case.devices)}
        subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
        digests[name] = digest(run_dir)
        print(f'{name}: {len(digests[name])} files', flush=True)
    return digests


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--cases', nargs='+', choices=CASES, default=list(CASES))
    parser.add_argument('--out', type=Path, help='JSON of the digests')
    parser.add_argument('--against', type=Path, help='JSON of another commit, on this machine')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        digests = measure(Path(runs), options.cases)
    if options.out:
        results = {'machine': machine('benchmarks.same_metrics'), 'digests': digests}
        write(results, options.out)
    if not options.against:
        return 0
    before = json.loads(options.against.read_text())['digests']
    differ = [name for name in digests if digests[name] != before.get(name)]
    for name in differ:
        print(f'{name}: differs')
    print('the same' if not differ else f'{len(differ)} of {len(digests)} differ')
    return bool(differ)


if __name__ == '__main__':
    sys.exit(main())
