"""The paper's control study: what its arms have alike, what is read, and the paper's smoothing."""

import json

import numpy as np
import pytest

from benchmarks import machine, paper_control, paper_control_report
from sail_jax import workloads
from sail_jax.control.sac.config import SacRun
from sail_jax.errors import UserError
from sail_jax.sweep import Members

SMALL = paper_control.SCALES['small']


def of(arm):
    return paper_control.configuration('walker_walk', arm, SMALL, 2)


@pytest.mark.parametrize('scale', paper_control.SCALES.values())
@pytest.mark.parametrize('arm', [*paper_control.ARMS, *paper_control.OURS])
def test_an_arm_is_a_run_that_is_accepted(arm, scale):
    for env in scale.envs:
        run = paper_control.configuration(env, arm, scale, 2)
        workloads.of(run).check(run)


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


def test_arms_are_put_together_in_a_table_and_two_figures(tmp_path):
    """Three seeds, five evaluations, of which the last two are the final return."""
    steps = [0, 20, 40, 95, 100]
    result = lambda last, **more: {
        'env_steps': steps,
        'labels': 250,
        'seconds': 1800.0,
        'mode': [[9, 9, 9, x - 1, x + 1] for x in last],
        'machine': machine.machine('benchmarks.paper_control'),
        **more,
    }
    success = {'success': [[0, 0, 0, 0.5, 1.0]] * 3}
    paper_control_report.add(tmp_path, 'small', 'cheetah_run', 'PEBBLE', result([1, 2, 3]))
    ours = result([11, 12, 13], **success)
    paper_control_report.add(tmp_path, 'small', 'cheetah_run', 'SAIL', ours)
    rows = json.loads((tmp_path / 'table.json').read_text())['envs']['cheetah_run']
    assert [row['final_return']['value'] for row in rows] == [2, 12]
    assert rows[1]['improves_on_rival']['value'] == 1
    assert rows[1]['cohens_d'] == pytest.approx(10)
    table = (tmp_path / 'table.md').read_text()
    assert '| SAIL | 250 | 12.00 [11.00, 13.00] (success: 0.75 [0.75, 0.75]) | 12.0 |' in table
    for name in ('paper', 'ours'):
        assert (tmp_path / f'{name}.png').stat().st_size > 5000
    paper_control_report.add(tmp_path, 'quick', 'cheetah_run', 'SAIL', ours)
    assert list(json.loads((tmp_path / 'raw.json').read_text())['envs']['cheetah_run']) == ['SAIL']
