"""Does hopper learn from 200 answers of somebody who sees it at the labelling page, and errs?

For each seed: `sail-jax train` in a process, `sail-jax label` in another, and a scripted person who
knows what the page shows and nothing else. Of two segments it prefers the one with more metres
forward and seconds upright, which is hopper's own reward but for the cost of its actions; and says
the other one, by mistake, 1 time in 20. Runs that are already in the directory are read, not
repeated. The study's criterion, set before it was run: the lower end of the 95 % interval of the
mean gain in return, over the seeds, is above `MARGIN`.

    python -m benchmarks.people_study --runs runs/people --out benchmarks/results/people_study.json
"""

import base64
import contextlib
import json
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.convergence_statistics import bootstrap
from benchmarks.machine import machine, make_parser, write
from benchmarks.quickstart_seeds import summary
from sail_jax.labels.store import NAME, Store

CONFIG = 'configs/control/people-hopper.yaml'
QUESTIONS = ('--reward.questions.budget', '200', '--reward.questions.every-env-steps', '16_000')
"""10 every second update, as of the file for a scripted teacher."""
MISTAKES = 0.05
MARGIN = 100.0
"""Of return; hopper's policies before training have 19 to 201."""
PAUSE_S = 0.2
CLIENT, WHO = 'c' * 32, 'a script'
CLI = (sys.executable, '-m', 'sail_jax.cli')


def worth(side: Mapping[str, Any], world: Mapping[str, Any]) -> float:
    """What somebody sees who watches a segment: metres forward and seconds upright.

    Args:
      side: as the page gets it: `steps` and `poses`.
      world: as the page gets it.
    """
    flat = np.frombuffer(base64.b64decode(side['poses']), '<f4')
    pose_TxLx7 = flat.reshape(-1, world['links'], 7)
    return float(pose_TxLx7[-1, 0, 0] - pose_TxLx7[0, 0, 0]) + side['steps'] * world['dt']


class ScriptedPerson:
    """Answers at a page's address, through its HTTP API alone."""

    def __init__(self, address: str, seed: int, mistakes: float = MISTAKES):
        self._address, self._mistakes = address, mistakes
        self._random = random.Random(seed)
        self._world = self._call('about')['world']
        self.answers, self.wrong = 0, 0

    def answer_all(self) -> None:
        """Until nothing is asked at the moment."""
        said = self._call('next', who=WHO)
        while (question := said['question']) is not None:
            left, right = (worth(side, self._world) for side in question['sides'])
            choice = 'left' if left > right else 'right'
            if self._random.random() < self._mistakes:
                choice = {'left': 'right', 'right': 'left'}[choice]
                self.wrong += 1
            self.answers += 1
            answer = {'ticket': question['ticket'], 'choice': choice, 'who': WHO}
            said = self._call('answer', **answer)

    def _call(self, name: str, **body: Any) -> dict[str, Any]:
        headers = {'Content-Type': 'application/json', 'X-Sail-Label': '1'}
        data = json.dumps({'client': CLIENT, **body}).encode()
        request = urllib.request.Request(f'{self._address}api/{name}', data, headers)
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as reply:
                    return json.loads(reply.read())
            except urllib.error.HTTPError as error:
                if error.code != 429:  # Faster than a person may be.
                    raise
            time.sleep(PAUSE_S)


@contextlib.contextmanager
def served(run_dir: Path) -> Iterator[str]:
    """The address of a run's page."""
    command = [*CLI, 'label', str(run_dir), '--port', '0']
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def train(seed: int, run_dir: Path, options: tuple[str, ...] = QUESTIONS) -> dict[str, int]:
    """Trains a run and answers its questions; how many answers there were, and mistakes in them."""
    command = [*CLI, 'train', CONFIG, '--seed', str(seed), '--run-dir', str(run_dir), *options]
    with subprocess.Popen(command) as process:
        while not (run_dir / NAME).exists():
            if process.poll() is not None:
                raise SystemExit(f'{run_dir}: training ended before it asked anything')
            time.sleep(PAUSE_S)
        with served(run_dir) as address:
            person = ScriptedPerson(address, seed)
            while process.poll() is None:
                person.answer_all()
                time.sleep(PAUSE_S)
    if process.returncode:
        raise SystemExit(f'{run_dir}: training failed')
    return {'answers': person.answers, 'mistakes': person.wrong}


def agreement(run_dir: Path) -> dict[str, int]:
    """Of answers to questions that were asked again."""
    progress = Store(run_dir / NAME).progress()
    return {'repeated': progress.repeated, 'agreed': progress.agreed}


def verdict(seeds: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    """The gain in return over the seeds, and whether it is what was asked for."""
    gains = [one['trained']['return'] - one['reference']['return'] for one in seeds.values()]
    interval = bootstrap([np.asarray(gains)], np.mean)
    return {
        'gain': interval._asdict(),
        'margin': MARGIN,
        'passed': bool(interval.low > MARGIN),
    }


def main() -> None:
    parser = make_parser(__doc__, needs_out=True)
    parser.add_argument('--seeds', type=int, nargs='+', default=list(range(5)))
    parser.add_argument('--runs', type=Path, required=True, help='directory of the runs')
    options = parser.parse_args()
    seeds: dict[int, Any] = {}
    results = {'machine': machine('benchmarks.people_study'), 'mistakes': MISTAKES}
    for seed in options.seeds:
        run_dir = options.runs / f'seed{seed}'
        said = run_dir / 'person.json'
        if not said.exists():
            counted = train(seed, run_dir)
            said.write_text(json.dumps(counted))
        counted = json.loads(said.read_text())
        seeds[seed] = summary(run_dir) | counted | agreement(run_dir)
        passed = verdict(seeds) if len(seeds) > 1 else {}  # One seed has no interval.
        write(results | passed | {'seeds': seeds}, options.out)


if __name__ == '__main__':
    main()
