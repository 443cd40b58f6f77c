"""A judge behind an API of OpenAI's form, asked by the standard library alone."""

import functools
import http.client
import json
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from sail_jax.errors import UserError, one_line
from sail_jax.language.reward.config import PLACES, JudgeEndpoint
from sail_jax.language.reward.protocols import Judge, TrlPrompt

TEMPLATE = """\
Two assistants answered the prompt below. Say which answer is better: more helpful, correct, \
harmless, and to the point. Go neither by the order of the answers nor by their length.

[Prompt]
{prompt}
[End of the prompt]

[Answer A]
{first}
[End of answer A]

[Answer B]
{second}
[End of answer B]

Give your reasons in a few sentences. Then end with [[A]] if answer A is better, with [[B]] if \
answer B is better, or with [[C]] if they are equally good."""
"""What a judge is asked where `judge.template` is none."""
SENT = {'temperature': 0, 'max_tokens': 1024}
"""Of a request, where `judge.arguments` does not say otherwise."""
VERDICTS = {'A': 1.0, 'B': 0.0, 'C': 0.5}
"""Probabilities that the first response is preferred."""
LATER = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Statuses with which a server puts a request off."""
LONGEST_WAIT_S = 30.0
MAX_ANSWER = 2**22
"""Bytes."""


class _Later(Exception):
    """A request that may be made again: says why it was put off."""

    def __init__(self, why: str, seconds: float | None = None):
        super().__init__(why)
        self.seconds = seconds
        """After which the server wants to be asked again; None says nothing."""


def make(settings: JudgeEndpoint) -> Judge:
    """The judge of a configuration: NaN is an answer without a verdict. Equal responses are a tie
    that nobody is asked about.

    Raises (the function returned):
      UserError: the key is missing, or the server does not take it; nobody is there, also after
        `retries`; the request is refused; the answer is none of such an API.
    """

    def judge(prompts: list[TrlPrompt], pairs: list[tuple[str, str]]) -> list[float]:
        headers, stop = _headers(settings), threading.Event()

        def compare(prompt: TrlPrompt, pair: tuple[str, str]) -> float:
            if pair[0] == pair[1]:
                return 0.5
            return verdict(_asked(settings, headers, question(settings, prompt, pair), stop))

        with ThreadPoolExecutor(settings.concurrency) as pool:
            try:
                return list(pool.map(compare, prompts, pairs))
            finally:
                stop.set()  # Of one that failed the others do not wait for their turn.

    judge.__qualname__ = 'judge'  # What errors call it.
    return judge


def check(settings: JudgeEndpoint) -> None:
    """Refuses to begin without the key of the API.

    Raises:
      UserError: naming the environment variable.
    """
    if settings.model is None:
        return
    try:
        _headers(settings)
    except UserError as error:
        raise UserError(f'judge: {error}') from None


def question(settings: JudgeEndpoint, prompt: TrlPrompt, pair: tuple[str, str]) -> str:
    """The template with a prompt and two responses in their places."""
    texts = dict(zip(PLACES, (_shown(prompt), *pair), strict=True))
    # In one go, since a text may have such places too.
    places = '|'.join(map(re.escape, PLACES))
    return re.sub(places, lambda place: texts[place[0]], settings.template or TEMPLATE)


def verdict(answer: str) -> float:
    """What the last of `VERDICTS` in an answer says, its thoughts left out; NaN of an answer
    without any."""
    answer = answer.rpartition('</think>')[2].partition('<think>')[0]
    said = re.findall(r'\[\[([ABC])\]\]', answer)
    return VERDICTS[said[-1]] if said else np.nan


def _shown(prompt: TrlPrompt) -> str:
    """A prompt as the judge reads it: a single turn by its text alone."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]['content']
    return '\n\n'.join(f'{turn["role"]}: {turn["content"]}' for turn in prompt)


