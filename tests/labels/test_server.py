"""The labelling page's server, over HTTP: who is served, what is taken, what is refused."""

import base64
import contextlib
import http.client
import json
import socket
import threading
import time

import numpy as np
import pytest

from benchmarks import people_study
from sail_jax.labels import guard, payloads, server
from sail_jax.labels.payloads import ResponsePair
from sail_jax.labels.store import NAME, Question, Store
from sail_jax.training import lock
from tests.support import labelling

ANN, BEN = 'a' * 32, 'b' * 32
OURS = {'Content-Type': 'application/json', 'X-Sail-Label': '1'}


@contextlib.contextmanager
def serving(store, token=None):
    """The port of a server in a thread."""
    with contextlib.closing(server.listen('localhost', 0)) as listener:
        made = server.make_server(store, token)
        thread = threading.Thread(target=made.run, kwargs={'sockets': [listener]})
        thread.start()
        while not made.started:
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            made.should_exit = True
            thread.join()


def ask(port, path, body=None, headers=None, method='POST'):
    """Status, headers and content of a reply."""
    connection = http.client.HTTPConnection('localhost', port, timeout=20)
    content = json.dumps(body) if isinstance(body, dict) else body
    connection.request(method, path, content, OURS if headers is None else headers)
    with contextlib.closing(connection):
        reply = connection.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read()


def call(port, name, client=ANN, **body):
    who = {} if name == 'about' else {'who': f'page {client[0]}'}
    status, _, content = ask(port, f'/api/{name}', {'client': client, **who, **body})
    return status, json.loads(content)


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    return labelling.make(tmp_path_factory.mktemp('run') / NAME, 8)


@pytest.fixture(scope='module')
def port(store):
    with serving(store) as port:
        yield port


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """So many requests as tests make are no attack."""
    monkeypatch.setattr(guard, 'BURST', 1e6)


def test_a_page_gets_questions_answers_them_and_takes_an_answer_back(port, store):
    assert call(port, 'about')[1]['instruction'] == 'Which <b>goes</b> further?'
    assert 'token' not in call(port, 'about')[1]
    first = call(port, 'next')[1]['question']
    other = call(port, 'next', BEN)[1]['question']
    assert first['number'] != other['number']
    steps = [side['steps'] for side in first['sides']]
    pair = labelling.pair(first['number'])
    assert steps == pair.mask.sum(1).tolist()
    frames = [np.frombuffer(base64.b64decode(side['poses']), '<f4') for side in first['sides']]
    for i in (0, 1):
        np.testing.assert_array_equal(frames[i], pair.pose[i, : steps[i] + 1].ravel())
    answer = {'ticket': first['ticket'], 'who': 'Ann <i>', 'choice': 'left'}
    status, after = call(port, 'answer', **answer)
    assert (status, after['progress']['yours']) == (200, 1)
    assert after['question']['number'] not in (first['number'], other['number'])
    assert [a.who for a in store.answers() if a.number == first['number']] == ['Ann <i>']
    assert after['progress']['people'] == [['Ann <i>', 1]]
    status, after = call(port, 'undo', yours=1)
    assert after['question']['number'] == first['number']
    assert after['progress']['yours'] == 0
    status, said = call(port, 'answer', **answer)
    assert (status, said) == (
        409,
        {'error': f'question {first["number"]}: it has been answered already'},
    )


@pytest.mark.parametrize(
    ('body', 'status', 'said'),
    [
        ({'client': 'x', 'yours': 1}, 400, 'client: String should match pattern'),
        ({'client': ANN, 'yours': 1}, 400, 'who: Field required'),
        ({'client': ANN, 'who': 'Ann'}, 400, 'yours: Field required'),
        ({'client': ANN, 'who': 'Ann', 'yours': 1, 'more': 1}, 400, 'more: Extra inputs'),
        (
            {'client': ANN, 'who': 'Ann', 'yours': '1'},
            400,
            'yours: Input should be a valid integer',
        ),
        ('{', 400, 'body: Invalid JSON'),
        ('[' * 3000, 400, 'body: Invalid JSON'),
        ('"' + 'a' * 5000 + '"', 413, 'over 4096 bytes'),
    ],
)
def test_a_body_that_is_none_is_refused_in_one_line(port, body, status, said):
    found, _, content = ask(port, '/api/undo', body)
    error = json.loads(content)['error']
    assert found == status
    assert error.startswith(said)
    assert '\n' not in error


