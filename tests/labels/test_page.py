"""The labelling page in a real browser: a scripted person, two at once, a server that is killed."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from sail_jax.labels import payloads
from sail_jax.labels.payloads import ResponsePair
from sail_jax.labels.store import NAME, Question, Store
from sail_jax.training import lock
from tests.support import browsing, labelling
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, browsing.needs_chromium]
DESKTOP, PHONE = {'width': 1280, 'height': 760}, {'width': 390, 'height': 800}


class Served:
    """`sail-jax label` in a process of its own, on one port however often it is started."""

    def __init__(self, run):
        self.run = run
        with socket.socket() as free:
            free.bind(('localhost', 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self):
        command = [sys.executable, '-m', 'sail_jax.cli', 'label', str(self.run)]
        command += ['--port', str(self.port)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()
        assert self.url == f'http://localhost:{self.port}/'

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope='module')
def browser():
    with browsing.chromium(pytest.importorskip('playwright.sync_api')) as browser:
        yield browser


@pytest.fixture
def served(tmp_path):
    labelling.make(tmp_path / NAME, 30, repeat_every=6)
    served = Served(tmp_path)
    yield served
    served.kill()


@contextlib.contextmanager
def opened(browser, served, name, viewport=DESKTOP, script='', waits_for='#pair:not([hidden])'):
    """A page of somebody; what goes wrong in it, or leaves this host, fails the test.

    Args:
      script: what is run in it before its own.
    """
    context = browser.new_context(viewport=viewport)
    context.add_init_script(script)
    page, wrong = context.new_page(), []
    page.on('pageerror', lambda error: wrong.append(str(error)))
    page.on(
        'request',
        lambda request: request.url.startswith(served.url) or wrong.append(request.url),
    )
    page.goto(served.url)
    page.fill('#who', name)
    page.keyboard.press('Enter')
    page.wait_for_selector(waits_for)
    yield page
    context.close()
    # The browser's own icon is data.
    assert [what for what in wrong if not what.startswith('data:')] == []


def until(page, condition):
    """Waits for a condition in the page, whose policy allows Playwright no `wait_for_function`."""
    end = time.monotonic() + 60
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def current(page):
    number = page.evaluate('document.body.dataset.question')
    return None if number is None else int(number)


def distances(page):
    """How far the point on each side has gone at the segment's end."""
    return page.evaluate('question.sides.map((side, i) => frames[i].at(-7))')


def answered(page, how):
    """Answers the question of a page, and waits for the next."""
    ticket = page.evaluate('question.ticket')
    how(page)
    until(page, f'!busy && (question === null || question.ticket !== "{ticket}")')


def by_sight(page):
    """Presses the side that went further, by key or by button in turn."""
    left, right = distances(page)
    which = 'left' if left > right else 'right'
    if current(page) % 3:
        page.keyboard.press('ArrowLeft' if which == 'left' else 'ArrowRight')
    else:
        page.click(f'#{which}')


def truth(number):
    return 'left' if number % 2 == 0 else 'right'


def test_a_person_answers_thirty_questions_with_keys_and_buttons(browser, served):
    store = Store(served.run / NAME)
    with opened(browser, served, 'Ann') as page:
        assert page.inner_text('#instruction') == 'Which <b>goes</b> further?'
        while current(page) is not None:
            answered(page, by_sight)
        assert 'Every question is answered' in page.inner_text('#nothing')
        said = page.inner_text('#progress')
    assert re.match(r'30 of 30 answered, 0 waiting, 30 by you, (\d) of \1 repeated the same', said)
    assert [(a.number, a.choice, a.who) for a in store.answers()] == [
        (number, truth(number), 'Ann') for number in range(30)
    ]


def test_every_key_says_what_its_button_says_and_undo_takes_it_back(browser, served):
    store = Store(served.run / NAME)
    keys = [('e', 'equal'), ('Space', 'skip'), ('ArrowLeft', 'left'), ('ArrowRight', 'right')]
    with opened(browser, served, 'Ann') as page:
        for key, _ in keys:
            answered(page, lambda page, key=key: page.keyboard.press(key))
        assert [a.choice for a in store.answers()] == [choice for _, choice in keys]
        for left in (3, 2):
            answered(page, lambda page: page.keyboard.press('u'))
            assert len(store.answers()) == left
        assert current(page) == 2
        answered(page, lambda page: page.click('#skip'))
        page.reload()
        until(page, 'typeof busy !== "undefined" && !busy && question')
        assert current(page) == 3
        answered(page, lambda page: page.click('#undo'))
        answered(page, lambda page: page.click('#equal'))
        assert [a.choice for a in store.answers()] == ['equal', 'skip', 'equal']
        page.fill('#who', '')
        page.click('#left')
        assert 'Who are you?' in page.inner_text('#trouble')
        assert len(store.answers()) == 3


