"""A store of small questions, and a process that answers at it, for tests/labels.

    python -m tests.support.labelling STORE CLIENT

answers all questions, and prints the number of each once the store has said that it is taken.
"""

import sys
from pathlib import Path

import numpy as np

from sail_jax.labels import payloads, store
from sail_jax.labels.payloads import SegmentPair
from sail_jax.labels.store import Question, Store

WORLD = {
    'dt': 0.05,
    'view': [4.0, 0.5],
    'links': 1,
    'geoms': [
        {
            'type': 'plane',
            'link': -1,
            'pos': [0, 0, 0],
            'rot': [1, 0, 0, 0],
            'size': [40, 40, 40],
            'color': [0.5, 0.5, 0.5, 1],
        },
        {
            'type': 'capsule',
            'link': 0,
            'pos': [0, 0, 0],
            'rot': [1, 0, 0, 0],
            'size': [0.2, 0.4, 0],
            'color': [0.6, 0.45, 0.3, 1],
        },
    ],
}
SEGMENTS = {
    'kind': 'segments',
    'task': 'a point',
    'instruction': 'Which <b>goes</b> further?',
    'world': WORLD,
    'repeat_every': 0,
}
RESPONSES = {'kind': 'responses', 'task': 'a model', 'instruction': '', 'repeat_every': 0}


def pair(number: int, T: int = 20) -> SegmentPair:
    """The first goes further where the number is even."""
    rng = np.random.default_rng(number)
    speed = np.array([1.5, 0.5] if number % 2 == 0 else [0.5, 1.5])
    pose = np.zeros((2, T + 1, 1, 7), np.float32)
    pose[..., 0] = (speed[:, None] * np.arange(T + 1) * 0.05)[..., None]
    pose[..., 2], pose[..., 3] = 0.6, 1
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    mask = np.ones((2, T), np.float32)
    mask[1, T - number % 5 :] = 0
    return SegmentPair(obs=draw(2, T, 3), action=draw(2, T, 2), mask=mask, pose=pose)


def question(number: int, round_: int = 1) -> Question:
    return Question(number, round_, payloads.pack_segments(pair(number)))


def make(path: Path, count: int, **about) -> Store:
    made = Store.of_run(path, SEGMENTS | about)
    made.ask([question(number) for number in range(count)])
    return made


def main(path: str, client: str) -> None:
    at = store.Store(Path(path))
    while (shown := at.next(client)) is not None:
        at.answer(shown.ticket, client, f'process {client[:4]}', 'left')
        print(shown.number, flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
