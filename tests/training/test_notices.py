"""A run in which nothing can be learned says so, once."""

import pytest

import sail_jax
from sail_jax.control.config import ControlRun
from sail_jax.control.sac.task import stepless, unasked
from sail_jax.training import metrics
from sail_jax.training.notices import PATIENCE, Notices
from tests.support import sac, small
from tests.support.toy import SETTINGS, Point

LEARNS = {'train/labelled': 1.0, 'train/label_accuracy': 0.5, 'train/margin': -0.01}
SKIPPED = {'train/labelled': 0.0}
TIED = {'train/labelled': 1.0}
STILL = {'train/labelled': 0.5, 'train/label_accuracy': 0.5, 'train/margin': 1e-8}
SAID = {'labelled': SKIPPED, 'ties': TIED, 'margin is 0': STILL}


def run_of(**settings):
    return ControlRun.model_validate({**SETTINGS, **settings})


def said(rows, run=None, ended=True, members=('',), size=3, **told):
    lines = []
    watch = Notices(run or run_of(), members, lines.append, **told)
    rows = [{'labels': 7, 'train/grad_norm': 1.0} | row for row in rows]
    for i in range(0, len(rows), size):
        watch.updates([rows[i : i + size]] * len(members))
    if ended:
        watch.end()
    return lines


@pytest.mark.parametrize('row', SAID.values(), ids=SAID)
def test_it_is_said_once_after_the_patience(row):
    assert said([row] * (PATIENCE - 1), ended=False) == []
    (line,) = said([LEARNS] * 4 + [row] * (5 * PATIENCE))
    assert line.startswith(f'{PATIENCE} updates in a row: ')
    assert said([row] * PATIENCE + [LEARNS] + [row] * PATIENCE) == [line]
    assert said([row] * PATIENCE, members=('seed-0', 'seed-1')) == [
        f'seed-0: {line}',
        f'seed-1: {line}',
    ]


@pytest.mark.parametrize('row', SAID.values(), ids=SAID)
def test_a_short_run_says_it_at_its_end(row):
    (line,) = said([row] * 4)
    assert line.startswith('4 updates in a row: ')
    assert said([LEARNS] + [row] * 4) == []
    assert said([row] * 4, ended=False) == []


@pytest.mark.parametrize(('explored', 'asked'), [(120, False), (100, True), (0, True)])
def test_a_run_that_ends_before_its_first_question_says_it_at_its_end(explored, asked):
    run = sac.run(reward=sac.REWARD, **{'unsupervised.env_steps': explored})
    lines = said([{'labels': 0}] * 8, run, unasked=unasked(run))
    assert lines == (
        []
        if asked
        else [
            'no question was asked: the first come after 160 env steps (rollout.random_env_steps, '
            'unsupervised.env_steps)'
        ]
    )


def test_who_has_nobody_to_ask_has_no_question_to_miss():
    assert unasked(sac.run(**{'unsupervised.env_steps': 120})) is None
    offline = sac.REWARD | {'questions': {**sac.REWARD['questions'], 'budget': 0}}
    assert unasked(sac.run(reward=offline, **{'unsupervised.env_steps': 120})) is None


def test_a_run_without_a_gradient_step_says_it_at_its_end():
    without = [{'labels': 0}] * 20
    (line,) = quiet(without, stepless(sac.run()))
    assert line.startswith('20 updates in a row: no gradient step was made')
    assert line.endswith('(rollout.random_env_steps: 40)')
    assert quiet([*without, {'labels': 0, 'train/grad_norm': 1.0}], stepless(sac.run())) == []
    assert quiet(without, None) == []


def quiet(rows, stepless):
    """What is said of rows that may have no gradient."""
    lines = []
    watch = Notices(run_of(), [''], lines.append, stepless=stepless)
    watch.updates([rows])
    watch.end()
    return lines


def test_what_learns_says_nothing():
    assert said([LEARNS] * 50) == []
    assert said([{}] * 50) == []  # A supervised stage.
    mixed = [SKIPPED, TIED, STILL] * 20
    assert said(mixed) == []
    # Policy and reference begin as one.
    assert said([STILL]) == []
    # Skipped as not finite: counted elsewhere.
    assert said([SKIPPED | {'train/grad_norm': float('nan')}] * 50) == []


