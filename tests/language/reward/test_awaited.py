"""Rewards and judges that have to be awaited."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from sail_jax.errors import TrainingFailed, UserError
from sail_jax.language.reward import labels, rewards
from tests.support import small

PROMPTS = ['a', 'b', 'c']
RESPONSES = [['1', '22'], ['333', '4444'], ['55555', '666666']]
LENGTHS = [[1, 2], [3, 4], [5, 6]]


class Meeting:
    """Answers nobody before so many calls have come."""

    def __init__(self, calls):
        self.calls, self.here, self.loops = calls, [], set()

    async def __call__(self, prompts, items):
        self.loops.add(id(asyncio.get_running_loop()))
        self.here.append(items)
        while len(self.here) % self.calls:
            await asyncio.sleep(0)
        return [len(item) for item in items]


def test_all_batches_are_awaited_together_and_stand_in_their_places():
    meeting = Meeting(calls=3)
    for _ in range(2):
        got = rewards.score(meeting, PROMPTS, RESPONSES, batch_size=2, timeout_s=60)
        np.testing.assert_array_equal(got, LENGTHS)
    assert [len(items) for items in meeting.here] == [2] * 6
    assert len(meeting.loops) == 1  # A client that was opened in one update serves the next.


def test_a_judge_may_be_awaited():
    async def longer(prompts, pairs):
        return [0.25 if len(a) < len(b) else 1.0 for a, b in pairs]

    preferences = rewards.compare(longer, PROMPTS, RESPONSES, batch_size=1)
    np.testing.assert_array_equal(preferences.prob_BxKxK[:, 0, 1], 0.25)


async def short(prompts, items):
    return [1.0] * (len(items) - 1)


async def broken(prompts, items):
    raise ConnectionError('no\nanswer')


async def hanging(prompts, items):
    await asyncio.Event().wait()


async def leaving(prompts, items):
    raise SystemExit(3)


async def numbered(prompts, items):
    return dict.fromkeys(range(len(items)), 1.0)


async def unordered(prompts, items):
    return {1.0 + i for i in range(len(items))}


async def silent(prompts, items):
    return None


@pytest.mark.parametrize(
    ('function', 'error', 'message'),
    [
        (leaving, UserError, r'leaving: raised SystemExit: 3'),
        (numbered, UserError, r'numbered: expected 2 numbers, got dict'),
        (unordered, UserError, r'unordered: expected 2 numbers, got set'),
        (silent, UserError, r'silent: expected 2 numbers, got NoneType'),
        (short, UserError, r'short: expected 2 numbers, got 1'),
        (broken, UserError, r'broken: raised ConnectionError: no answer'),
        (hanging, TrainingFailed, r'hanging: no answer for 6 responses in 0.05 s'),
    ],
)
def test_what_goes_wrong_is_one_line(function, error, message):
    with pytest.raises(error, match=f'^{message}$'):
        rewards.score(function, PROMPTS, RESPONSES, batch_size=2, timeout_s=0.05)


@pytest.mark.parametrize('name', ['reward', 'judge'])
def test_they_are_taken_for_a_run(name):
    made = labels.make(small.run(Path('m'), Path('d')), None, **{name: short})
    assert (made.score is not None) == (name == 'reward')