def _headers(settings: JudgeEndpoint) -> dict[str, str]:
    """Of a request, with the key of the API."""
    headers = {'Content-Type': 'application/json', 'User-Agent': 'sail-jax'}
    name = settings.api_key_env
    if name is None:
        return headers
    key = os.environ.get(name, '').strip()
    if not key:
        raise UserError(
            f'no {name} in the environment, the key for {settings.base_url} (judge.api_key_env; '
            'none is for servers without keys)'
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(f'what the environment has as {name} is no key')
    return headers | {'Authorization': f'Bearer {key}'}


def _asked(
    settings: JudgeEndpoint, headers: dict[str, str], content: str, stop: threading.Event
) -> str:
    """The answer to a question, after as many tries as it takes."""
    sent = SENT | settings.arguments
    body = {'model': settings.model, 'messages': [{'role': 'user', 'content': content}]}
    body |= {name: value for name, value in sent.items() if value is not None}
    request = urllib.request.Request(
        f'{settings.base_url.rstrip("/")}/chat/completions', json.dumps(body).encode(), headers
    )
    for tries in range(settings.retries + 1):
        try:
            return _content(settings, _sent(settings, request))
        except _Later as error:
            wait = 2.0**tries if error.seconds is None else error.seconds
            if tries == settings.retries or stop.wait(min(wait, LONGEST_WAIT_S)):
                times = f', {tries + 1} times' if tries else ''
                raise UserError(f'{settings.base_url}: {error}{times}') from None
    raise AssertionError  # The last try returns or raises.


def _sent(settings: JudgeEndpoint, request: urllib.request.Request) -> bytes:
    """The body of the answer to a request.

    Raises:
      _Later: nobody is there, or in time; the server puts the request off.
      UserError: the server refuses it.
    """
    end = time.monotonic() + settings.timeout_s
    try:
        with _opener().open(request, timeout=settings.timeout_s) as response:
            body = b''
            while part := response.read1(2**16):
                body += part
                if time.monotonic() > end:
                    raise TimeoutError
                if len(body) > MAX_ANSWER:
                    raise UserError(f'{settings.base_url}: an answer of over {MAX_ANSWER} bytes')
            return body
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(settings, error) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, 'reason', error)
        if isinstance(reason, TimeoutError):
            raise _Later(f'no answer in {settings.timeout_s:g} s') from None
        if isinstance(reason, socket.gaierror):
            raise _Later(f'no such host: {one_line(reason)}') from None
        raise _Later(f'cannot be reached: {one_line(reason) or type(reason).__name__}') from None


def _refused(settings: JudgeEndpoint, error: urllib.error.HTTPError) -> Exception:
    """What a status other than success means. A server may say the key again, so of 401 and 403
    only the status is told, and of others no key."""
    status, name = error.code, settings.api_key_env
    if status in (401, 403):
        of_key = f'does not take the key in {name}' if name else 'wants a key (judge.api_key_env)'
        return UserError(f'{settings.base_url}: {of_key}: {status}')
    try:
        said = json.loads(error.read(MAX_ANSWER))
        said = said['error'] if isinstance(said['error'], str) else said['error']['message']
    except (ValueError, LookupError, TypeError, OSError, http.client.HTTPException):
        said = error.reason
    key = os.environ.get(name or '', '').strip()
    said = one_line(str(said).replace(key, '...') if key else str(said))
    if status in LATER:
        return _Later(f'{status}: {said}', _seconds(error.headers.get('Retry-After')))
    return UserError(f'{settings.base_url}: {status}: {said}')


def _seconds(retry_after: str | None) -> float | None:
    """Of a header, which may also be a date: that is left to us."""
    try:
        seconds = float(retry_after or '')
    except ValueError:
        return None
    return seconds if seconds >= 0 else None


def _content(settings: JudgeEndpoint, body: bytes) -> str:
    """The text of a chat completion; one that was refused has none, nor one that was cut off, but
    for a verdict at its very end: what it said before may be another's, or a thought."""
    try:
        choice = json.loads(body)['choices'][0]
        content: Any = choice['message'].get('content')
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        said = one_line(body[:200].decode(errors='replace'))
        raise UserError(f'{settings.base_url}: no chat completion: {said}') from None
    if not isinstance(content, str):
        return ''
    cut_off = choice.get('finish_reason') == 'length'
    return '' if cut_off and not re.search(r'\[\[[ABC]\]\]\W*$', content) else content


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Elsewhere the key would go along."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    """With the proxies of the environment."""
    return urllib.request.build_opener(_NoRedirect)
