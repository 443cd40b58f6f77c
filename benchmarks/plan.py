"""What the accelerators' compilers make of every shipped file, on the targets that it is meant for.

    python -m benchmarks.plan                              # all; hours, unless compiled before
    python -m benchmarks.plan qwen2.5-0.5b-ultrafeedback   # of one file
    python -m benchmarks.plan llama-3-8b-saferlhf-v5e      # on one kind of target
    python -m benchmarks.plan --table                      # a table of the results that there are

Nothing is measured: the figures are what `sail-jax plan CONFIG --on TARGET --json FILE` predicts.
One process compiles at a time. Needs the extras `cuda12` and `tpu`.

Of control's files only quickstart is here on a TPU. A TPU's program is launched as one, and no time
is counted for the small operations that an environment is made of: its bound, 131 million env steps
a second on one v5e, says nothing of what can be had.
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
CARD = ('h100:1',)
TARGETS = {
    'quickstart': ('h100:1', 'v5e:1x1'),
    'language/qwen2.5-0.5b-ultrafeedback': ('h100:8', 'v5e:2x4', 'v6e:2x4'),
    'language/qwen2.5-0.5b-saferlhf-lora': ('h100:8', 'v5e:2x4', 'v6e:2x4'),
    'language/llama-3-8b-ultrafeedback-lora': ('h100:8', 'v5e:4x4', 'v6e:2x4', 'v5p:2x2x2'),
    'language/llama-3-8b-saferlhf': ('h100:8', 'v5e:4x4', 'v6e:4x4', 'v5p:2x2x2'),
    'language/sft': ('h100:8', 'v5e:2x4', 'v6e:2x4'),
    'language/reward': ('h100:8', 'v5e:2x4', 'v6e:2x4'),
    **{
        path.relative_to(CONFIGS).with_suffix('').as_posix(): CARD
        for folder in ('control', 'language/smollm2', 'language/paper')
        for path in sorted((CONFIGS / folder).rglob('*.yaml'))
    },
    'bandit/sample_complexity': CARD,
}
OPTIONS = {
    'language/paper/u10': ['--model.path=models/Qwen1.5-0.5B'],
    'language/paper/pp10': ['--model.path=models/Qwen1.5-0.5B'],
    'language/smollm2/align': [
        '--reward.path=models/SmolLM2-135M-Instruct',
        '--model.dtype=bfloat16',
    ],
}
"""Of files that take what another run left, the model that this one started from; and of one for
CPUs the type of accelerators, without which attention is written out and, without a card to try it
on, does not compile for GPUs."""


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument('names', nargs='*', help='parts of the names of results; none: all')
    parser.add_argument('--table', action='store_true', help='print what there is')
    options = parser.parse_args()
    if options.table:
        print(table(), end='')
        return 0
    every = [(name, target) for name, targets in TARGETS.items() for target in targets]
    named = {
        part: [one for one in every if part in result(*one).stem] for part in options.names or ['']
    }
    for part, found in named.items():
        if not found:
            parser.error(f'{part}: in the name of no result; control-ant-h100-1 is one')
    failed = 0
    for one in every:
        if any(one in found for found in named.values()):
            failed += not plan(*one)
    return failed > 0


def plan(name: str, target: str) -> bool:
    """Plans one file for one target, in a process of its own; whether there is a result."""
    file = result(name, target)
    file.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'sail_jax.cli', 'plan', f'configs/{name}.yaml']
    for part, options in OPTIONS.items():
        command += options if name.startswith(part) else []
    print(f'{name} on {target}', file=sys.stderr, flush=True)
    done = subprocess.run(
        [*command, '--on', target, '--json', str(file)], cwd=CONFIGS.parent, check=False
    )
    return done.returncode in (0, 1) and file.exists()  # 1: it does not fit.


def result(name: str, target: str) -> Path:
    """Where the figures of a file on a target are."""
    return OUT / f'{name.replace("/", "-")}-{target.replace(":", "-")}.json'


HEADING = (
    'file',
    'target',
    'fits',
    'fullest, of GiB',
    'update, ms',
    'learning / its products',
    'kernels a step',
    'bound by',
    'a second',
)


def table() -> str:
    """Markdown, of the results that there are."""
    lines = [_line(HEADING), _line(['---'] * len(HEADING))]
    for name, targets in TARGETS.items():
        for target in targets:
            if (file := result(name, target)).exists():
                lines.append(_line(_row(name, target, json.loads(file.read_text()))))
    return '\n'.join(lines) + '\n'


def _row(name: str, target: str, said: dict[str, Any]) -> list[str]:
    programs, bounds = said['programs'], said['bounds']
    fullest = max(x['bytes_per_device']['total'] for x in programs.values())
    cells = [name, target, 'yes' if said['fits'] else 'no']
    cells += [f'{fullest / 2**30:.1f} of {said["chip"]["memory"] / 2**30:.0f}']
    if not bounds:
        broken = [f'{name}: {x["error"][:80]}' for name, x in programs.items() if 'error' in x]
        return [*cells, '; '.join(broken), '', '', '', '']
    learn, draws = programs.get('learn'), programs.get('draw', programs.get('update', {}))
    on_gpu = said['chip']['platform'] == 'cuda'  # A TPU's program is launched as one.
    unit = next(x for x in ('env_steps', 'pairs', 'tokens') if f'{x}_per_s' in bounds)
    return [
        *cells,
        _number(1000 * bounds['update_s']),
        f'{learn["roofline_s"] / learn["matmul_s"]:.2f}' if learn else '',
        f'{draws["kernels_per_step"]:.0f}' if on_gpu and 'kernels_per_step' in draws else '',
        bounds['bound_by'],
        f'{bounds[f"{unit}_per_s"]:,.0f} {unit.replace("_", " ")}',
    ]


def _number(x: float) -> str:
    return f'{x:,.0f}' if x >= 100 else f'{x:.3g}'


def _line(cells: Iterable[str]) -> str:
    return f'| {" | ".join(cells)} |'


if __name__ == '__main__':
    sys.exit(main())
