"""A judge behind an API of OpenAI's form."""

import json
import re
import threading

import numpy as np
import pytest

from sail_jax.errors import UserError
from sail_jax.language.config import check
from sail_jax.language.reward import endpoint, labels, rewards
from sail_jax.language.reward.config import JudgeEndpoint
from sail_jax.language.reward.labels import Rater
from sail_jax.language.samples import Answers
from sail_jax.language.scored import numbers
from tests.support import api, small

PROMPTS = ['a', [{'role': 'user', 'content': 'b'}], 'c', 'd']
PAIRS = [('one', 'two'), ('two', 'one'), ('same', 'same'), ('what', 'one')]
CHOSEN = re.compile(r'\[Answer ([AB])\]\none\n')


def prefers_one(question):
    """By its place; of others no verdict."""
    place = CHOSEN.search(question)
    return 'Hm.' if place is None or 'what' in question else f'[[C]]? No, [[{place[1]}]].'


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv('JUDGE_KEY', api.KEY)
    monkeypatch.setenv('NO_PROXY', '*')


def settings(server, **more):
    of_server = {'model': 'tiny', 'base_url': server.url, 'api_key_env': 'JUDGE_KEY', 'retries': 0}
    return JudgeEndpoint.model_validate(of_server | more)


def test_verdicts_are_probabilities_of_the_first():
    with api.running(prefers_one) as server:
        got = endpoint.make(settings(server, arguments={'seed': 3, 'max_tokens': None}))(
            PROMPTS, PAIRS
        )
    np.testing.assert_array_equal(got, [1, 0, 0.5, np.nan])
    assert len(server.requests) == 3  # Of equal responses nobody is asked.
    one = next(body for body in server.requests if '\nb\n' in body['messages'][0]['content'])
    assert one.pop('path') == '/v1/chat/completions'
    assert one.pop('messages')[0]['role'] == 'user'
    assert one == {'model': 'tiny', 'temperature': 0, 'seed': 3}


@pytest.mark.parametrize(
    ('answer', 'expected'),
    [
        ('<think>[[A]]?</think>\n[[B]]', 0.0),
        ('It may be [[A]].</think> No: [[B]]', 0.0),
        ('<think>End with [[A]], [[B]] or [[C]]', np.nan),
        ('<think>[[A]]?</think> B is better.', np.nan),
        ('[[A]]', 1.0),
    ],
)
def test_a_judges_thoughts_are_no_verdict(answer, expected):
    np.testing.assert_equal(endpoint.verdict(answer), expected)


@pytest.mark.parametrize(
    ('content', 'ending', 'said'),
    [
        ('I shall say [[A]], [[B]] or [[C]]. First', 'length', ''),
        ('Well. **[[B]]**', 'length', 'Well. **[[B]]**'),
        ('[[A]] it is', 'stop', '[[A]] it is'),
    ],
)
def test_what_was_cut_off_has_a_verdict_at_its_very_end_or_none(content, ending, said):
    choice = {'message': {'content': content}, 'finish_reason': ending}
    body = json.dumps({'choices': [choice]}).encode()
    assert endpoint._content(JudgeEndpoint(model='m'), body) == said


def test_as_many_requests_as_are_allowed_are_made_at_a_time():
    meeting = threading.Barrier(3)

    def say(question):
        meeting.wait(timeout=60)
        return '[[A]]'

    with api.running(say) as server:
        got = endpoint.make(settings(server, concurrency=3))(['p'] * 6, [('a', 'b')] * 6)
    assert got == [1.0] * 6


