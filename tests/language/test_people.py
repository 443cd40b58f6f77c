"""Language runs that people label: what is asked, what is learned, going on with a run, export."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import sail_jax
from sail_jax import saved
from sail_jax.errors import Interrupted, UserError
from sail_jax.labels import payloads
from sail_jax.labels.payloads import ResponsePair
from sail_jax.labels.store import NAME, Answer, Question, Store
from sail_jax.language import answers, people
from sail_jax.language.config import check
from sail_jax.language.data import rows
from sail_jax.language.data.rows import Message
from tests.support import answering, labelling, small
from tests.support.answering import Person, StoppedWhenWaiting
from tests.support.checkpoints import same
from tests.support.disk import disk_of
from tests.support.refused import message

PEOPLE = {'source': 'people', 'repeat_every': 0}
B, K = 4, 2


def by_letters(number, payload):
    """Prefers the response with more letters."""
    first, second = small.letters([], payloads.unpack_responses(payload).responses)
    return 'equal' if first == second else 'left' if first > second else 'right'


@pytest.fixture
def made(tmp_path):
    return lambda **settings: small.run(tmp_path / 'm', tmp_path / 'p', **settings)


@pytest.mark.parametrize(
    ('settings', 'said'),
    [
        ({'labeller': PEOPLE | {'soft': True}}, 'labeller.soft: not used by'),
        (
            {'labeller': {'instruction': 'a'}},
            'labeller.instruction: not used by labeller.source: ',
        ),
        ({'labeller': PEOPLE | {'wait': False}}, 'labeller.wait: false: an update of a language'),
        ({'labeller': PEOPLE, 'seeds': 2}, 'without seeds and sweep'),
        ({'labeller': PEOPLE, 'judge': {'model': 'm', 'labels': True}}, 'judge.labels; use one'),
        (
            {'labeller': PEOPLE, 'objective': {'loss': 'rebel'}},
            'labeller.source: people: objective.loss: rebel needs rewards',
        ),
        (
            {'labeller': PEOPLE, 'objective': {'mixture': {'dpr': 0.0, 'dpp': 0.5}}},
            'labeller.source: people: of the rows of objective.mixture.dpr',
        ),
        (
            {'labeller': PEOPLE, 'reward': {'missing_eos_penalty': 1.0}},
            'labeller.source: people: reward.missing_eos_penalty is of rewards',
        ),
    ],
)
def test_what_does_not_go_with_people_is_refused(made, settings, said):
    assert said in message(check, made(**settings))


def test_people_have_a_budget_of_comparisons(made):
    run = made(labeller=PEOPLE | {'max_labels': 9})
    check(run)
    assert not run.needs_function


def test_every_pair_has_a_number_of_its_own_and_every_other_is_turned():
    of_two = list(people.pairs(0, rows=2, group_size=3)) + list(people.pairs(1, 2, 3))
    assert [pair.number for pair in of_two] == list(range(12))
    assert of_two[:4] == [(0, 0, 0, 1), (1, 0, 2, 0), (2, 0, 1, 2), (3, 1, 1, 0)]
    assert {(p.row, *sorted(p[2:])) for p in of_two[6:]} == {
        (row, i, j) for row in (0, 1) for i, j in ((0, 1), (0, 2), (1, 2))
    }


def test_answers_become_labels_of_the_pairs_that_they_are_of():
    said = [('left', 6), ('left', 7), ('equal', 8), ('skip', 10)]
    told = [Answer(number, choice, 'Ann', 0.0) for choice, number in said]
    prob, weight, _ = people.preferences(told, people.pairs(1, 2, 3), (2, 3, 3))
    # Question 7 is of responses 2 and 0, in this order.
    np.testing.assert_array_equal(prob[0], [[0.5, 1, 0], [0, 0.5, 0.5], [1, 0.5, 0.5]])
    np.testing.assert_array_equal(weight[0], 1 - np.eye(3))
    np.testing.assert_array_equal(prob[1], np.full((3, 3), 0.5))
    np.testing.assert_array_equal(weight[1], np.zeros((3, 3)))


@pytest.fixture
def asking(made, tmp_path):
    """`(settings, groups) -> people, exchange, store` of a run of one prompt an update."""

    def open_(groups, **settings):
        run = made(labeller=PEOPLE | settings, prompts_per_update=len(groups), total_prompts=4)
        prompts = [(Message('user', 'a <b>'),)] * len(groups)
        texts = people.Unlabelled(prompts, groups, np.ones(len(groups), bool))
        draw = lambda state: int(state.step)
        asked = people.ResponseQuestions(run, draw, lambda state, batch: texts)
        return asked, asked.open(tmp_path), Store(tmp_path / NAME)

    return open_


def state(step, labels=0):
    return SimpleNamespace(step=np.int32(step), labels=np.int32(labels))


def test_an_update_waits_for_its_questions_and_learns_of_their_answers(asking):
    asked, exchange, store = asking([['x', 'y'], ['z', 'z'], ['u', 'v']])
    exchange.publish(state(0))
    exchange.publish(state(0))  # Of a run that goes on.
    assert store.progress().asked == 2, 'two that read the same are not asked about'
    assert payloads.unpack_responses(store.payload(0)) == ResponsePair(
        'user: a <b>', ('x', 'y'), (('user', 'a <b>'),)
    )
    assert not exchange.ready(state(0))
    answering.answer(store, says=lambda number, payload: 'left')
    assert exchange.ready(state(0))
    exchange.take(state(0))
    assert not store.about()['last']
    exchange.publish(state(1))
    assert store.about()['last']
    assert not exchange.ready(state(1))
    prob, weight, _ = asked.label(state(0), None)[0]
    assert prob[:, 0, 1].tolist() == [1, 0.5, 1]
    assert weight[:, 0, 1].tolist() == [1, 0, 1]
    assert [answer.number for answer in store.take(0, 3)] == [0, 2], 'when it goes on from before'
    exchange.publish(state(2))
    assert store.progress().asked == 4, 'there is no update after the last'


def test_a_budget_ends_within_an_update(asking):
    _, exchange, store = asking([['x', 'y'], ['z', 'w']], max_labels=3)
    exchange.publish(state(1, labels=2))
    assert store.progress().asked == 1


def test_the_last_question_of_a_budget_is_known_as_such(asking):
    _, exchange, store = asking([['x', 'y']], max_labels=2)
    for step, last in ((0, False), (1, True)):
        exchange.publish(state(step, labels=step))
        assert store.about()['last'] == last


def test_answers_are_rows_that_data_are_read_from():
    plain = answers.row(ResponsePair('p', ('a', 'b')), 'right')
    assert rows.trl(plain) == ('p', 'b', 'a', 0.0)
    turns = (('tools', '[{"name": "f"}]'), ('system', 's'), ('user', 'u'))
    chat = answers.row(ResponsePair('as shown', ('a', 'b'), turns), 'left')
    assert rows.trl(json.loads(json.dumps(chat))) == (
        tuple(Message(*turn) for turn in turns),
        'a',
        'b',
        0.0,
    )


@pytest.mark.parametrize('payload', [b'{', b'{}', b'[]', b'{"prompt": 1, "responses": ["a", "b"]}'])
def test_a_damaged_question_is_one_line(payload):
    assert message(payloads.unpack_responses, payload).startswith('no responses: ')


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run that is answered as it goes, and its directory."""
    path = tmp_path_factory.mktemp('people')
    run = small.run(
        small.checkpoint(path / 'model'),
        small.data(path / 'prompts.jsonl'),
        labeller=PEOPLE | {'instruction': 'Which has more letters?'},
    )
    with Person(path / 'run', by_letters):
        return run, sail_jax.train(run, path / 'run', quiet=True), path / 'run'


