"""What the accelerators' compilers make of every shipped file, on the targets that it is meant for.

    python -m benchmarks.plan                              # all; hours, unless compiled before
    python -m benchmarks.plan qwen2.5-0.5b-ultrafeedback   # of one file
    python -m benchmarks.plan --table                      # a table of the results that there are

Nothing is measured: the figures are what `sail-jax plan CONFIG --on TARGET --json FILE` predicts.
One process compiles at a time. Needs the extras `cuda12` and `tpu`.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.machine import make_parser

OUT = Path(__file__).parent / 'results' / 'plan'
CONFIGS = Path(__file__).parents[1] / 'configs'
CONTROL = ('h100:1', 'v5e:1x1')
TARGETS = {
    'language/qwen2.5-0.5b-ultrafeedback': ('h100:8', 'v5e:2x4', 'v6e:2x4'),
    'language/qwen2.5-0.5b-saferlhf-lora': ('h100:8', 'v5e:2x4'),
    'language/llama-3-8b-ultrafeedback-lora': ('h100:8', 'v5e:4x4', 'v6e:2x4'),
    'language/llama-3-8b-saferlhf': ('h100:8', 'v5e:4x4', 'v5p:2x2x2'),
    'language/sft': ('h100:8', 'v5e:2x4'),
    'quickstart': CONTROL,
} | {f'control/{path.stem}': CONTROL for path in sorted((CONFIGS / 'control').glob('*.yaml'))}


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument('names', nargs='*', help='parts of the names of files; none: all')
    parser.add_argument('--table', action='store_true', help='print what there is')
    options = parser.parse_args()
    if options.table:
        print(table(), end='')
        return 0
    failed = 0
    for name, targets in TARGETS.items():
        if options.names and not any(part in name for part in options.names):
            continue
        for target in targets:
            failed += not plan(name, target)
    return failed > 0


def plan(name: str, target: str) -> bool:
    """Plans one file for one target, in a process of its own; whether there is a result."""
    file = result(name, target)
    file.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'sail_jax.cli', 'plan', f'configs/{name}.yaml']
    print(f'{name} on {target}', file=sys.stderr, flush=True)
    done = subprocess.run(
        [*command, '--on', target, '--json', str(file)], cwd=CONFIGS.parent, check=False
    )
    return done.returncode in (0, 1) and file.exists()  # 1: it does not fit.


def result(name: str, target: str) -> Path:
    """Where the figures of a file on a target are."""
    return OUT / f'{name.replace("/", "-")}-{target.replace(":", "-")}.json'


def table() -> str:
    """Markdown, of the results that there are."""
    heading = ('file', 'target', 'fits', 'fullest, GiB', 'update, ms', 'its products, ms')
    heading += ('bound by', 'a second')
    lines = [_line(heading), _line(['---'] * len(heading))]
    for name, targets in TARGETS.items():
        for target in targets:
            if (file := result(name, target)).exists():
                lines.append(_row(name, target, json.loads(file.read_text())))
    return '\n'.join(lines) + '\n'


def _row(name: str, target: str, said: dict[str, Any]) -> str:
    fullest = max(x['bytes_per_device']['total'] for x in said['programs'].values())
    bounds = said['bounds']
    broken = [name for name, x in said['programs'].items() if 'error' in x]
    cells = [name, target, 'yes' if said['fits'] else 'no', f'{fullest / 2**30:.1f}']
    if not bounds:
        return _line([*cells, f'{", ".join(broken)} does not compile', '', '', ''])
    training = [x for n, x in said['programs'].items() if n not in ('evaluate', 'weigh')]
    products = sum(x['per_update'] * x['matmul_s'] for x in training)
    units = ('env_steps_per_s', 'pairs_per_s', 'tokens_per_s')
    unit = next(key for key in units if key in bounds)
    speed = f'{bounds[unit]:,.0f} {unit.removesuffix("_per_s").replace("_", " ")}'
    cells += [f'{1000 * bounds["update_s"]:.3g}', f'{1000 * products:.3g}']
    return _line([*cells, bounds['bound_by'], speed])


def _line(cells: Iterable[str]) -> str:
    return f'| {" | ".join(cells)} |'


if __name__ == '__main__':
    sys.exit(main())