@pytest.mark.parametrize(
    ('field', 'value'),
    [('who', ''), ('who', 'a' * 65), ('who', 'a\nb'), ('choice', 'up'), ('ticket', '../../etc')],
)
def test_an_answer_has_a_name_and_a_choice(port, field, value):
    answer = {'ticket': 'f' * 32, 'who': 'Ann', 'choice': 'left'}
    status, said = call(port, 'answer', **answer | {field: value})
    assert status == 400
    assert said['error'].startswith(field)
    assert call(port, 'answer', **answer)[0] == 409


@pytest.mark.parametrize(
    ('headers', 'status', 'said'),
    [
        ({'Origin': 'http://evil.example'}, 403, 'not from this page'),
        ({'Origin': 'null'}, 403, 'not from this page'),
        ({'Origin': 'http://['}, 403, 'not from this page'),
        ({'Sec-Fetch-Site': 'cross-site'}, 403, 'not from this page'),
        ({'X-Sail-Label': ''}, 403, 'not from this page'),
        ({'Content-Type': 'text/plain'}, 415, 'expected JSON'),
        ({'Host': 'evil.example'}, 403, 'not for this host'),
        ({'Host': '[::1'}, 403, 'not for this host'),
    ],
)
def test_requests_of_other_pages_are_refused(port, store, headers, status, said):
    found, _, content = ask(port, '/api/next', {'client': 'c' * 32}, OURS | headers)
    assert (found, json.loads(content)['error']) == (status, said)
    assert ask(port, '/api/next', {'client': ANN}, {})[0] == 403


def test_the_pages_own_origin_is_served_and_no_other_page_can_frame_it(port):
    ours = {'Origin': f'http://localhost:{port}', 'Sec-Fetch-Site': 'same-origin'}
    status, headers, _ = ask(port, '/api/about', {'client': ANN}, OURS | ours)
    assert status == 200
    assert "default-src 'none'" in headers['content-security-policy']
    assert "frame-ancestors 'none'" in headers['content-security-policy']
    assert 'set-cookie' not in headers
    assert 'access-control-allow-origin' not in headers


@pytest.mark.parametrize('path', sorted(server.FILES))
def test_the_page_is_files_of_the_package_that_name_no_other_host(port, path):
    status, headers, content = ask(port, path, method='GET')
    assert (status, content) == (200, server.content(path)[0])
    assert headers['content-type'].startswith(server.FILES[path][2])
    assert b'http://' not in content
    assert b'https://' not in content


@pytest.mark.parametrize(
    'path',
    ['/label.py', '/../setup.py', '/page/label.html', '/%2e%2e/setup.py', '//etc/passwd', '/api/x'],
)
def test_no_other_path_is_served(port, path):
    assert ask(port, path, method='GET')[0] in (404, 405)


def test_other_hosts_need_the_token(tmp_path):
    store = labelling.make(tmp_path / NAME, 1)
    assert server.token_for('localhost', store) is server.token_for('::1', store) is None
    token = server.token_for('0.0.0.0', store)
    assert len(token) == 32
    assert token == server.token_for('10.0.0.7', Store(store.path))  # As before the restart.
    with serving(store, token) as port:
        name = {'Host': 'farm.example'}
        assert ask(port, '/', method='GET', headers=name)[0] == 200
        for told in ({}, {'Authorization': 'Bearer x'}, {'Authorization': f'Bearer {token}x'}):
            assert ask(port, '/api/next', {'client': ANN}, OURS | name | told)[0] == 401
        told = {'Authorization': f'Bearer {token}'}
        assert ask(port, '/api/next', {'client': ANN, 'who': 'Ann'}, OURS | name | told)[0] == 200