@pytest.mark.slow
def test_people_label_as_a_judge_does_who_goes_by_the_same(whole, tmp_path):
    def judge(prompts, pairs):
        scores = [small.letters(prompts, side) for side in zip(*pairs, strict=True)]
        return [0.5 + 0.5 * np.sign(a - b) for a, b in zip(*scores, strict=True)]

    run, result, run_dir = whole
    store = Store(run_dir / NAME)
    assert store.progress().answered == result.labels == 16, 'no two responses read the same'
    assert store.about()['instruction'] == 'Which has more letters?'
    teacher = run.model_copy(update={'labeller': type(run.labeller)()})
    judged = sail_jax.train(teacher, tmp_path, judge=judge, quiet=True)
    same(result.policy, judged.policy)
    with pytest.raises(AssertionError):
        same(result.policy.params, result.start.params)


@pytest.mark.slow
def test_the_same_answers_give_the_same_run_however_it_is_stopped(whole, tmp_path):
    run, result, _ = whole
    for begun in range(3):
        resumed = {'resume': True} if begun else {}
        if begun == 2:
            with Person(tmp_path, by_letters):
                stopped = sail_jax.train(run, tmp_path, quiet=True, **resumed)
            break
        with StoppedWhenWaiting(tmp_path), pytest.raises(Interrupted):
            sail_jax.train(run, tmp_path, quiet=True, **resumed)
        answering.answer(Store(tmp_path / NAME), says=by_letters)
    same(stopped.policy, result.policy)


def test_of_answers_that_a_full_disk_does_not_take_no_part_stays(made, tmp_path):
    """A file that ends with a line is read: rows would be missing without a word."""
    store = Store.of_run(tmp_path / NAME, labelling.RESPONSES)
    pair = payloads.pack_responses(ResponsePair('a question', ('one' * 3000, 'another')))
    store.ask([Question(number, 1, pair) for number in range(9)])
    answering.answer(store, says=lambda *_: 'left')
    run = SimpleNamespace(run=made(labeller=PEOPLE), run_dir=tmp_path)
    out = tmp_path / 'pairs.jsonl'
    with disk_of(60_000):
        assert f'{out}: File too large' in message(answers.export_answers, run, out)
    assert not out.exists()
    answers.export_answers(run, out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    said = [(answer.who, answer.time) for answer in store.answers()]
    assert [(row['source'], row['time']) for row in rows] == said
    assert len(rows) == 9


@pytest.mark.slow
def test_answers_train_another_run_offline(whole, tmp_path):
    run, _, run_dir = whole
    out = saved.export_labels(run_dir, tmp_path / 'new' / 'pairs.jsonl')
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert 8 < len(written) <= 16
    assert {row['source'] for row in written} == {'Ann'}
    times = {answer.time for answer in Store(run_dir / NAME).answers()}
    assert {row['time'] for row in written} <= times
    for row in written:
        better, worse = small.letters([], [row['chosen'], row['rejected']])
        assert better > worse
    with pytest.raises(UserError, match='JSON lines; call it'):
        saved.export_labels(run_dir, tmp_path / 'pairs.arrayrecord')
    offline = small.run(
        run.model.path,
        out,
        objective={'mixture': {'dpr': 0.0}},
        divergence={'states': 'data'},
        evaluation={'prompts': 2},
        data={'max_response_tokens': 32},
    )
    result = sail_jax.train(offline, tmp_path / 'offline', quiet=True)
    assert result.after['eval/pair_accuracy'] >= 0
