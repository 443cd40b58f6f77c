"""Chat templates that attack: bounded in time and memory, refused in one line, never a traceback,
and the next one is served as if nothing had been."""

import itertools
from functools import partial

import pytest

from sail_jax.errors import UserError
from sail_jax.language.data import tokens
from sail_jax.language.data.rows import Message
from tests.support import sandboxes
from tests.support.tiny_tokenizer import write

TURN = (Message('user', 'what a cat'), Message('assistant', 'no'), Message('user', 'yes'))
BIG = '10 ** 10'
LONG = '{% for i in range(99999) %}'
# Each of them takes gigabytes or hours where nothing stops it.
BOMBS = {
    'nested loops': LONG * 3 + '{% endfor %}' * 3,
    'nested loops that write': LONG * 2 + '{{ i }}' + '{% endfor %}' * 2,
    'nested loops of methods': LONG * 2 + "{% set x = 'a'.upper() %}" + '{% endfor %}' * 2,
    'doubling': "{% set n = namespace(x='ab') %}{% for i in range(60) %}"
    '{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}',
    'doubling a list': '{% set n = namespace(x=[1]) %}{% for i in range(60) %}'
    '{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}',
    'doubling by replace': "{% set n = namespace(x='a') %}{% for i in range(60) %}"
    "{% set n.x = n.x | replace('a', 'aa') %}{% endfor %}{{ n.x }}",
    'doubling by join': "{% set n = namespace(x='ab') %}{% for i in range(60) %}"
    '{% set n.x = [n.x, n.x] | join %}{% endfor %}',
    'doubling by format': "{% set n = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set n.x = '%s%s' % (n.x, n.x) %}{% endfor %}",
    'product': f"{{{{ 'a' * {BIG} }}}}",
    'product of a list': f'{{{{ ([1] * {BIG}) | length }}}}',
    'power': '{{ 9 ** (9 ** 9) }}',
    'power of powers': '{{ (10 ** 10 ** 7) ** 100 }}',
    'digits': '{{ (10 ** 4000) * 1 ~ (7 ** 20000000) }}',
    'center': f"{{{{ 'a' | center({BIG}) }}}}",
    'center method': f"{{{{ 'a'.center({BIG}) }}}}",
    'ljust': f"{{{{ 'a'.ljust({BIG}) }}}}",
    'zfill': f"{{{{ 'a'.zfill({BIG}) }}}}",
    'expandtabs': "{{ '\t'.expandtabs(2000000000) * 8 }}",
    'indent': f"{{{{ 'a\nb' | indent({BIG}) }}}}",
    'indent of JSON': f'{{{{ messages | tojson(indent={BIG}) }}}}',
    'format': "{{ '%10000000000d' % 1 }}",
    'format method': "{{ '{:>10000000000}'.format(1) }}",
    'format filter': "{{ '%10000000000s' | format(1) }}",
    'batch': f"{{{{ [1] | batch({BIG}, 'a') | list }}}}",
    'slice': f"{{{{ [1] | slice({BIG}, 'a') | list }}}}",
    'wordwrap': "{{ ('a ' * 50000000) | wordwrap(1) | length }}",
    'urlize': "{{ ('www.a.com ' * 20000000) | urlize }}",
    'sort': '{{ (range(99999) | list * 2000) | sort | length }}',
    'sum': '{% for i in range(99999) %}{{ range(99999) | sum }}{% endfor %}',
    'unique': '{{ (range(99999) | list * 5000) | unique | list | length }}',
    'macro': '{% macro m(n) %}{% for i in range(99) %}{{ m(n - 1) if n }}{% endfor %}{% endmacro %}'
    '{{ m(9) }}',
    'to_bytes': f'{{{{ (1).to_bytes({BIG}) }}}}',
    'write': "{% for i in range(9999) %}{{ 'a' * 99999 }}{% endfor %}",
    'write much': "{{ 'a' * 20000000 }}",
    'strftime': "{{ strftime_now('%2000000000d%2000000000d%2000000000d') }}",
    'dict': '{% set n = namespace(x={}) %}{% for i in range(99999) %}{% for j in range(99999) %}'
    '{% set n.x = dict(n.x, **{i ~ j ~ "": 1}) %}{% endfor %}{% endfor %}',
    'cycler': '{% set c = cycler(1) %}' + LONG * 2 + '{{ c.next() }}' + '{% endfor %}' * 2,
}
# Each of them raises, or reaches for what it must not have.
BREAKS = {
    'recursion': '{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}',
    'range': '{% for i in range(10 ** 9) %}{% endfor %}',
    'lipsum': '{{ lipsum(n=10) }}',
    'random': '{{ [1, 2, 3] | random }}',
    'class': "{{ ''.__class__.__mro__ }}",
    'class by filter': "{{ '' | attr('__class__') }}",
    'class by format': "{{ '{0.__class__}'.format('') .__class__ }}",
    'globals': '{{ raise_exception.__globals__ }}',
    'namespace': "{{ namespace(__class__=1) }}{{ namespace(**{'_x': 1}) }}",
    'builtins': '{{ cycler.__init__.__globals__.os.system("true") }}',
    'import': "{% import 'os' as os %}",
    'include': "{% include '/etc/passwd' %}",
    'extends': "{% extends '/etc/passwd' %}",
    'append': '{{ messages.append(1) }}',
    'item': "{{ messages[0].update({'role': 1}) }}",
    'division': '{{ 1 // 0 }}',
    'undefined': '{{ nothing.of.this }}',
    'undefined call': '{{ nothing() }}',
    'no filter': '{{ 1 | nothing }}',
    'no test': '{% if 1 is nothing %}{% endif %}',
    'types': "{{ 'a' + 1 }}",
    'unclosed': '{% if 1 %}',
    'unclosed text': '{{ "a }}',
    'unclosed generation': '{% generation %}',
    'nested deep': '{{ ' + '(' * 5000 + '1' + ')' * 5000 + ' }}',
    'blocks deep': '{% if 1 %}' * 500 + '{% endif %}' * 500,
    'loops deep': '{% for i in [1] %}' * 60 + '{% endfor %}' * 60,
    'lists deep': '{{ ' + '[' * 3000 + ']' * 3000 + ' }}',
    'minus deep': '{{ ' + '-' * 20000 + '1 }}',
    'attributes deep': '{{ a' + '.a' * 20000 + ' }}',
    'surrogate': "{{ '\\ud800' }}",
    'raise': '{{ raise_exception("a\nb\nc") }}',
    'raise nothing': '{{ raise_exception() }}',
    'raise an object': '{{ raise_exception(messages) }}',
    'strftime': '{{ strftime_now(1) }}',
    'json': '{{ raise_exception | tojson }}',
    'json of itself': '{{ messages | tojson(cls=1) }}',
    'break outside': '{% break %}',
    'trans': '{% trans %}a{% endtrans %}',
    'do': '{% do messages %}',
    'empty': '',
    'prompt changes': '{{ messages | length }}',
}
SOUND = 'a{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}'


