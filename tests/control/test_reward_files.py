"""Answered pairs and rewards as files: what runs write, what others begin with, what is refused."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sail_jax
from sail_jax.control.reward import answers, beginning, evaluate, weights
from sail_jax.control.reward import ensemble as reward_ensemble
from sail_jax.control.reward.answers import Widths
from sail_jax.control.reward.config import RewardEnsemble
from sail_jax.control.reward.evaluate import Played
from sail_jax.control.reward.state import begun, nothing, untaught
from sail_jax.control.reward.weights import FittedReward
from sail_jax.training import devices
from tests.support.checkpoints import same
from tests.support.disk import disk_of
from tests.support.refused import message
from tests.support.toy import Point, make_run, train

WIDTHS = Widths(obs=2, action=1)
SETTINGS = RewardEnsemble(hidden=(4,), members=2)


def write(path, params, environment='point (none)'):
    return FittedReward(params, SETTINGS, environment, path).write(path)


def told():
    """A reward after three of four questions: the first of unlike lengths, the last skipped."""
    reward = begun(untaught((), nothing(*WIDTHS), budget=4, steps=3))
    rng = np.random.default_rng(0)
    steps = np.asarray([[3, 2], [3, 3], [1, 3], [0, 0]])
    mask = (np.arange(3) < steps[..., None]).astype(np.float32)
    shown = reward.answers._replace(
        obs=rng.normal(size=(4, 2, 3, 2)).astype(np.float32) * mask[..., None],
        action=rng.normal(size=(4, 2, 3, 1)).astype(np.float32) * mask[..., None],
        mask=mask,
        prob=np.asarray([1, 0.5, 0.5, 0], np.float32),
        weight=np.asarray([1, 1, 0, 0], np.float32),
    )
    return reward._replace(answers=shown, update_N=np.asarray([1, 1, 3, 0]), asked=3)


def told_rows(reward):
    return answers.rows(reward.answers, reward.update_N, 'teacher', env_steps_per_update=100)


@pytest.mark.parametrize('name', ['answers.jsonl', 'answers.arrayrecord'])
def test_answers_are_read_as_they_were_given(tmp_path, name):
    path = tmp_path / 'deep' / name
    answers.write(path, told_rows(told()))
    same(answers.read(path, WIDTHS), jax.tree.map(lambda x: x[:3], told().answers))


def test_a_row_says_who_answered_and_when(tmp_path):
    rows = list(told_rows(told()))
    assert [row['choice'] for row in rows] == [1.0, 0.5, None]
    assert [row['env_steps'] for row in rows] == [100, 100, 300]
    assert {row['source'] for row in rows} == {'teacher'}
    assert [len(segment) for segment in rows[0]['obs']] == [3, 2]


def test_a_run_goes_on_from_answers_with_places_for_its_own():
    reward = begun(untaught((), told().answers, budget=2, steps=5))
    assert reward.answers.obs.shape == (6, 2, 5, 2)
    same(reward.answers.obs[:4, :, :3], told().answers.obs)
    assert reward.answers.weight.tolist() == [1, 1, 0, 0, 0, 0]
    assert not reward.answers.mask[:, :, 3:].any()
    assert reward.update_N.tolist() == [0] * 6


GOOD = {'obs': [[[0.0, 1.0]], [[1.0, 0.0]]], 'action': [[[0.5]], [[0.1]]], 'choice': 1}


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'obs': [[[0.0, 1.0]]]}, ':2: obs: expected two segments'),
        ({'obs': None}, ':2: obs: expected two segments'),
        ({'obs': [[[0.0]], [[1.0]]]}, r':2: obs: a segment of shape (1, 1); this environment'),
        ({'obs': [[], [[1.0, 0.0]]]}, r':2: obs: a segment of shape (0,); this environment needs'),
        ({'obs': [[[0.0, 1.0], [2.0]], [[1.0, 0.0]]]}, ':2: obs: expected rows of numbers'),
        ({'obs': [[['x', 'y']], [[1.0, 0.0]]]}, ':2: obs: expected rows of numbers'),
        ({'action': [[[float('nan')]], [[0.1]]]}, ':2: action: NaN or infinity'),
        ({'action': [[[0.1], [0.2]], [[0.1]]]}, ':2: action: as many steps as obs'),
        ({'choice': 2}, ':2: choice: should be null or from 0 to 1, got 2'),
        ({'choice': True}, ':2: choice: should be null or from 0 to 1, got True'),
        ({'obs': [[[10**400, 1.0]], [[1.0, 0.0]]]}, ':2: obs: expected rows of numbers'),
        ({'obs': [[[1e39, 1.0]], [[1.0, 0.0]]]}, ':2: obs: NaN or infinity'),
    ],
)
def test_a_row_that_is_none_is_one_line(tmp_path, change, said):
    path = tmp_path / 'answers.jsonl'
    path.write_text('\n'.join(map(json.dumps, (GOOD, GOOD | change))))
    assert message(answers.read, path, WIDTHS).startswith(f'{path}{said}')


@pytest.mark.parametrize(
    ('name', 'content', 'said'),
    [
        ('a.jsonl', b'', ': no answers'),
        ('a.jsonl', b'{"obs"', ':1: not JSON'),
        ('a.jsonl', b'[1]', ':1: expected an object, got list'),
        ('a.arrayrecord', b'no such thing', ': cannot be read ('),
        ('a.jsonl', b'<html>', ': an HTML page in the place of the file'),
        ('b.jsonl', None, ': No such file'),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert message(answers.read, path, WIDTHS).startswith(f'{path}{said}')


def test_answers_that_nobody_gave_are_none(tmp_path):
    """Nothing would be learned from them, without a word."""
    path = tmp_path / 'answers.jsonl'
    path.write_text('\n'.join([json.dumps(GOOD | {'choice': None})] * 3))
    said = f'{path}: no answers: none of its 3 rows has a choice'
    assert message(answers.read, path, WIDTHS) == said
    path.write_text(json.dumps({('label' if key == 'choice' else key): GOOD[key] for key in GOOD}))
    said = f'{path}:1: choice: missing; null where nobody could tell'
    assert message(answers.read, path, WIDTHS) == said


def test_a_row_that_makes_all_others_too_long_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, 'memory', lambda: 2**20)
    path = tmp_path / 'a.jsonl'
    of = lambda width, T: [[[0.0] * width] * T] * 2
    rows = [
        {'obs': of(WIDTHS.obs, T), 'action': of(WIDTHS.action, T), 'choice': 1}
        for T in (*[1] * 39, 1000)
    ]
    path.write_text('\n'.join(map(json.dumps, rows)))
    said = f'{path}: 40 pairs as long as the longest (row 40: 1000 steps) would take at least'
    assert message(answers.read, path, WIDTHS).startswith(said)
    path.write_text('\n'.join(map(json.dumps, rows[30:])))
    assert answers.read(path, WIDTHS).mask.shape == (10, 2, 1000)


def test_a_damaged_record_is_one_line(tmp_path):
    path = tmp_path / 'answers.arrayrecord'
    answers.write(path, iter([GOOD] * 50))
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(content)
    assert message(answers.read, path, WIDTHS).startswith(f'{path}: cannot be read (Corrupted')


def test_what_was_asked_of_a_segment_without_a_step_is_left_out(tmp_path):
    reward = told()
    mask = reward.answers.mask.copy()
    mask[1, 0] = 0
    reward = reward._replace(answers=reward.answers._replace(mask=mask))
    path = tmp_path / 'answers.jsonl'
    answers.write(path, told_rows(reward))
    assert len(answers.read(path, WIDTHS).prob) == 2


@pytest.mark.parametrize('name', ['answers.jsonl', 'answers.arrayrecord', 'reward.safetensors'])
def test_of_what_a_full_disk_does_not_take_no_part_stays(tmp_path, params, name):
    path = tmp_path / name
    with disk_of(300):
        if path.suffix == '.safetensors':
            said = message(write, path, params)
        else:
            said = message(answers.write, path, iter([GOOD] * 9))
    assert 'File too large' in said
    assert not path.exists()


def test_a_file_is_written_where_a_link_leads(tmp_path, params):
    """As root, a device that was replaced would be lost to the whole system."""
    path, link = tmp_path / 'there', tmp_path / 'reward.safetensors'
    path.touch()
    link.symlink_to(path)
    write(link, params)
    assert link.is_symlink()
    same(weights.load(path, params, 'point (none)'), params)


@pytest.fixture(scope='module')
def params():
    ours = reward_ensemble.make(SETTINGS, (2,), 1)
    return jax.device_get(jax.jit(ours.init)(jax.random.key(0)).params)


def test_a_reward_is_read_as_it_was_written(tmp_path, params):
    path = tmp_path / 'reward.safetensors'
    write(path, params)
    same(weights.load(path, params, 'point (none)'), params)
    assert weights.read(path).sizes == SETTINGS


def test_a_reward_is_of_the_type_that_is_needed(tmp_path, params):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    path = tmp_path / 'reward.safetensors'
    write(path, half)
    rounded = jax.tree.map(lambda x: x.astype(np.float32), half)
    same(weights.load(path, params, 'point (none)'), rounded)


def test_a_reward_of_another_environment_is_told(tmp_path, params, capsys):
    path = tmp_path / 'reward.safetensors'
    write(path, params, 'halfcheetah (spring)')
    weights.load(path, params, 'halfcheetah (spring)')
    assert capsys.readouterr().err == ''
    weights.load(path, params, 'walker2d (spring)')
    said = f'{path}: a reward of halfcheetah (spring), used on walker2d (spring)\n'
    assert capsys.readouterr().err == said


def test_another_reward_is_refused(tmp_path, params):
    path = tmp_path / 'reward.safetensors'
    write(path, params)
    other = jax.tree.map(lambda x: jax.ShapeDtypeStruct((3, *x.shape[1:]), x.dtype), params)
    said = message(weights.load, path, other, 'point (none)')
    assert said.startswith(
        f'{path}: a reward of point (none): params.hidden_0.bias is (2, 4); this'
    )
    assert said.endswith('reward.members and reward.hidden need (3, 4)')
    broken = jax.tree.map(lambda x: x * np.nan, params)
    write(path, broken)
    assert message(weights.load, path, params, 'point (none)').endswith('NaN or infinity')
    path.write_bytes(b'junk')
    for read in (weights.read, lambda path: weights.load(path, params, 'point (none)')):
        assert 'cannot be read' in message(read, path)
    np.savez(path.open('wb'), a=1)
    assert message(weights.read, path)


def test_returns_that_do_not_vary_go_with_nothing_and_warn_nobody():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert np.isnan(evaluate.pearson(np.ones(4), np.arange(4.0)))
    assert evaluate.pearson(np.arange(4.0), -np.arange(4.0)) == pytest.approx(-1)


def test_a_reward_is_held_against_answers(params):
    ours, pairs = reward_ensemble.make(SETTINGS, (2,), 1), told().answers
    margin_MxN = np.asarray(reward_ensemble.margins(ours, params, pairs))
    margin, prob = margin_MxN.mean(0)[:2], pairs.prob[:2]  # The others have no answer.
    first = 1 / (1 + np.exp(-margin))
    got = evaluate.on_answers(ours, params, pairs)
    assert got['answers'] == 2
    assert got['answer_accuracy'] == (margin[0] > 0)  # "The same" is no side.
    loss = -(prob * np.log(first) + (1 - prob) * np.log(1 - first)).mean()
    assert got['answer_loss'] == pytest.approx(loss, abs=1e-5)
    assert got['answer_confidence'] == pytest.approx(np.maximum(first, 1 - first).mean(), abs=1e-5)


def test_of_no_answers_nothing_is_known():
    some = reward_ensemble.of_answers(jnp.ones(2), jnp.asarray([1, 0.5]), jnp.asarray([0.0, 1]))
    assert np.isnan(some.pop('answer_accuracy'))  # Of "the same" alone.
    assert np.isfinite(list(some.values())).all()
    none = reward_ensemble.of_answers(jnp.ones(2), jnp.ones(2), jnp.zeros(2))
    assert set(none) == set(reward_ensemble.OF_ANSWERS)
    assert np.isnan(list(none.values())).all()


def test_a_tenth_of_a_files_answers_is_predicted_before_it_is_learned():
    """By what was fitted on the others: here a number, how many there were."""

    def fit(fitted, pairs, key, passes):
        counted = jnp.where(passes > 0, pairs.weight.sum(), fitted.params)
        return reward_ensemble.Fit(fitted._replace(params=counted), jnp.zeros(()), passes)

    def predict(params, obs, action):
        return params * obs[None, ..., 0]

    ours = reward_ensemble.Ensemble(init=None, predict=predict, fit=fit)
    settings = RewardEnsemble.model_validate({'questions': {'budget': 3}})
    ones = np.ones((25, 2, 1, 1), np.float32)
    pairs = reward_ensemble.Comparisons(
        obs=ones * np.arange(25)[:, None, None, None] * [[[2.0]], [[1.0]]],
        action=ones,
        mask=ones[..., 0],
        prob=np.arange(25) % 2.0,
        weight=np.ones(25, np.float32),
    )
    start = reward_ensemble.Fitted(params=jnp.zeros(()), optimizer=())
    before = begun(untaught(start, jax.tree.map(jnp.asarray, pairs), budget=3, steps=1))
    after = beginning.foretold(settings, ours, before, jax.random.key(0))
    assert after.fitted.params == 23
    held = np.isin(np.arange(28), [9, 19])
    np.testing.assert_array_equal(after.margin_N, held * np.arange(28) * 23)
    assert beginning.known_before(settings, after)['answer_accuracy'] == 1
    wrong = after._replace(margin_N=jnp.where(held, -after.margin_N, 7.0))
    assert beginning.known_before(settings, wrong)['answer_accuracy'] == 0
    later = after._replace(asked=jnp.int32(3), margin_N=jnp.ones(28))
    same(beginning.foretold(settings, ours, later, jax.random.key(0)), later)


def test_returns_of_segments_are_sums_of_what_happened():
    mask = np.asarray([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], np.float32)
    true = np.arange(10.0).reshape(2, 5) * mask
    played = Played(true, -true, 0 * true, mask)
    np.testing.assert_array_equal(
        evaluate.in_segments(played, 2), [[1, 5, 4, 11], [-1, -5, -4, -11]]
    )
    np.testing.assert_array_equal(evaluate.in_segments(played, 5)[0], [10, 11])


LEARNED = {
    'labeller': {'source': 'reward'},
    'value': {'terminal': 'learned', 'hidden': [8]},
    'total_env_steps': 4 * 4 * 3 * 5,
}
ROUND = {'candidates': 6, 'per_round': 3, 'budget': 7, 'every_env_steps': 60}


@pytest.mark.slow
def test_from_a_run_to_files_and_back(tmp_path):
    """Answers and reward of one run are what others begin with, without a question of their own."""
    none = {**ROUND, 'budget': 0}
    reward = {'hidden': [8], 'members': 2, 'passes': 5, 'questions': ROUND}
    train(tmp_path / 'asks', make_run(**LEARNED, reward=reward))
    answered, fitted = tmp_path / 'answers.jsonl', tmp_path / 'reward.safetensors'
    sail_jax.export_labels(tmp_path / 'asks', answered, env=Point())
    sail_jax.export_reward(tmp_path / 'asks', fitted, env=Point())
    rows = [json.loads(line) for line in answered.read_text().splitlines()]
    assert [row['env_steps'] for row in rows] == [60] * 3 + [120] * 3 + [180]

    def began(name, **changes):
        run = make_run(**LEARNED, reward=reward | changes)
        result = train(tmp_path / name, run)
        again = tmp_path / f'{name}.safetensors'
        sail_jax.export_reward(tmp_path / name, again, env=Point())
        return result, weights._read(again)[1]

    start = weights._read(fitted)[1]
    # More candidates than there are pairs are none of its business.
    fixed, kept = began('fixed', path=str(fitted), questions={**none, 'candidates': 999})
    assert fixed.labels == 0
    assert not {'train/fit_accuracy', 'train/answer_accuracy'} & fixed.update.keys()
    same(kept, start)
    said = message(lambda: sail_jax.export_labels(tmp_path / 'fixed', answered, env=Point()))
    assert said == f'{tmp_path / "fixed"}: its teacher was asked nothing yet'
    offline, learned = began('offline', answers=str(answered), questions=none)
    assert offline.labels == 0
    assert offline.update['train/fit_accuracy'] > 0
    more, _ = began('more', path=str(fitted), answers=str(answered))
    assert more.labels == 7
    rows = sail_jax.export_labels(tmp_path / 'more', tmp_path / 'more.jsonl', env=Point())
    assert len(rows.read_text().splitlines()) == 7
    with pytest.raises(AssertionError):
        same(learned, start)
    # The files are those that the run began with, or it does not go on.
    longer = make_run(
        **LEARNED | {'total_env_steps': 600},
        reward=reward | {'answers': str(answered), 'questions': none},
    )
    answered.write_text(answered.read_text().replace('"choice": 1.0', '"choice": 0.0'))
    assert 'reward.answers' in message(lambda: train(tmp_path / 'offline', longer, resume=True))
    report = sail_jax.evaluate_reward(tmp_path / 'asks', fitted, episodes=4, env=Point())
    assert report.numbers['episodes'] == 8
    assert -1 <= report.numbers['segment_correlation'] <= 1
    more = tmp_path / 'more.jsonl'
    own = sail_jax.evaluate_reward(tmp_path / 'asks', episodes=4, answers=more, env=Point())
    assert {key: own.numbers[key] for key in report.numbers} == report.numbers
    assert own.numbers['answers'] == 7
    report.picture.write(tmp_path / 'reward.png')
