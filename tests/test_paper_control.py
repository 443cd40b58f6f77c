"""The paper's control study: what its arms have alike, what is read, and the paper's smoothing."""

import json

import numpy as np
import pytest

from benchmarks import paper_control, paper_control_report
from sail_jax.control.sac.config import SacRun
from sail_jax.errors import UserError
from sail_jax.sweep import Members

SMALL = paper_control.SCALES['small']


def of(arm):
    return paper_control.configuration('walker_walk', arm, SMALL, 2)


@pytest.mark.parametrize('arm', [*paper_control.ARMS, *paper_control.OURS])
def test_arms_have_the_same_task_length_seeds_and_answers(arm):
    run, pebble = of(arm), of('PEBBLE')
    assert (run.env, run.seeds, run.total_env_steps) == (
        pebble.env,
        pebble.seeds,
        pebble.total_env_steps,
    )
    if paper_control.answers(run) == 0:
        assert arm == 'SAC, true reward'
        return
    for setting in set(type(pebble.labeller).model_fields) - {'source'}:
        assert getattr(run.labeller, setting) == getattr(pebble.labeller, setting)
    questions = run.reward.questions
    assert questions == pebble.reward.questions
    before = run.reward_updates if isinstance(run, SacRun) else 0
    every = -(-questions.every_env_steps // run.env_steps_per_update)
    rounds = -(-questions.budget // questions.per_round)
    assert before + rounds * every <= run.total_env_steps / run.env_steps_per_update


def test_a_finished_arm_is_read_and_one_with_too_few_answers_is_refused(tmp_path):
    run = of('PEBBLE')

    def write(labels):
        for path in Members.of(run).directories(tmp_path):
            path.mkdir(exist_ok=True)
            row = {'step': 1200, 'env_steps': run.total_env_steps, 'labels': labels, 'wall_s': 7.0}
            row |= {'eval/return': 1.0, 'eval/deterministic_return': 2.0}
            (path / 'metrics.jsonl').write_text(json.dumps(row) + '\n')

    write(250)
    result = paper_control.train(run, tmp_path)
    assert (result['labels'], result['mode'], result['seconds']) == (250, [[2.0], [2.0]], 7.0)
    write(240)
    with pytest.raises(UserError, match='240 answers at its end, and not 250'):
        paper_control.train(run, tmp_path)


def test_the_average_of_the_paper_is_centred_and_shorter_at_the_ends():
    returns = np.asarray([[0.0, 3.0, 6.0, 12.0]])
    np.testing.assert_allclose(paper_control_report.smoothed(returns, 3), [[1.5, 3, 7, 9]])