HALF = b'GET / HTTP/1.1\r\nHost: localhost\r\n'


@pytest.mark.parametrize('half', [b'', HALF[:9], HALF])
def test_half_a_request_does_not_keep_its_connection(port, monkeypatch, half):
    monkeypatch.setattr(server, 'HEAD_S', 0.2)
    with socket.create_connection(('localhost', port), timeout=5) as connection:
        connection.sendall(half)
        assert connection.recv(1) == b''


def test_half_a_request_after_a_whole_one_does_not_keep_its_connection(port, monkeypatch):
    monkeypatch.setattr(server, 'HEAD_S', 0.2)
    page = server.content('/')[0]
    with socket.create_connection(('localhost', port), timeout=5) as connection:
        connection.sendall(HALF)
        connection.sendall(b'\r\n')
        received = b''
        while not received.endswith(page):
            received += connection.recv(2**16)
        time.sleep(0.4)  # A page that asks again later is not too late.
        connection.sendall(HALF)
        assert connection.recv(1) == b''


def test_requests_are_bounded_in_rate(monkeypatch):
    monkeypatch.setattr(guard, 'BURST', 3.0)
    now = [100.0]
    monkeypatch.setattr(guard.time, 'monotonic', lambda: now[0])
    rate = guard.Rate()
    for _ in range(3):
        rate.spend('10.0.0.1')
    with pytest.raises(guard.Denied, match='too many requests'):
        rate.spend('10.0.0.1')
    rate.spend('10.0.0.2')
    now[0] += 1.5 / guard.RATE
    rate.spend('10.0.0.1')
    with pytest.raises(guard.Denied):
        rate.spend('10.0.0.1')
    for number in range(2 * guard.MAX_ADDRESSES):
        rate.spend(str(number))
    assert len(rate._buckets) == guard.MAX_ADDRESSES


@pytest.mark.parametrize(('method', 'path'), [('GET', '/'), ('POST', '/api/about')])
def test_who_asks_too_often_is_told_so_by_the_server(store, monkeypatch, method, path):
    monkeypatch.setattr(guard, 'BURST', 3.0)
    monkeypatch.setattr(guard, 'RATE', 0.0)
    with serving(store) as port:
        replies = [ask(port, path, {'client': ANN}, method=method) for _ in range(5)]
        assert [status for status, _, _ in replies] == [200] * 3 + [429] * 2
        assert json.loads(replies[-1][2]) == {'error': 'too many requests; wait a second'}
        monkeypatch.setattr(guard, 'RATE', 1e6)
        assert ask(port, path, {'client': ANN}, method=method)[0] == 200


BEGUN = b'POST /api/about HTTP/1.1\r\nHost: localhost\r\n' + b''.join(
    f'{name}: {value}\r\n'.encode() for name, value in OURS.items()
)


def dribble(connection, part):
    """For 5 s."""
    for _ in range(250):
        connection.sendall(part)
        time.sleep(0.02)


@pytest.mark.parametrize(
    ('sent', 'status', 'said'),
    [
        (b'Content-Length: 9999\r\n\r\n{"client"', 408, 'the request did not come to its end'),
        (b'Content-Length: 9999\r\n\r\n', 408, 'the request did not come to its end'),
        (b'Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n', 408, 'the request did not come'),
        # Refused before its end, which may never come.
        (b'Content-Length: 999999999\r\n\r\n' + b'a' * 4097, 413, 'over 4096 bytes'),
        (b'Transfer-Encoding: chunked\r\n\r\n' + b'800\r\n%s\r\n' % (b'a' * 2048) * 3, 413, 'over'),
    ],
)
def test_a_body_is_bounded_in_time_and_size(port, monkeypatch, sent, status, said):
    monkeypatch.setattr(guard, 'BODY_S', 0.2)
    monkeypatch.setattr(server, 'HEAD_S', 0.2)
    with socket.create_connection(('localhost', port), timeout=20) as connection:
        connection.sendall(BEGUN + sent)
        reply = http.client.HTTPResponse(connection)
        reply.begin()
        assert reply.status == status
        assert json.loads(reply.read())['error'].startswith(said)
        more = b'1\r\na\r\n' if b'chunked' in sent else b'a'
        with pytest.raises(ConnectionError):  # Whoever goes on with it is hung up on.
            dribble(connection, more)