BY_HAND = 'window.requestAnimationFrame = (draw) => { window.drawn = draw; };'
"""The page draws when it is told to."""


def test_both_sides_are_played_again_and_at_any_speed(browser, served):
    now = 0.0

    def after(page, ms):
        """What both sides show so much later."""
        nonlocal now
        now += ms
        pictures = 'sides.map((side) => side.canvas.toDataURL())'
        return page.evaluate(f'(now) => {{ drawn(now); return {pictures}; }}', now)

    with opened(browser, served, 'Ann', script=BY_HAND) as page:
        until(page, 'Boolean(window.drawn)')
        first, later = after(page, 0), after(page, 420)
        assert all(a != b for a, b in zip(first, later, strict=True))
        speeds = page.eval_on_selector_all('#speed option', 'all => all.map((one) => one.value)')
        assert (min(speeds), max(speeds)) == ('0.1', '4')
        assert page.input_value('#speed') == '1'
        again = [lambda: page.keyboard.press('r'), lambda: page.click('#replay')]
        for number, speed in enumerate(speeds):
            page.select_option('#speed', speed)
            again[number % 2]()
            assert after(page, 0) == first
            assert after(page, 420 / float(speed)) == later
        # At the end it begins again by itself, and the last state stands for a moment.
        assert after(page, 600 / 4) != first
        assert after(page, 700) == first
        assert current(page) == 0


def test_two_people_at_once_share_the_questions(browser, served):
    store = Store(served.run / NAME)
    with opened(browser, served, 'Ann') as ann, opened(browser, served, 'Ben', PHONE) as ben:
        for _ in range(60):
            pages = [page for page in (ann, ben) if current(page) is not None]
            if len(pages) == 2:
                assert current(ann) != current(ben)
            for page in pages:
                answered(page, by_sight)
    answers = store.answers()
    assert [a.number for a in answers] == list(range(30))
    assert [a.choice for a in answers] == [truth(number) for number in range(30)]
    assert {a.who for a in answers} == {'Ann', 'Ben'}


def test_the_page_says_who_answered_how_many_in_plain_text(browser, served):
    store = Store(served.run / NAME)
    names = 'Ann <b>', 'Ben "&amp;"', '\u202eeoZ'
    with opened(browser, served, 'Ann', PHONE) as page:
        assert page.inner_text('#people') == ''
        for name, count in zip(names, (2, 1, 1), strict=True):
            page.fill('#who', name)
            page.keyboard.press('Enter')
            for _ in range(count):
                answered(page, by_sight)
        shown = [element.text_content() for element in page.query_selector_all('#people > *')]
        assert shown == [f'{name}: {count}' for name, count in store.progress().people]
        assert shown == [f'{names[0]}: 2', f'{names[1]}: 1', f'{names[2]}: 1']
        assert page.query_selector('#people b') is None


def test_a_server_that_is_killed_loses_and_doubles_nothing(browser, served):
    store = Store(served.run / NAME)
    with opened(browser, served, 'Ann') as page:
        for _ in range(5):
            answered(page, by_sight)
        number = current(page)
        served.kill()
        by_sight(page)
        until(page, 'trouble && at("trouble").textContent.includes("No connection")')
        assert len(store.answers()) == 5
        served.start()
        until(page, f'!busy && question.number !== {number}')
        assert page.inner_text('#trouble') == ''
        # Frozen with the answer in its hands: it is written, the reply is lost.
        served.process.send_signal(signal.SIGSTOP)
        by_sight(page)
        time.sleep(0.3)
        served.kill()
        served.start()
        until(page, '!busy')
        while current(page) is not None:
            answered(page, by_sight)
    assert [a.choice for a in store.answers()] == [truth(number) for number in range(30)]


def test_responses_of_a_language_model_are_shown_as_plain_text(browser, tmp_path):
    store = Store.of_run(tmp_path / NAME, labelling.RESPONSES)
    texts = '<img src=x onerror="document.title=1"><b>bold</b>', 'a\n  b'
    pair = ResponsePair('</pre><script>1</script>', texts)
    store.ask([Question(0, 1, payloads.pack_responses(pair))])
    served = Served(tmp_path)
    with opened(browser, served, 'Ann', PHONE) as page:
        assert page.inner_text('#prompt') == '</pre><script>1</script>'
        shown = [element.text_content() for element in page.query_selector_all('.side .text')]
        assert shown == list(texts)
        assert page.query_selector('.side b, .side img') is None
        assert page.title() == 'Which is better?'
        assert page.inner_text('#left') == '↑ Upper'
        page.set_viewport_size(DESKTOP)
        until(page, "document.querySelector('#left').innerText === '← Left'")
        answered(page, lambda page: page.click('#left'))
    served.kill()
    assert [a.choice for a in store.answers()] == ['left']


