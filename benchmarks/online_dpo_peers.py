"""Online DPO here and in TRL: the same weights, prompts, lengths, learning rate and cores.

Each library runs in a process of its own and makes one update on request, in turn, so that a slow
moment of the machine hits all; the first updates, with all compilation, are left out. TRL runs
twice: as fast as it goes (`tuned`: float32, no gradient checkpointing, which would also turn off
the key-value cache of its sampling), and with its own defaults (`defaults`). Figures are medians
over updates, ratios medians of the ratios within a round. `cpu_seconds` is the processor time of
an update: on a machine that is busy with other work it is the fairer clock, with `--cores 1`.

    python3 -m venv /path/to/venv && /path/to/venv/bin/pip install torch trl==1.16.0
    python -m benchmarks.online_dpo_peers --python /path/to/venv/bin/python \\
        --out benchmarks/results/online_dpo_peers_cpu.json
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import language_model
from benchmarks.machine import machine

LEARNING_RATE = 1e-5


class Child:
    """A process that makes an update for each line it is sent."""

    def __init__(self, command: list[str], cores: list[int], log: Path):
        self._log = log.open('w')
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, 'OMP_NUM_THREADS': str(len(cores))},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )

    def read(self) -> dict[str, Any]:
        """The next answer.

        Raises:
          RuntimeError: the process has ended.
        """
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f'a benchmarked process ended; see {self._log.name}')
        return json.loads(line)

    def update(self) -> dict[str, Any]:
        """Makes one update."""
        self._process.stdin.write('\n')
        self._process.stdin.flush()
        return self.read()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def commands(options: argparse.Namespace, folder: Path, size: str) -> dict[str, list[str]]:
    """The processes to compare, by name."""
    vocab = language_model.SIZES[size].vocab_size
    model = language_model.write_checkpoint(folder / 'model', language_model.SIZES[size])
    updates = options.warmup + options.rounds
    rows = options.prompts * (updates + 1) + 2  # Ours holds two out.
    data = language_model.write_pairs(
        folder / 'pairs.jsonl', rows, options.prompt_tokens, options.response_tokens, vocab
    )
    shared = {
        'model': model,
        'data': data,
        'prompts': options.prompts,
        'response-tokens': options.response_tokens,
        'max-length': options.prompt_tokens + options.response_tokens,
        'learning-rate': LEARNING_RATE,
        'updates': updates,
    }
    arguments = [str(part) for key, value in shared.items() for part in (f'--{key}', value)]
    trl = [options.python, str(Path(__file__).with_name('trl_online_dpo.py')), *arguments]
    trl += ['--threads', str(options.cores)]
    found = {
        'sail_jax': [sys.executable, '-m', 'benchmarks.sail_online_dpo', *arguments],
        'trl_tuned': trl,
        'trl_defaults': [*trl, '--defaults'],
    }
    if not options.defaults:
        del found['trl_defaults']
    return {name: [*command, '--dir', str(folder / name)] for name, command in found.items()}


def compare(options: argparse.Namespace, size: str) -> dict[str, Any]:
    """Pairs and tokens per second, and peak memory, of one size of model."""
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as exits:
        folder, children, found = Path(name), {}, {}
        for name, command in commands(options, folder, size).items():
            children[name] = Child(command, cores, Path(options.logs) / f'{size}-{name}.log')
            exits.callback(children[name].close)
            found[name] = {'versions': children[name].read()['versions'], 'rounds': []}
        for number in range(options.warmup + options.rounds):
            for name, child in children.items():
                answer = child.update()
                if number >= options.warmup:
                    found[name]['rounds'].append(answer)
        for name, child in children.items():
            found[name] |= child.read()
    for clock in ('seconds', 'cpu_seconds'):
        ours = np.asarray([answer[clock] for answer in found['sail_jax']['rounds']])
        for numbers in found.values():
            theirs = np.asarray([answer[clock] for answer in numbers['rounds']])
            tokens = np.asarray([answer['tokens'] for answer in numbers['rounds']])
            per = clock.removesuffix('seconds') + 'second'
            numbers[f'pairs_per_{per}'] = round(float(np.median(options.prompts / theirs)), 3)
            numbers[f'tokens_per_{per}'] = round(float(np.median(tokens / theirs)), 1)
            numbers[f'sail_jax_is_faster_{clock}'] = round(float(np.median(theirs / ours)), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--python', required=True, help='interpreter that has trl')
    parser.add_argument('--sizes', nargs='+', default=['1M', '10M', '40M'])
    parser.add_argument('--prompts', type=int, default=8, help='of an update; pairs')
    parser.add_argument('--prompt-tokens', type=int, default=64)
    parser.add_argument('--response-tokens', type=int, default=64)
    parser.add_argument('--cores', type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument('--warmup', type=int, default=2, help='updates that are not timed')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--no-defaults', dest='defaults', action='store_false')
    parser.add_argument('--logs', default=tempfile.gettempdir(), help='for what processes print')
    parser.add_argument('--out', type=Path, help='JSON file; default: standard output')
    options = parser.parse_args()
    results: dict[str, Any] = {
        'machine': machine('benchmarks.online_dpo_peers') | {'cores_used': options.cores},
        'prompts': options.prompts,
        'prompt_tokens': options.prompt_tokens,
        'response_tokens': options.response_tokens,
        'sizes': {},
    }
    for size in options.sizes:
        results['sizes'][size] = compare(options, size)
        for name, numbers in results['sizes'][size].items():
            print(
                f'{size:4} {name:13} {numbers["pairs_per_second"]:8.2f} pairs/s '
                f'{numbers["tokens_per_second"]:9.0f} tokens/s '
                f'{numbers["peak_bytes"] / 2**20:6.0f} MiB; sail_jax is '
                f'{numbers["sail_jax_is_faster_seconds"]:.1f} times as fast '
                f'({numbers["sail_jax_is_faster_cpu_seconds"]:.1f} by processor time)',
                file=sys.stderr,
            )
    text = json.dumps(results, indent=2)
    if options.out:
        options.out.write_text(text + '\n')
    else:
        print(text)


if __name__ == '__main__':
    main()
