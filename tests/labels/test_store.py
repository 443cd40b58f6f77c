"""Questions and answers of several people, each answer once, whatever is killed."""

import contextlib
import sqlite3
import subprocess
import sys
import time

import pytest

from sail_jax.errors import Busy, UserError
from sail_jax.labels import command, queue
from sail_jax.labels import store as label_store
from sail_jax.labels.queue import Refused
from sail_jax.labels.store import NAME, Store
from tests.support import labelling
from tests.support.paths import ROOT
from tests.support.refused import message

ANN, BEN = 'a' * 32, 'b' * 32


@pytest.fixture
def store(tmp_path):
    return labelling.make(tmp_path / NAME, 6)


def say(store, client, choice='left', who='somebody'):
    shown = store.next(client, who)
    store.answer(shown.ticket, client, who, choice)
    return shown.number


def said(store):
    return [(answer.number, answer.choice) for answer in store.answers()]


def test_people_get_different_questions_and_keep_theirs_until_they_answer(store):
    ann, ben = store.next(ANN), store.next(BEN)
    assert (ann.number, ben.number) == (0, 1)
    assert store.next(ANN) == ann
    assert store.next(ANN).payload == labelling.question(0).payload
    store.answer(ann.ticket, ANN, 'Ann', 'right')
    assert store.next(ANN).number == 2
    assert said(store) == [(0, 'right')]
    assert store.answers()[0].who == 'Ann'
    progress = store.progress(ANN)
    assert (progress.asked, progress.answered, progress.waiting, progress.yours) == (6, 1, 5, 1)
    assert store.progress(BEN).yours == 0


def test_a_store_on_a_disk_that_takes_nothing_is_read(store, monkeypatch):
    path = store.path
    say(store, ANN)
    monkeypatch.setattr(label_store, 'writable', lambda path: False)
    with store._reading():
        assert [file.name for file in path.parent.iterdir()] == [NAME], 'nothing is written'
    with contextlib.closing(sqlite3.connect(path)) as other:  # Whose answer is not in the file yet.
        other.execute("update answers set choice = 'right'")
        other.commit()
        assert said(Store(path)) == [(0, 'right')]
    assert 'cannot be written, and takes no' in message(command.opened, path.parent)
    path.unlink()
    assert message(store.next, ANN) == message(store.progress) == f'{path}: is gone'


def test_an_answer_that_is_sent_again_counts_once(store):
    shown = store.next(ANN)
    for _ in range(2):
        store.answer(shown.ticket, ANN, 'Ann', 'left')
    assert said(store) == [(0, 'left')]
    assert 'answered already' in message(store.answer, shown.ticket, ANN, 'Ann', 'right')


def test_an_answer_is_of_the_page_that_was_shown_the_question(store):
    shown = store.next(ANN)
    with pytest.raises(Refused, match='was not shown'):
        store.answer(shown.ticket, BEN, 'Ben', 'left')
    with pytest.raises(Refused, match='was not shown'):
        store.answer('f' * 32, ANN, 'Ann', 'left')
    with pytest.raises(Refused, match='one of left, right, equal, skip'):
        store.answer(shown.ticket, ANN, 'Ann', 'up')
    assert said(store) == []


def test_a_question_nobody_answers_in_time_goes_to_another_and_the_first_answer_counts(
    store, monkeypatch
):
    monkeypatch.setattr(queue, 'LEASE_S', -1.0)
    late, fast = store.next(ANN), store.next(BEN)
    assert late.number == fast.number == 0
    store.answer(fast.ticket, BEN, 'Ben', 'equal')
    with pytest.raises(Refused, match='question 0: Ben has answered it meanwhile'):
        store.answer(late.ticket, ANN, 'Ann', 'left')
    assert said(store) == [(0, 'equal')]
    assert store.next(ANN).number == 1


def test_who_opens_the_page_anew_gets_what_the_closed_one_was_shown(tmp_path):
    store = labelling.make(tmp_path / NAME, 3)
    closed, anew = store.next(ANN, 'Ann'), 'c' * 32
    assert store.next('d' * 32).number == 1
    assert say(store, anew, who='Ann') == 2  # What nobody has comes first.
    assert store.next(BEN, 'Ben') is store.next('e' * 32) is None  # No name is nobody's.
    assert store.next(anew, 'Ann').number == closed.number == 0
    assert store.next(BEN, 'Ben') is None
    assert say(store, anew, who='Ann') == 0
    with pytest.raises(Refused, match='question 0: Ann has answered it meanwhile'):
        store.answer(closed.ticket, ANN, 'Ann', 'right')
    assert said(store) == [(0, 'left'), (2, 'left')]


def test_a_page_that_asks_again_is_not_written_down_again_until_its_name_changes(store):
    store.next(ANN, 'Ann')
    sql(store.path, 'create table written (who text)')
    for event in ('insert', 'update'):
        note = 'insert into written values (new.who)'
        sql(store.path, f'create trigger {event}d after {event} on pages begin {note}; end')
    for who in ('Ann', 'Ann', 'Anna', 'Anna'):
        store.next(ANN, who)
    db = sqlite3.connect(store.path)
    assert db.execute('select who from written').fetchall() == [('Anna',)]
    assert db.execute('select who from pages').fetchall() == [('Anna',)]