def test_responses_of_a_language_model_are_texts(tmp_path):
    store = Store.of_run(tmp_path / NAME, labelling.RESPONSES)
    texts = '<script>alert(1)</script>', 'a\nb ü'
    store.ask([Question(0, 1, payloads.pack_responses(ResponsePair('Say "x" & </pre>', texts)))])
    with serving(store) as port:
        question = call(port, 'next')[1]['question']
    assert question['prompt'] == 'Say "x" & </pre>'
    assert question['sides'] == list(texts)


@pytest.mark.parametrize(
    ('payload', 'said'),
    [
        (b'nothing', 'no segments: '),
        (payloads.pack_segments(labelling.pair(0)._replace(mask=np.ones((2, 9)))), 'T is 9'),
        (payloads.pack_segments(labelling.pair(0)._replace(mask=np.ones(4))), 'mask of shape (4,)'),
        (
            payloads.pack_segments(labelling.pair(0)._replace(pose=np.ones((2, 21, 1, 6)))),
            'pose of shape (2, 21, 1, 6)',
        ),
    ],
)
def test_segments_that_are_none_are_one_line(tmp_path, payload, said):
    store = Store.of_run(tmp_path / NAME, labelling.SEGMENTS)
    store.ask([Question(0, 1, payload)])
    with serving(store) as port:
        status, error = call(port, 'next')
    assert status == 500
    assert said in error['error']
    assert '\n' not in error['error']


def test_a_page_without_a_question_is_told_whether_more_come_and_who_trains(tmp_path):
    run_dir = tmp_path / 'a run'
    run_dir.mkdir()
    store = labelling.make(run_dir / NAME, 1)

    def told(port):
        said = call(port, 'next')[1]
        return said['question'], said['last'], said['stopped']

    with serving(store) as port:
        shown = call(port, 'next')[1]['question']
        call(port, 'answer', ticket=shown['ticket'], choice='left')
        with lock.held(run_dir):
            assert told(port) == (None, False, None)
            store.ask([labelling.question(0)], last=True)
            assert told(port) == (None, True, None)
        question, last, how = told(port)
    assert (question, last) == (None, True)
    path = f"'{run_dir}'"
    assert how == f'go on with: sail-jax train {path}/config.yaml --run-dir {path} --resume'


def test_the_studys_person_goes_by_what_the_page_shows_and_errs_as_often_as_it_should(tmp_path):
    store = labelling.make(tmp_path / NAME, 70)  # More than are answered at once.
    with serving(store) as port:
        person = people_study.ScriptedPerson(f'http://localhost:{port}/', seed=3, mistakes=0.2)
        person.answer_all()
    said = [answer.choice for answer in store.answers()]
    # The second of a pair ends early where it is shorter: upright for less long.
    true = ['left' if number % 2 == 0 else 'right' for number in range(70)]
    wrong = sum(a != b for a, b in zip(said, true, strict=True))
    assert wrong == person.wrong
    assert 6 <= wrong <= 23
    assert person.answers == 70


def test_the_study_asks_for_a_gain_that_its_interval_is_above():
    def of(*gains):
        ends = ({'reference': {'return': 50.0}, 'trained': {'return': 50.0 + g}} for g in gains)
        return people_study.verdict(dict(enumerate(ends)))

    sure = of(200.0, 210.0, 190.0, 205.0, 195.0)
    assert sure['passed']
    assert sure['gain']['value'] == 200
    assert 190 < sure['gain']['low'] < 200 < sure['gain']['high'] < 210
    assert not of(400.0, 10.0, 0.0, 300.0, 20.0)['passed']
