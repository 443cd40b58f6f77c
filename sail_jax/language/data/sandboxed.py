"""The program that runs what a checkpoint brings: its tokeniser and its chat template.

A tokeniser is native code that may panic, abort, or take any time and memory for a text; a chat
template is a program. `sandbox` runs them here, in a process of its own with limits, so this file
imports nothing of the package. A request is a line of JSON and so is its answer: `{'value': ...}`,
`{'error': why}`, or `{'unknown': true}` for a key that is to be loaded (again) first.
"""

import contextlib
import datetime
import functools
import hashlib
import json
import os
import resource
import signal
import string
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox
import tokenizers

MAX_RENDERED = 2**24
"""Characters that a template may write."""
KEPT = 8
"""Tokenisers that are there at once."""
SPACES = (' .', ' ?', ' !', ' ,', " ' ", " n't", " 'm", " 's", " 've", " 're")
"""What `clean_up_tokenization_spaces` takes the blanks out of."""


class Subject(NamedTuple):
    """What requests are about."""

    tokenizer: tokenizers.Tokenizer
    clean_up: bool
    template: jinja2.Template | None
    variables: dict[str, Any]
    """That the template knows beside the conversation."""


def load(request: dict[str, Any]) -> tuple[Subject, dict[str, Any]]:
    """Builds both, tries the tokeniser, and says what they are."""
    try:
        tokenizer = tokenizers.Tokenizer.from_str(request['tokenizer'])
    except Exception as error:
        raise ValueError(f'not a tokenizer.json: {error}') from None
    if dropout := getattr(tokenizer.model, 'dropout', None):
        raise ValueError(
            f'model.dropout: {dropout:g} makes the ids of a text random; set it to null'
        )
    # The file may ask for both; nothing is cut or filled up in silence.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = request['split_special']
    complete(tokenizer, request['declared'])
    attempt(tokenizer)
    source = request['template']
    template = None if source is None else compile_template(source, request['date'])
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    bpe = isinstance(tokenizer.model, tokenizers.models.BPE)
    subject = Subject(
        tokenizer, request['clean_up_bpe' if bpe else 'clean_up'], template, request['variables']
    )
    return subject, {
        'ids': max(vocab.values(), default=-1) + 1,
        'digest': hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
        'names': None if source is None else sorted(names(source)),
    }


def complete(tokenizer: tokenizers.Tokenizer, declared: dict[str, Any]) -> None:
    """Adds the tokens that other files declare, by the rule of `TokenizersBackend` of
    transformers 5, so that ids and flags are those."""

    def read(state: dict[str, Any]) -> tokenizers.AddedToken:
        return tokenizers.AddedToken(**state)

    before = tokenizer.get_added_tokens_decoder()
    added = {int(i): read(state) for i, state in declared['added']}
    if declared['legacy']:
        added |= before
    by_content = {token.content: token for token in added.values()}
    tokens = [added[i] for i in sorted(added)]
    contents = {token.content for token in before.values()} | set(by_content)
    for state in [*declared['named'].values(), *declared['extra']]:
        token = read(state)
        if token.content not in contents and token not in tokens:
            tokens.append(token)
    named = {state['content'] for state in declared['named'].values()}
    for token in tokens:
        token.special = token.special or token.content in named
    tokenizer.add_tokens(tokens)
    for i, token in sorted(added.items()):
        if token.content and (id := tokenizer.token_to_id(token.content)) != i:
            raise ValueError(
                f'{token.content!r:.80} is declared with id {i}, and has {id} by tokenizer.json'
            )


def attempt(tokenizer: tokenizers.Tokenizer) -> None:
    """Refuses what panics on common texts or on those that its own rules name. An error is none:
    it may know a part of Unicode only."""
    # Nested repetitions in a regular expression fail where the run ends.
    runs = [character * 1000 + '!' for character in 'a 0.\n\té中']
    sentence = 'The quick brown fox, 27 of them, jumped over "it" (twice).'
    for text in [sentence, string.printable, 'é ß 中文 🙂 \u200d', *runs, *literals(tokenizer)]:
        with contextlib.suppress(Exception):
            tokenizer.decode(tokenizer.encode(text).ids)
    with contextlib.suppress(Exception):
        tokenizer.decode(sorted(tokenizer.get_vocab().values())[:1000])


def literals(tokenizer: tokenizers.Tokenizer) -> Iterator[str]:
    """The texts that its steps look for."""
    for step in (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder):
        left = [json.loads(step.__getstate__())] if step is not None else []
        while left:
            value = left.pop()
            if isinstance(value, dict):
                left += [v for k, v in value.items() if k != 'precompiled_charsmap']
            elif isinstance(value, list):
                left += value
            elif isinstance(value, str):
                yield value


def encode(subject: Subject, texts: list[str], special: str) -> list[list[int]]:
    """Ids of texts: `plain`, `whole` with the special tokens around a text, or `start` with those
    before it alone, as the others would end a response before it begins."""
    return [ids(subject.tokenizer, text, special) for text in texts]