def test_a_clock_that_is_set_back_keeps_no_question_from_others(store, monkeypatch):
    now = time.time()
    monkeypatch.setattr(label_store.time, 'time', lambda: now + 86_400)
    early = store.next(ANN)
    monkeypatch.setattr(label_store.time, 'time', lambda: now)
    assert store.next(BEN).number == early.number == 0
    assert store.next(BEN).number == store.next(ANN).number == 0
    assert store.next('c' * 32).number == 1


def test_undo_withdraws_one_answer_after_the_other_and_deletes_none(store):
    numbers = [say(store, ANN) for _ in range(3)]
    store.next(ANN)
    assert numbers == [0, 1, 2]
    again = store.undo(ANN, yours=3)
    assert again.number == 2
    assert store.undo(ANN, yours=3) == again  # Sent again.
    assert store.next(ANN) == again
    assert store.undo(ANN, yours=2).number == 1
    assert store.next(BEN).number == 2
    assert say(store, ANN, 'skip') == 1
    assert said(store) == [(0, 'left'), (1, 'skip')]
    with sqlite3.connect(store.path) as db:
        assert db.execute('select count(*) from answers').fetchone() == (4,)
    with pytest.raises(Refused, match='no answer of this page'):
        store.undo('c' * 32, yours=0)


def test_a_question_whose_answer_is_taken_back_is_asked_again_though_it_was_repeated(tmp_path):
    store = labelling.make(tmp_path / NAME, 3, repeat_every=1)
    assert [say(store, client) for client in (ANN, BEN, BEN)] == [0, 1, 0]
    store.undo(ANN, yours=1)
    assert not store.has_answers(1)
    assert store.next(ANN).number == 0  # Of a page that was loaded anew.
    assert store.next(BEN).number == 2
    assert say(store, ANN) == 0
    assert store.has_answers(2)


def test_progress_says_how_many_questions_each_name_answered(tmp_path):
    store = labelling.make(tmp_path / NAME, 6, repeat_every=4)
    assert store.progress().people == ()
    for who, client in (('Ben', BEN), *[('Ann', ANN)] * 3, ('Zoe', ANN), ('Zoe', ANN)):
        say(store, client, who=who)  # The last is a repeated one, and no new question.
    progress = store.progress()
    assert progress.repeated == 1
    assert progress.people == (('Ann', 3), ('Ben', 1), ('Zoe', 1))
    assert sum(count for _, count in progress.people) == progress.answered
    store.undo(BEN, yours=1)
    assert store.progress().people == (('Ann', 3), ('Zoe', 1))


def test_some_questions_are_asked_again_the_other_way_round(tmp_path):
    store = labelling.make(tmp_path / NAME, 12, repeat_every=4)
    order = []
    while (shown := store.next(ANN)) is not None:
        order.append((shown.number, shown.turned))
        # Says the same of 0, as it was asked, and of the second that is repeated the opposite.
        store.answer(shown.ticket, ANN, 'Ann', 'right' if order[-1] == (0, True) else 'left')
    assert order[:5] == [(0, False), (1, False), (2, False), (3, False), (0, True)]
    assert order[9] == (1, True)
    assert [number for number, turned in order if not turned] == list(range(12))
    progress = store.progress()
    assert (progress.answered, progress.repeated, progress.agreed) == (12, 3, 1)
    assert said(store) == [(number, 'left') for number in range(12)]


def test_a_repeated_question_that_somebody_else_has_answered_is_not_shown_again(
    tmp_path, monkeypatch
):
    store = labelling.make(tmp_path / NAME, 6, repeat_every=1)
    assert [say(store, page) for page in ('c' * 32, ANN, BEN)] == [0, 1, 2]
    monkeypatch.setattr(queue, 'LEASE_S', -1.0)
    late = store.next(ANN)
    monkeypatch.undo()
    shown = store.next(BEN)
    assert (late.number, shown.number, shown.turned) == (0, 0, True)
    store.answer(late.ticket, ANN, 'Ann', 'left')
    with pytest.raises(Refused, match='question 0: Ann has answered it meanwhile'):
        store.answer(shown.ticket, BEN, 'Ben', 'left')
    assert store.next(BEN).number == 1


@pytest.mark.parametrize(
    ('first', 'second', 'repeated', 'agreed'),
    [
        ('left', 'left', 1, 1),
        ('left', 'right', 1, 0),
        ('equal', 'equal', 1, 1),
        ('equal', 'left', 1, 0),
        ('left', 'skip', 0, 0),
        ('skip', 'left', 0, 0),
        ('skip', 'skip', 0, 0),
    ],
)
def test_who_cannot_tell_neither_agrees_nor_disagrees(tmp_path, first, second, repeated, agreed):
    store = labelling.make(tmp_path / NAME, 2, repeat_every=1)
    say(store, BEN, first)
    say(store, ANN)
    shown = store.next(ANN)
    assert (shown.number, shown.turned) == (0, True)
    choice = label_store.TURNED.get(second, second)
    store.answer(shown.ticket, ANN, 'Ann', choice)
    progress = store.progress()
    assert (progress.repeated, progress.agreed) == (repeated, agreed)