def test_texts_stand_in_their_places_whatever_they_say():
    asked = JudgeEndpoint(model='m', template='{second}|{first}|{prompt}')
    turns = [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': '{first}'}]
    got = endpoint.question(asked, turns, ('{prompt}\\1', 'two'))
    assert got == 'two|{prompt}\\1|user: hi\n\nassistant: {first}'


def test_a_server_that_puts_off_is_asked_again():
    said = iter(
        [(429, {'Retry-After': '0'}, 'slow down'), (503, {'Retry-After': '0'}, ''), '[[B]]']
    )
    with api.running(lambda _: next(said)) as server:
        assert endpoint.make(settings(server, retries=2))(['p'], [('a', 'b')]) == [0.0]
    assert len(server.requests) == 3


def silent(question):
    threading.Event().wait(0.5)
    return '[[A]]'


@pytest.mark.parametrize(
    ('say', 'more', 'message'),
    [
        (str, {'api_key_env': 'HOME'}, r'URL: does not take the key in HOME: 401'),
        (str, {'api_key_env': None}, r'URL: wants a key \(judge.api_key_env\): 401'),
        (
            str,
            {'api_key_env': 'NO_SUCH_KEY'},
            r'no NO_SUCH_KEY in the environment, the key for URL',
        ),
        (lambda _: (404, {}, f'no tiny for {api.KEY}'), {}, r'URL: 404: no tiny for \.\.\.$'),
        (lambda _: (302, {'Location': 'http://127.0.0.1:1/'}, 'moved'), {}, r'URL: 302: moved$'),
        (lambda _: (500, {}, 'oh'), {}, r'URL: 500: oh$'),
        (lambda _: (500, {'Retry-After': '0'}, 'oh'), {'retries': 2}, r'URL: 500: oh, 3 times$'),
        (lambda _: b'<html>\nhi', {}, r'URL: no chat completion: <html> hi$'),
        (lambda _: b'{"choices": []}', {}, r'URL: no chat completion: '),
        (silent, {'timeout_s': 0.05}, r'URL: no answer in 0\.05 s$'),
        (str, {'base_url': 'http://127.0.0.1:9'}, r'http://127.0.0.1:9: cannot be reached: .+$'),
    ],
)
def test_what_goes_wrong_is_one_line_without_the_key(say, more, message):
    with api.running(say) as server:
        judge = endpoint.make(settings(server, **more))
        with pytest.raises(UserError) as caught:
            rewards.compare(judge, ['p'], [['a', 'b']], timeout_s=60)
    assert re.match('judge: ' + message.replace('URL', server.url), str(caught.value))
    assert '\n' not in str(caught.value)
    assert api.KEY not in str(caught.value)


def rater(server, **more):
    run = small.run('m', 'd', judge=settings(server, **more).model_dump())
    return run, labels.make(run, None)


def test_answers_without_a_verdict_are_ties_and_counted():
    asked = np.asarray([True, True, False])
    groups = [['one', 'two'], ['what', 'two'], ['one', 'two']]
    with api.running(prefers_one) as server:
        _, judging = rater(server, labels=True)
        judged = labels.scores(judging, ['a', 'b', 'c'], groups, asked, 2)
        got, metrics = labels.with_ties(judging, judged)
        np.testing.assert_array_equal(got.prob_BxKxK[:, 0, 1], [1, 0.5, 0])
        assert metrics['no_verdict'].tolist() == [1]
        one = np.ones((3, 1), int)
        of = lambda *texts: Answers(one, one, one, [[text] for text in texts], None)
        ours, chosen = of('one', 'what', 'same'), of('two', 'one', 'same')
        told = numbers(judging, ['a', 'b', 'c'], ours, of('one', 'one', 'two'), chosen)
    assert told['chosen_win_rate'] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert told['chosen_ties'] == pytest.approx(2 / 3)
    # Of the second in both orders, and against the start; there the third too, without a `one`.
    assert told['no_verdict'] == 4
    assert 'not_finite' not in told


def test_a_judge_of_evaluations_labels_nothing(monkeypatch):
    with api.running(prefers_one) as server:
        run, judging = rater(server)
        assert judging.compare is not None
        assert labels.of_training(run, judging) == Rater()
        with pytest.raises(UserError, match=r'^reward\.source: none'):
            labels.check(run, labels.of_training(run, judging))
        labelling, judging = rater(server, labels=True)
    assert labels.of_training(labelling, judging) == judging
    assert run.needs_function
    assert not labelling.needs_function
    labels.check(labelling, judging)
    monkeypatch.delenv('JUDGE_KEY')
    with pytest.raises(UserError, match=r'^judge: no JUDGE_KEY in the environment'):
        labels.check(labelling, judging)
    with pytest.raises(UserError, match=r'^judge\.model: tiny, and a judge from Python'):
        labels.make(labelling, None, judge=lambda prompts, pairs: [])


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        ({'judge': {'labels': True}}, r'judge\.labels: not used without judge\.model'),
        (
            {'judge': {'model': 'm', 'template': '{prompt} {first}'}},
            r'judge\.template: has no {sec',
        ),
        ({'judge': {'model': 'm', 'arguments': {'stream': True}}}, r'judge\.arguments: stream'),
        (
            {'judge': {'model': 'm', 'labels': True}, 'objective': {'loss': 'rebel'}},
            r'judge\.labels: objective\.loss: rebel',
        ),
        (
            {'judge': {'model': 'm', 'labels': True}, 'reward': {'missing_eos_penalty': 1.0}},
            r'judge\.labels: reward\.missing_eos_penalty',
        ),
        *(
            (
                {'judge': {'model': 'm', 'labels': True}, 'labeller': labeller},
                rf'labeller\.{next(iter(labeller))}: .*; not used by judge\.labels',
            )
            for labeller in ({'rationality': 1.0}, {'mistake': 0.1}, {'skip': 0.5}, {'kind': 'x'})
        ),
        (
            {
                'judge': {'model': 'm', 'labels': True},
                'objective': {'mixture': {'dpr': 0}},
                'divergence': {'states': 'data'},
            },
            r'judge\.labels: of the rows of objective\.mixture\.dpr',
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(more, message):
    with pytest.raises(UserError, match=f'^{message}'):
        check(small.run('m', 'd', **more))


@pytest.mark.parametrize(
    'url', ['localhost:8000/v1', 'http://me:key@host/v1', 'https://host/v1?key=k', 'file:///v1']
)
def test_an_address_has_no_place_for_a_key(url):
    with pytest.raises(ValueError, match='base_url'):
        JudgeEndpoint(model='m', base_url=url)
