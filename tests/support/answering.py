"""Somebody who answers the questions of a run under way, by its store."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import sail_jax
from sail_jax.labels.store import NAME, Store
from tests.support.paths import ROOT

ANN = 'a' * 32


def choice(number, payload=None):
    return ('left', 'right', 'equal', 'skip', 'right')[number % 5]


def answer(store, count=1000, says=choice):
    """Answers what is asked now, `count` at the most.

    Args:
      says: what, of a number and a payload.
    """
    while count and (shown := store.next(ANN)) is not None:
        store.answer(shown.ticket, ANN, 'Ann', says(shown.number, shown.payload))
        count -= 1


class Person(threading.Thread):
    """Answers whatever a run asks, until it is told to go."""

    def __init__(self, run_dir, says=choice):
        super().__init__()
        self.path, self.says, self.gone = run_dir / NAME, says, threading.Event()

    def run(self):
        while not self.gone.wait(0.05):
            if self.path.exists():
                answer(Store(self.path), says=self.says)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.gone.set()
        self.join()


def require_exported(run_dir, path, env_steps):
    """A file of a run's answers has each of them once: what was said, by whom and when.

    Args:
      env_steps: when each question was asked.
    """
    rows = map(json.loads, sail_jax.export_labels(run_dir, path).read_text().splitlines())
    choices = {'left': 1.0, 'right': 0.0, 'equal': 0.5, 'skip': None}
    answers = Store(run_dir / NAME).answers()
    found = [(row['choice'], row['source'], row['time'], row['env_steps']) for row in rows]
    said = [(choices[answer.choice], answer.who, answer.time) for answer in answers]
    assert found == [(*one, steps) for one, steps in zip(said, env_steps, strict=True)]


def killed_and_set_back(code, config, run_dir, questions, says=choice):
    """Trains by a program of its own that is killed once it has asked so many, and leaves only the
    first checkpoint: what came after is not known any more.

    Args:
      code: the program, which is told the configuration and the run directory. Not the command,
        which trains on all cores: later rounds are the same on as many devices.
      says: as of `answer`.
    """
    command = [sys.executable, '-c', code, str(config), str(run_dir)]
    process = subprocess.Popen(command, cwd=ROOT)
    with Person(run_dir, says=says):
        store = run_dir / NAME
        while not store.exists() or Store(store).progress().asked < questions:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.wait()
    steps = sorted(int(path.name) for path in (run_dir / 'checkpoints').glob('[0-9]*'))
    for step in steps[1:]:
        shutil.rmtree(run_dir / 'checkpoints' / str(step))


class StoppedWhenWaiting:
    """Sends Ctrl-C to this process once the run's questions wait for answers."""

    def __init__(self, run_dir):
        self.path, self.thread = run_dir / NAME, threading.Thread(target=self.stop)
        self.ended = threading.Event()

    def stop(self):
        while not (self.path.exists() and Store(self.path).progress().waiting):
            if self.ended.wait(0.05):
                return  # By itself: the test says of what.
        if not self.ended.wait(1):
            os.kill(os.getpid(), signal.SIGINT)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