def test_training_learns_of_each_answer_once_and_of_the_same_when_it_goes_on(store):
    say(store, ANN, 'right')
    assert store.take(2, 0) == []  # Before it asked.
    assert [answer.number for answer in store.take(3, 6)] == [0]
    assert store.take(4, 6) == []
    say(store, ANN)
    assert [answer.number for answer in store.take(5, 6)] == [1]
    say(store, ANN)
    # Killed, and gone on from update 3: nothing newer until it is where it was.
    assert [[answer.number for answer in store.take(step, 6)] for step in (3, 4, 5, 6)] == [
        [0],
        [],
        [1],
        [2],
    ]
    with pytest.raises(Refused, match='question 2: training has learned of this answer'):
        store.undo(ANN, yours=3)
    assert len(store.answers()) == 3


def test_a_question_is_asked_once_and_another_of_its_number_is_refused(store):
    store.ask([labelling.question(0), labelling.question(6)])
    assert store.progress().asked == 7
    foreign = labelling.question(1)._replace(number=2)
    assert f'{store.path}: question 2 is another one' in message(store.ask, [foreign])
    assert store.payload(2) == labelling.question(2).payload


@pytest.mark.parametrize(
    ('damage', 'what'),
    [
        (lambda path: path.write_bytes(b'no database at all' * 99), 'it is damaged, or no store'),
        (lambda path: path.write_bytes(path.read_bytes()[:9000]), 'damaged'),
        (lambda path: path.write_bytes(b''), 'not a store of labels'),
        (lambda path: path.unlink(), 'no questions; train with labeller.source: people first'),
        (lambda path: sql(path, 'pragma user_version = 9'), 'form 9; this version reads 1'),
    ],
)
def test_a_damaged_store_is_one_line(store, damage, what):
    sql(store.path, 'pragma wal_checkpoint(truncate)')
    damage(store.path)
    assert what in message(Store, store.path)


def test_a_damaged_question_is_one_line(store):
    sql(store.path, "update questions set payload = x'00' where number = 0")
    assert f'{store.path}: question 0 is damaged' in message(store.next, ANN)
    assert 'there is no question 77' in message(store.payload, 77)


@pytest.mark.parametrize('value', ['[', '"ten"', 'null'])
def test_a_store_that_says_nothing_of_itself_is_one_line(store, value):
    sql(store.path, f"update about set value = '{value}' where key = 'repeat_every'")
    for ask in (store.about, lambda: store.next(ANN)):
        assert f'{store.path}: damaged' in message(ask)


def test_a_store_that_another_program_has_locked_is_busy(store, monkeypatch):
    monkeypatch.setattr(label_store, 'BUSY_S', 0.1)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute('begin immediate')
    with pytest.raises(Busy, match='database is locked'):
        store.next(ANN)
    other.execute('rollback')
    other.close()
    assert store.next(ANN).number == 0


def test_a_store_of_another_run_keeps_what_it_says(store):
    ours = Store.of_run(store.path, labelling.SEGMENTS | {'instruction': 'ours'})
    foreign = labelling.question(1)._replace(number=2)
    assert 'question 2 is another one' in message(ours.ask, [foreign])
    ours.ask([])
    assert store.about()['instruction'] == labelling.SEGMENTS['instruction']
    ours.ask([labelling.question(2)])
    assert store.about()['instruction'] == 'ours'


def sql(path, statement):
    db = sqlite3.connect(path)
    with db:
        db.execute(statement)
    db.close()


def start(path, client):
    command = [sys.executable, '-m', 'tests.support.labelling', str(path), client]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_processes_that_are_killed_lose_and_double_nothing(tmp_path, monkeypatch):
    store = labelling.make(tmp_path / NAME, 150)
    processes = [start(store.path, client) for client in (ANN, BEN)]
    while store.progress().answered < 20:
        time.sleep(0.01)
    for process in processes:
        process.kill()
    told = [int(line) for process in processes for line in process.communicate()[0].split()]
    answered = [answer.number for answer in Store(store.path).answers()]
    assert 20 <= len(answered) < 150
    # A reply can be lost on its way, an answer that was confirmed cannot.
    assert set(told) <= set(answered)
    assert len(told) == len(set(told)) >= len(answered) - 2
    assert store.progress().answered == len(answered)
    # What the dead were shown goes to somebody else in the end.
    monkeypatch.setattr(time, 'time', lambda: 9e9)
    while (shown := store.next('c' * 32)) is not None:
        store.answer(shown.ticket, 'c' * 32, 'Cleo', 'equal')
    assert [answer.number for answer in store.answers()] == list(range(150))


def test_two_stores_of_one_file_see_each_other(store):
    other = Store(store.path)
    say(store, ANN)
    assert other.progress().answered == 1
    with pytest.raises(UserError):
        Store(store.path.with_name('elsewhere'))
