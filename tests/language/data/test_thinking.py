"""Chat templates of models that think, in the forms that they have."""

import pytest

from sail_jax.errors import UserError
from sail_jax.language.data import tokens
from sail_jax.language.data.rows import Message
from tests.support.tiny_tokenizer import write

TURN = (Message('user', 'why'),)
LOOP = """{%- for m in messages -%}
{%- set content = m.content -%}
{%- if m.role == 'assistant' -%}TURN{%- else -%}
{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}GENERATE{%- endif -%}
"""
DROPPED = "{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}"
SAID = "{{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' -}}"
THOUGHT = """
{%- set thoughts = '' -%}
{%- if '</think>' in content -%}
{%- set thoughts = content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\\n<think>\\n' + thoughts + '\\n</think>\\n\\n' -}}
{{- content + '<|im_end|>\\n' -}}
"""
OPEN = "{{- '<think>\\n' -}}"
SWITCH = (
    '{%- if enable_thinking is defined and not enable_thinking -%}'
    "{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}"
)
TEMPLATES = {
    'qwen3': (THOUGHT, SWITCH),  # Shows the thoughts of the last turn, empty ones too.
    'qwen3-thinking': (THOUGHT, OPEN),
    'r1': (DROPPED + SAID, OPEN),  # QwQ too.
    'kept': (SAID, OPEN),  # Writes what it is given.
    'smollm3': (DROPPED + SAID, SWITCH),
}


def load(path, name, **kwargs):
    turn, generate = TEMPLATES[name]
    template = LOOP.replace('TURN', turn).replace('GENERATE', generate)
    return tokens.load(write(path, template=template), **kwargs)


def split(tokenizer, response):
    """What is before the response, and the response."""
    before, turn = tokenizer._turn(TURN, response)
    ids = tokenizer.response_ids(TURN, response)
    assert tokenizer.ends[tokenizer.eos_ids.index(ids[-1])] == '<|im_end|>'
    assert tokenizer._ask('decode', ids=[ids]) == [turn.removesuffix('<|im_end|>\n')]
    assert tokenizer._render([(TURN, True)]) == [before]
    return before.rpartition('assistant\n')[2], turn.removesuffix('<|im_end|>\n')


@pytest.mark.parametrize(
    ('name', 'variables', 'begun', 'answered', 'thought'),
    [
        ('qwen3', {}, '', '<think>\n\n</think>\n\nno', '<think>\nhm\n</think>\n\nno'),
        ('qwen3', {'enable_thinking': False}, '<think>\n\n</think>\n\n', 'no', None),
        ('qwen3-thinking', {}, '<think>\n', '\n</think>\n\nno', 'hm\n</think>\n\nno'),
        ('r1', {}, '<think>\n', '\n</think>\n\nno', 'hm\n</think>\n\nno'),
        ('kept', {}, '<think>\n', '\n</think>\n\nno', 'hm\n</think>\n\nno'),
        ('smollm3', {}, '', 'no', 'no'),
        ('smollm3', {'enable_thinking': False}, '<think>\n\n</think>\n\n', 'no', 'no'),
    ],
)
def test_response_follows_what_the_prompt_has_begun(
    tmp_path, name, variables, begun, answered, thought
):
    tokenizer = load(tmp_path, name, variables=variables)
    assert '<|im_end|>' in tokenizer.ends
    assert split(tokenizer, 'no') == (begun, answered)
    for response in ('<think>\nhm\n</think>\n\nno', 'hm\n</think>\n\nno'):
        if thought is None:
            with pytest.raises(UserError, match='adding a response changes the text before it'):
                split(tokenizer, response)
        else:
            assert split(tokenizer, response) == (begun, thought)


def test_thoughts_of_the_prompt_s_own_turns_are_the_template_s(tmp_path):
    tokenizer = load(tmp_path, 'r1')
    turns = (*TURN, Message('assistant', 'hm</think>yes'), Message('user', 'why'))
    before, turn = tokenizer._turn(turns, 'no')
    assert '<|im_start|>assistant\nyes<|im_end|>' in before
    assert turn == '\n</think>\n\nno<|im_end|>\n'


WHERE = '{%- set at = namespace(last=-1) -%}{%- for m in messages -%}IF{%- endfor -%}'
THOUGHTS_AFTER = """
{%- set content = m.content -%}
{%- if m.role == 'assistant' and loop.index0 < at.last -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' -}}"""
HISTORY = """{%- for m in messages -%}TURN{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""


@pytest.mark.parametrize('role', ['user', 'assistant'])
def test_a_history_that_is_rewritten_keeps_the_border_or_is_refused(tmp_path, role):
    """Qwen3's template drops the thoughts before the last user's turn; one that drops those before
    the last assistant's turn writes another prompt once there is a response."""
    last = f"{{% if m.role == '{role}' %}}{{% set at.last = loop.index0 %}}{{% endif %}}"
    template = WHERE.replace('IF', last) + HISTORY.replace('TURN', THOUGHTS_AFTER)
    tokenizer = tokens.load(write(tmp_path, template=template))
    turns = (*TURN, Message('assistant', '<think>hm</think>yes'), Message('user', 'no'))
    prompt = tokenizer.text(tokenizer.prompt_ids(turns))
    response = '<think>oh</think>what'
    if role == 'assistant':
        assert '<think>hm</think>yes' in prompt
        with pytest.raises(UserError, match='adding a response changes the text before it'):
            tokenizer.response_ids(turns, response)
        return
    assert 'hm' not in prompt
    ids = tokenizer.response_ids(turns, response)
    assert tokenizer.text(ids) == response
    whole = tokenizer.scored_ids(turns, response)
    assert whole[: len(tokenizer.prompt_ids(turns)) + len(ids)] == tokenizer.prompt_ids(turns) + ids


@pytest.mark.parametrize(
    ('name', 'variables'),
    [(name, {}) for name in TEMPLATES]
    + [(name, {'enable_thinking': False}) for name in ('qwen3', 'smollm3')],
)
def test_prompts_are_transformers(tmp_path, name, variables):
    transformers = pytest.importorskip('transformers')
    tokenizer = load(tmp_path, name, variables=variables)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    messages = [message._asdict() for message in TURN]
    render = lambda *more, **kwargs: theirs.apply_chat_template(
        [*messages, *more], return_dict=False, **kwargs, **variables
    )
    assert tokenizer.prompt_ids(TURN) == render(add_generation_prompt=True)
    for response in ('no', '<think>\nhm\n</think>\n\nno'):
        whole = render({'role': 'assistant', 'content': response})
        assert tokenizer.scored_ids(TURN, response) == whole
