"""Soft actor-critic on a task of MuJoCo Playground, seeds side by side on rewards from answers."""

import numpy as np
import pytest
from PIL import Image

import sail_jax
from sail_jax.sweep import Members
from sail_jax.training import metrics
from tests.support import sac

pytest.importorskip('mujoco_playground')
pytestmark = pytest.mark.slow

TASK = {'name': 'CartpoleBalance', 'backend': 'playground', 'episode_length': 60}
RUN = sac.run(env=TASK, reward=sac.REWARD, seeds=2)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp('playground') / 'run'
    sail_jax.train(RUN, path, quiet=True)
    return path


def test_every_seed_has_its_answers_and_a_reward_of_its_own(whole):
    rows = [
        metrics.read_rows(path / 'metrics.jsonl') for path in Members.of(RUN).directories(whole)
    ]
    assert [seed[-1]['labels'] for seed in rows] == [RUN.reward.questions.budget] * 2
    # The task gives 0 to 1 a step.
    assert all(0 < seed[-1]['eval/return'] <= TASK['episode_length'] for seed in rows)
    spread = [[row.get('train/reward_spread') for row in seed] for seed in rows]
    assert spread[0] != spread[1]


def test_an_episode_of_a_seed_is_filmed(whole, tmp_path):
    sail_jax.render(Members.of(RUN).directories(whole)[1], tmp_path / 'film.gif')
    with Image.open(tmp_path / 'film.gif') as film:
        assert film.n_frames > 5
        assert np.ptp(np.asarray(film.convert('L'))) > 50
