"""Contenders take turns, so that a slow moment of the machine hits all of them.

`take_turns` is for contenders that are processes of their own, warmed up once, each of which makes
one timed call whenever it is told to: none can slow another down, or spoil its memory figure, by
being in its process. `take_turns_here` is for programs of one process; `stopwatch` for what happens
once, a compilation for example.
"""

import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Call = dict[str, Any]
"""`seconds`, `peak_mib` and what the contender counted."""


def stopwatch() -> Callable[[], float]:
    """A function of the seconds since this call: the one clock of the benchmarks."""
    began = time.perf_counter()
    return lambda: time.perf_counter() - began


class Turn:
    """The contender's side: `wait` until told, do the work, say what was `done`."""

    def __init__(self) -> None:
        self._taken: Callable[[], float] | None = None

    def wait(self) -> None:
        """Until the next call; the first time it says that warming up is over."""
        if self._taken is None:
            self._say(warm=True)
        if not sys.stdin.readline():
            raise SystemExit
        self._taken = stopwatch()

    def done(self, **counted: Any) -> None:
        """Ends a call."""
        assert self._taken is not None  # See `wait`.
        self._say(**{'seconds': self._taken(), 'peak_mib': peak_mib(), **counted})

    def _say(self, **values: Any) -> None:
        print(json.dumps(values), flush=True)


def peak_mib() -> float:
    """The most memory that this process ever had."""
    try:
        status = Path('/proc/self/status').read_text()
    except OSError:
        # On Linux this one begins with what the process that started us had.
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return round(int(re.search(r'VmHWM:\s*(\d+) kB', status)[1]) / 1024)


def serve(call: Callable[[], Mapping[str, Any]]) -> None:
    """Makes a call whenever told to, until standard input ends."""
    turn = Turn()
    while True:
        turn.wait()
        turn.done(**call())


class Contender:
    """The driver's side of a process."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log, taken = log, stopwatch()
        with log.open('w') as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        self._answer()
        self.warm_up_s = taken()

    def call(self) -> Call:
        self._process.stdin.write('\n')
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _answer(self) -> Call:
        for line in self._process.stdout:
            if line.startswith('{"'):  # Libraries print too.
                return json.loads(line)
        said = self._log.read_text()[-2000:]
        raise SystemExit(f'{" ".join(self._process.args)}: ended\n{said}')


def take_turns(
    commands: Mapping[str, Sequence[str]], rounds: int, logs: Path
) -> dict[str, dict[str, Any]]:
    """Every contender's calls; `warm_up_s` is from its start to its first call, compilation
    included."""
    contenders: dict[str, Contender] = {}
    logs.mkdir(parents=True, exist_ok=True)
    try:
        for name, command in commands.items():
            contenders[name] = Contender(command, logs / f'{name}.log')
        calls: dict[str, list[Call]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, contender in contenders.items():
                calls[name].append(contender.call())
    finally:
        for contender in contenders.values():
            contender.end()
    return {
        name: {'warm_up_s': round(contenders[name].warm_up_s, 2), 'calls': calls[name]}
        for name in commands
    }


def take_turns_here(
    calls: Mapping[str, Callable[[], Mapping[str, Any]]], rounds: int
) -> dict[str, dict[str, list[Call]]]:
    """The same of functions; a first round, which warms up, is left out."""
    outcome: dict[str, list[Call]] = {name: [] for name in calls}
    for index in range(rounds + 1):
        for name, call in calls.items():
            taken = stopwatch()
            counted = call()
            seconds = taken()
            if index:
                outcome[name].append({'seconds': seconds, **counted})
    return {name: {'calls': made} for name, made in outcome.items()}


def rates(outcome: Mapping[str, Any], counted: str) -> np.ndarray:
    """What was counted per second, one number a round."""
    return np.asarray([call[counted] / call['seconds'] for call in outcome['calls']])


def row(
    name: str, unit: str, ours: float, theirs: float, ratio: float, goal: float | None
) -> dict[str, Any]:
    """A line of the table of `benchmarks.__main__`; JSON keeps them under `rows`."""
    return {
        'name': name,
        'unit': unit,
        'ours': round(float(ours), 1),
        'theirs': round(float(theirs), 1),
        'ratio': round(float(ratio), 3),
        'goal': goal,
    }