def attempt(path, template):
    """Everything that asks a template; the line that refuses it."""
    ask = partial(sandboxes.ask, lines := [], longest=499)
    tokenizer = ask(tokens.load, write(path, template=template))
    if tokenizer is not None:
        ask(tokenizer.prompt_ids, TURN)
    for method in ('response_ids', 'scored_ids'):
        if not lines:  # Each further one would take as long.
            ask(getattr(tokenizer, method), TURN, 'hello')
    return lines[0] if lines else None


@pytest.fixture(autouse=True)
def less(monkeypatch):
    yield from sandboxes.bounded(monkeypatch, seconds=0.2)


@pytest.mark.parametrize('name', BOMBS)
def test_bomb_is_bounded(tmp_path, name):
    refused = attempt(tmp_path, BOMBS[name])
    assert refused is not None
    assert attempt(tmp_path, SOUND) is None


def test_broken_templates_are_one_line(tmp_path):
    refused = {name: attempt(tmp_path, template) for name, template in BREAKS.items()}
    assert [name for name, line in refused.items() if line is None] == []
    place = f'{tmp_path}: chat template: '
    assert all(line.startswith(place) or 'prompt: no tokens' in line for line in refused.values())
    assert attempt(tmp_path, SOUND) is None


PIECES = [
    'a',
    '{{ messages }}',
    "{{ messages[0]['content'] }}",
    '{{ messages[99] }}',
    '{% for m in messages %}',
    '{% endfor %}',
    '{% if add_generation_prompt %}',
    '{% endif %}',
    '{% set x = messages | length %}',
    '{{ x }}',
    '{{ bos_token',
    '}}',
    '{%- break -%}',
    '{% generation %}',
    '{% endgeneration %}',
    '{# ',
    ' #}',
    '{{ x * x * 99999999 }}',
    "{{ 'é' ~ x | center(x) }}",
    '{% macro a() %}',
    '{% endmacro %}',
    '{{ a() }}',
    '{% raw %}',
    '{% endraw %}',
    '<think>\n',
    '</think>',
]


def test_pieces_in_any_order(tmp_path):
    """Whatever they make: a prompt, or one line."""
    for n, pieces in enumerate(itertools.permutations(PIECES, 3)):
        if n % 67 == 0:
            attempt(tmp_path, ''.join(pieces))
    assert attempt(tmp_path, SOUND) is None


def test_template_that_takes_too_long_is_not_asked_twice(tmp_path):
    with pytest.raises(UserError, match=r'chat template: takes over .* of processor time'):
        tokens.load(write(tmp_path, template=BOMBS['nested loops']))