def test_a_name_that_is_not_taken_is_told_and_another_goes_on(browser, tmp_path):
    store = Store.of_run(tmp_path / NAME, labelling.RESPONSES)
    pair = payloads.pack_responses(ResponsePair('a question', ('a', 'b')))
    store.ask([Question(number, 1, pair) for number in range(2)])
    served = Served(tmp_path)
    with opened(browser, served, 'Ann', DESKTOP) as page:
        page.fill('#who', 'Ann\tB')
        page.click('#left')
        until(page, "document.querySelector('#trouble').textContent.startsWith('who')")
        page.fill('#who', 'Ann')
        answered(page, lambda page: page.click('#left'))
        page.evaluate("localStorage.who = 'Ann\\tB'")
        page.reload()
        until(page, "document.querySelector('#trouble').textContent.startsWith('who')")
        assert 'Who are you?' in page.inner_text('#nothing')
        page.fill('#who', 'Zoe')
        page.keyboard.press('Enter')
        page.wait_for_selector('#pair:not([hidden])')
        answered(page, lambda page: page.click('#left'))
    served.kill()
    assert [(a.who, a.choice) for a in store.answers()] == [('Ann', 'left'), ('Zoe', 'left')]


def test_the_keys_answer_once_a_name_is_there_and_say_why_they_do_not(browser, served):
    store = Store(served.run / NAME)
    page = browser.new_page()
    page.goto(served.url)
    until(page, "document.querySelector('#nothing').textContent.startsWith('Who are you?')")
    assert page.inner_text('#trouble') == ''
    page.keyboard.press('Enter')
    assert 'Who are you?' in page.inner_text('#trouble')
    page.keyboard.type('newcomer')
    page.keyboard.press('ArrowRight')
    assert 'Press Enter first' in page.inner_text('#trouble')
    assert store.next('f' * 32).number == 0, 'no question is lent to somebody without a name'
    page.keyboard.press('Enter')
    page.wait_for_selector('#pair:not([hidden])')
    assert page.inner_text('#trouble') == ''
    answered(page, lambda page: page.keyboard.press('ArrowRight'))
    assert [(a.choice, a.who) for a in store.answers()] == [('right', 'newcomer')]
    page.fill('#who', '')
    page.click('#left')
    assert 'Who are you?' in page.inner_text('#trouble')
    page.keyboard.type('Ben')
    page.keyboard.press('Enter')
    assert page.inner_text('#trouble') == ''
    page.close()


def test_who_closes_the_tab_goes_on_in_another_to_the_last_question(browser, tmp_path):
    store = labelling.make(tmp_path / NAME, 2, world=labelling.WORLD | {'dt': 0.015})
    served, nothing = Served(tmp_path), "document.querySelector('#nothing').textContent"
    with lock.held(tmp_path):
        with opened(browser, served, 'Ann') as page:
            assert current(page) == 0
            assert page.input_value('#speed') == '0.25', 'a piece of 0.3 s'
        with opened(browser, served, 'Ann') as page:
            assert current(page) == 1
            page.select_option('#speed', '1')
            answered(page, by_sight)
            assert current(page) == 0
            assert page.input_value('#speed') == '1'
        with opened(browser, served, 'Ann') as page:
            assert current(page) == 0
            assert page.inner_text('#progress') == '1 of 2 answered, 1 waiting, 1 by you'
            page.keyboard.press('u')
            assert 'in this tab nothing was answered yet' in page.inner_text('#trouble')
            answered(page, by_sight)
            until(page, f"{nothing}.endsWith('More come as training goes on.')")
            store.ask([labelling.question(1)], last=True)
            until(page, f"{nothing}.endsWith('Training goes on to its end by itself.')")
            assert page.inner_text('#nothing').startswith('That was the last question: thank you.')
    with opened(browser, served, 'Ben', waits_for='#nothing:not([hidden])') as page:
        until(page, f"{nothing}.endsWith('--run-dir {tmp_path} --resume')")
    served.kill()
    assert [a.choice for a in store.answers()] == [truth(0), truth(1)]
