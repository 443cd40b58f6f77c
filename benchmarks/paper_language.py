"""The paper's language protocol as one command: supervised stage, then offline DPO, SAIL-DPR,
SAIL-DPR with RevKL and the last layer alone, each from its file in `configs/language/paper`, and
one table of their last evaluations.

    python -m benchmarks.paper_language u10 data/u10 --runs runs/u10 --out u10.json --scale paper

The directory is what `paper_data` wrote. Stages that are done are read, not repeated; one that was
interrupted goes on. `--scale small` is the same on SmolLM2-135M-Instruct (extra `real`) with a few
short updates, two cores and the lexicon's reward: it shows that all parts work, and nothing of the
methods.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import kept, real_model
from benchmarks.machine import machine, make_parser, write
from benchmarks.rounds import stopwatch
from sail_jax.errors import UserError
from sail_jax.training import metrics

CONFIGS = Path('configs/language/paper')
SFT = 'sft'
METHODS = {
    'dpo': 'offline DPO',
    'dpr': 'SAIL-DPR',
    'dpr-revkl': 'SAIL-DPR with RevKL',
    'last-layer': 'last layer alone',
}
SECONDS = 'seconds.json'
KEYS = {
    'reward': 'reward',
    'chosen_win_rate': 'wins against chosen',
    'chosen_ties': 'ties',
    'win_rate': 'wins against start',
    'response_kl_policy_to_start': 'KL to start',
    'pair_accuracy': 'pair accuracy',
    'pair_margin': 'pair margin',
    'response_length': 'length',
}
SHORT = {
    'total_prompts': 32,
    'prompts_per_update': 8,
    'model.dtype': 'float32',
    'model.param_dtype': 'float32',
    'data.max_prompt_tokens': 128,
    'data.max_response_tokens': 64,
    'evaluation.every_updates': 2,
    'evaluation.prompts': 8,
    'checkpoints.every_updates': 2,
}
SMALL = {
    SFT: SHORT,
    **dict.fromkeys(METHODS, SHORT | {'sampling.max_tokens': 16, 'optimizer.warmup_updates': 1}),
}
"""What `--scale small` changes of each stage's file."""


def settings(stage: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a stage's file is told of this machine."""
    told: dict[str, Any] = dict(SMALL[stage]) if options.scale == 'small' else {}
    told |= {
        'data.path': options.data / 'train.jsonl',
        'evaluation.path': options.data / 'test.jsonl',
    }
    if stage != SFT:
        told['model.path'] = options.runs / SFT / 'model'
        if options.reward is not None:
            told['reward.path'] = options.reward
        elif options.scale == 'small':
            told |= {'reward.source': 'positivity', 'reward.path': 'none'}
    elif options.model is not None:
        told['model.path'] = options.model
    return told


def train(config: Path, told: Mapping[str, Any], run_dir: Path) -> None:
    """One stage, begun or gone on with, or read; its seconds are left beside it when it is done.

    Raises:
      UserError: there is a run with other settings.
    """
    command = kept.command(config, [f'--{key}={value}' for key, value in told.items()], run_dir)
    if (run_dir / SECONDS).exists():
        return
    taken = stopwatch()
    if subprocess.run(command).returncode:
        sys.exit(f'{run_dir}: did not come to its end; the same command goes on with it')
    (run_dir / SECONDS).write_text(json.dumps({'wall_s': round(taken(), 1)}))


def summary(run_dir: Path) -> dict[str, Any]:
    """Of a method's run: its first and last evaluation, and its curve on held-out pairs."""
    rows = metrics.read_rows(run_dir / 'metrics.jsonl')
    evaluations = [row for row in rows if 'eval/pair_accuracy' in row]

    def numbers(row: Mapping[str, Any]) -> dict[str, float]:
        return {key: row[f'eval/{key}'] for key in KEYS if f'eval/{key}' in row}

    return {
        **json.loads((run_dir / SECONDS).read_text()),
        'start': numbers(evaluations[0]),
        'end': numbers(evaluations[-1]),
        'curve': {
            name: [row[key] for row in evaluations]
            for name, key in (
                ('updates', 'step'),
                ('pair_accuracy', 'eval/pair_accuracy'),
                ('pair_margin', 'eval/pair_margin'),
            )
        },
    }


def table(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: the start, and where each method ended."""
    ends = {METHODS[name]: outcome['end'] for name, outcome in methods.items()}
    lines: list[Sequence[str]] = [['', *KEYS.values()], ['---', *['---:'] * len(KEYS)]]
    for title, numbers in ({'start': next(iter(methods.values()))['start']} | ends).items():
        cells = [f'{numbers[key]:.3f}' if key in numbers else '' for key in KEYS]
        lines.append([title, *cells])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def main() -> None:
    parser = make_parser(__doc__, needs_out=True)
    parser.add_argument('name', choices=('u10', 'pp10'))
    parser.add_argument('data', type=Path, help='directory with train.jsonl and test.jsonl')
    parser.add_argument('--scale', choices=('small', 'paper'), required=True)
    parser.add_argument('--runs', type=Path, required=True, help='directory of the runs')
    parser.add_argument('--model', type=Path, help="instead of the files' Qwen1.5-0.5B and small's")
    parser.add_argument(
        '--reward', type=Path, help="instead of the files'; small has the lexicon without it"
    )
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    results: dict[str, Any] = {
        'machine': machine('benchmarks.paper_language'),
        'scale': options.scale,
        'methods': {},
    }
    try:
        if options.model is None and options.scale == 'small':
            options.model = real_model.fetch(options.runs / 'model')
        for stage in (SFT, *options.methods):
            run_dir = options.runs / stage
            config = CONFIGS / f'{options.name}-{stage}.yaml'
            train(config, settings(stage, options), run_dir)
            if stage != SFT:
                results['methods'][stage] = summary(run_dir)
                write(results, options.out)
    except (ImportError, UserError) as error:
        sys.exit(str(error))
    print(table(results['methods']))


if __name__ == '__main__':
    main()