@functools.lru_cache(4)  # A row's prompt is asked for with each of its responses.
def ids(tokenizer: tokenizers.Tokenizer, text: str, special: str) -> list[int]:
    encoding = tokenizer.encode(text, add_special_tokens=special != 'plain')
    end = len(encoding)
    while special == 'start' and end and encoding.special_tokens_mask[end - 1]:
        end -= 1
    return encoding.ids[:end]


def decode(subject: Subject, ids: list[list[int]]) -> list[str]:
    """Texts without special tokens."""
    texts = [subject.tokenizer.decode(one, skip_special_tokens=True) for one in ids]
    for spaced in SPACES if subject.clean_up else ():
        texts = [text.replace(spaced, spaced.strip()) for text in texts]
    return texts


def render(subject: Subject, calls: list[dict[str, Any]]) -> list[str]:
    """What the template writes."""
    texts = []
    assert subject.template is not None  # Who has none asks for nothing.
    for call in calls:
        # Of a conversation's own tools and the settings' the former.
        variables = {'tools': None, 'documents': None, **subject.variables, **call}
        texts.append(subject.template.render(**variables))
        try:
            texts[-1].encode()
        except UnicodeEncodeError as error:
            raise ValueError(f'writes what is not valid UTF-8 at character {error.start}') from None
        if len(texts[-1]) > MAX_RENDERED:
            raise ValueError(f'writes {len(texts[-1])} characters; at most {MAX_RENDERED}')
    return texts


def ids_of(subject: Subject, tokens: list[str]) -> list[int | None]:
    return [subject.tokenizer.token_to_id(token) for token in tokens]


def tokens_of(subject: Subject, ids: list[int]) -> list[str | None]:
    return [subject.tokenizer.id_to_token(i) for i in ids]


def added_of(subject: Subject) -> dict[int, str]:
    """The added tokens."""
    return {i: token.content for i, token in subject.tokenizer.get_added_tokens_decoder().items()}


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for masks; here lengths tell it."""

    tags = {'generation'}  # noqa: RUF012

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method('_write'), [], [], body).set_lineno(line)

    def _write(self, caller):
        return caller()


class Namespace(jinja2.utils.Namespace):
    """Without names that lead into the interpreter."""

    def __init__(*args, **kwargs):
        self, *args = args
        attributes = dict(*args, **kwargs)
        for name in attributes:
            Namespace._check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name, value):
        Namespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name):
        if isinstance(name, str) and name.startswith('_'):
            raise jinja2.TemplateError(f'namespace: {name!r}')


def environment(day: datetime.date) -> jinja2.Environment:
    """What chat templates are written for: transformers', less what is random."""

    def fail(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation]
    )
    del env.globals['lipsum'], env.filters['random']
    env.globals |= {'raise_exception': fail, 'strftime_now': day.strftime, 'namespace': Namespace}
    env.filters['tojson'] = to_json  # Jinja's own escapes HTML.
    return env


def compile_template(source: str, date: str) -> jinja2.Template:
    """A template on a day, which `strftime_now` tells."""
    try:
        # Midnight: a template may ask for the hour.
        return environment(datetime.datetime.fromisoformat(date)).from_string(source)
    except (jinja2.TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
        raise ValueError(f'chat template: {reason(error)}') from None


def names(source: str) -> set[str]:
    """The variables that a template reads."""
    env = environment(datetime.datetime.min)
    return jinja2.meta.find_undeclared_variables(env.parse(source))


def reason(error: BaseException) -> str:
    """What went wrong, for people."""
    if isinstance(error, MemoryError):
        return 'takes too much memory'
    return str(error) or type(error).__name__


REQUESTS: dict[str, Callable] = {
    f.__name__: f for f in (encode, decode, render, ids_of, tokens_of, added_of)
}


def answer(line: bytes, cache: dict[str, Subject]) -> dict[str, Any]:
    """Of one request."""
    try:
        request = json.loads(line)
        key, what = request.pop('key'), request.pop('what')
        if what == 'load':
            while len(cache) >= KEPT:
                del cache[next(iter(cache))]
            cache[key], value = load(request)
        elif key not in cache:
            return {'unknown': True}
        else:
            value = REQUESTS[what](cache[key], **request)
        return {'value': value}
    except BaseException as error:  # What panics is no Exception, and a template raises anything.
        return {'error': reason(error)}


def main(memory: int, seconds: float, bytes_per_second: float) -> None:
    """Answers until there are no more questions.

    Args:
      memory: bytes of address space that the process may take.
      seconds: of processor time that a request may take, and as many more as it has bytes for.
      bytes_per_second: how many that is.
    """
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # The process that asks ends, and this one with it.
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    replies = os.fdopen(os.dup(1), 'wb')
    os.dup2(2, 1)  # What a library prints is no reply.
    with contextlib.suppress(ValueError, OSError):  # Not everywhere can it be bounded.
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cache: dict[str, Subject] = {}
    for line in sys.stdin.buffer:
        # Its signal ends the process.
        signal.setitimer(signal.ITIMER_PROF, seconds + len(line) / bytes_per_second)
        reply = json.dumps(answer(line, cache)).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(reply + b'\n')
        replies.flush()


if __name__ == '__main__':
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