@pytest.mark.parametrize(
    ('settings', 'row', 'words'),
    [
        ({'labeller': {'skip': 0.7}}, SKIPPED, 'labeller.skip: 0.7 leaves all of them out'),
        ({}, SKIPPED, 'the simulator broke'),
        ({'labeller': {'equal': 2}}, TIED, 'labeller.equal: 2 calls all of them equal'),
        ({}, TIED, 'does not differ between the responses'),
        ({}, STILL, 'does not move away from its reference'),
        # Whatever rounding makes of the margin.
        ({'reference': {'refresh_env_steps': 1}}, LEARNS, 'refresh_env_steps makes every policy'),
    ],
)
def test_it_names_what_it_may_come_from(settings, row, words):
    (line,) = said([row] * PATIENCE, run_of(**settings))
    assert words in line


def test_a_fresh_reference_has_margins_from_the_second_gradient_step_on():
    run = run_of(reference={'refresh_env_steps': 1}, optimizer={'minibatches': 2})
    assert said([LEARNS] * 50, run) == []
    # Of several passes metrics are of the first, in which policy and reference are one.
    run = run_of(reference={'refresh_env_steps': 1}, optimizer={'epochs': 4})
    assert said([STILL] * 50, run) == []
    (line,) = said([TIED] * 50, run)
    assert 'ties' in line


@pytest.mark.parametrize('row', [LEARNS, STILL], ids=['margin', 'none'])
@pytest.mark.parametrize(
    'settings',
    [{'objective': {'loss': loss}} for loss in ('rebel', 'simpo')] + [{'reference': {'ema': 0.9}}],
    ids=['rebel', 'simpo', 'ema'],
)
def test_a_fresh_reference_is_no_loss_to_who_learns_without_it(settings, row):
    """REBEL regresses on rewards, SimPO has no reference, and an average lags behind."""
    run = small.run('m', 'd', **{'reference': {'refresh_prompts': 1}, **settings})
    assert run.refresh_updates == 1
    expected = settings.keys() == {'reference'} and row is STILL
    assert len(said([row] * 50, run)) == expected


def test_the_key_is_the_workloads_own():
    (line,) = said([LEARNS] * 50, small.run('m', 'd', reference={'refresh_prompts': 1}))
    assert 'reference.refresh_prompts makes every policy' in line


def test_updates_after_the_budget_are_its_own():
    run = run_of(labeller={'max_labels': 7})
    assert said([SKIPPED] * 50, run) == []


def test_a_broken_evaluation_is_said_once():
    lines = []
    watch = Notices(run_of(), [''], lines.append)
    for count in (0, 3, 5):
        watch.evaluation([{'eval/not_finite': count, 'eval/return': 1.0}], 'episodes')
    watch.evaluation([{'train/margin': 1.0}], 'episodes')
    assert lines == ['eval/not_finite: 3 episodes']


def nothing_differs(segment):
    return 0 * segment.reward


@pytest.mark.parametrize(
    ('settings', 'reward', 'words'),
    [
        ({}, nothing_differs, 'all pairs are ties'),
        ({'labeller': {'skip': 50}}, None, 'labeller.skip: 50'),
        ({'labeller': {'max_labels': 12}}, None, '12 comparisons was spent at 60 env steps'),
    ],
    ids=['ties', 'skip', 'budget'],
)
def test_a_run_says_it(tmp_path, monkeypatch, settings, reward, words):
    lines = []
    monkeypatch.setattr(metrics.console, 'print', lambda line, **_: lines.append(line))
    run = run_of(**settings)
    sail_jax.train(run, tmp_path / 'run', env=Point(), segment_reward=reward, quiet=True)
    assert len([line for line in lines if words in line]) == 1
    rows = metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')[1:]
    if 'ties' in words:
        assert all('train/label_accuracy' not in row for row in rows)
        assert all(row['train/labelled'] == 1 for row in rows)
    if 'skip' in words:
        assert all({'train/label_accuracy', 'train/preference'}.isdisjoint(row) for row in rows)
        assert all(row['train/labelled'] == 0 for row in rows)
