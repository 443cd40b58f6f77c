"""All benchmarks that this machine can run, and one table: ours, theirs, ratio.

    python -m benchmarks --out runs/benchmarks
    python -m benchmarks --out runs/benchmarks --quick      # the smallest of each, about 6 minutes

Each is a module that runs alone too (`--help`). JSON and plots go to --out, with the table. What
others' parts need is in the `benchmarks` extra (`pip install -e '.[benchmarks]'`); without, they
are left out.
"""

import argparse
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import ENVS
from benchmarks.regressions import TOLERANCE, moved, read_baseline, read_rows
from benchmarks.rounds import stopwatch

SHIPPED = tuple(f'configs/control/{env}.yaml' for env in ENVS)
# Module, arguments, arguments of --quick (None leaves it out), what it needs.
SUITE = (
    ('first_update', ('configs/quickstart.yaml', 'configs/control/ant.yaml'), None, 'brax'),
    ('control_throughput', SHIPPED, None, 'brax'),
    ('control_peers', (), ('--envs', 'hopper', '--rounds', '3'), 'brax'),
    ('control_scaling', (), None, 'brax'),
    ('sac_peer', (), None, 'mujoco_playground'),
    ('time_to_return', (), None, 'brax'),
    ('language_throughput', (), ('--quick',), 'flax'),
    ('language_peer', (), ('--quick', '--updates', '4'), 'trl'),
)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    baseline = read_baseline()
    lines = [
        '| | ours | theirs | unit | ratio | goal | baseline |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in rows:
        change = moved(row, baseline)
        then = '' if change is None else f'{baseline[row["name"]]:.2f}'
        if change is not None and abs(change) > TOLERANCE:
            then += f' ({change:+.0%})'
        goal = '' if row['goal'] is None else f'{row["goal"]:g}'
        lines.append(
            f'| {row["name"]} | {row["ours"]:,.0f} | {row["theirs"]:,.0f} | {row["unit"]} '
            f'| **{row["ratio"]:.2f}** | {goal} | {then} |'
        )
    return '\n'.join(lines) + '\n'


def main() -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--out', type=Path, required=True, help='directory of the results')
    parser.add_argument('--quick', action='store_true', help='the smallest of each')
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for module, full, quick, needs in SUITE:
        arguments = quick if options.quick else full
        if arguments is None:
            continue
        if find_spec(needs) is None:
            print(f'{module}: left out, {needs} is not installed', flush=True)
            continue
        taken = stopwatch()
        out = options.out / f'{module}.json'
        command = [sys.executable, '-m', f'benchmarks.{module}', *arguments, '--out', str(out)]
        print(f'{module} ...', flush=True)
        if subprocess.run(command).returncode:
            failed.append(module)
        print(f'{module}: {taken():.0f} s', flush=True)
    page = table(read_rows(options.out))
    (options.out / 'table.md').write_text(page)
    print(page)
    for module in failed:
        print(f'{module}: failed, see above', file=sys.stderr)
    return int(bool(failed))


if __name__ == '__main__':
    raise SystemExit(main())
