"""Tokens: a checkpoint's own tokeniser and template, against transformers'."""

import datetime
import json
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sail_jax.errors import UserError
from sail_jax.files import MAX_JSON
from sail_jax.language.data import template, tokens
from sail_jax.language.data.rows import Message
from tests.support.tiny_tokenizer import BEGIN, END, IM_END, IM_START, SPECIAL, TEXT, backend, write


def native(tokenizer):
    """The library's own tokeniser."""
    return Tokenizer.from_file(str(tokenizer.path / 'tokenizer.json'))


TURN = (Message('user', 'what a cat'),)
DIALOGUE = (
    Message('system', ''),
    Message('user', 'hello <b>"é"</b>'),
    Message('assistant', ' yes '),
    Message('user', 'no'),
)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    return tokens.load(write(tmp_path_factory.mktemp('tokenizer')))


def test_plain_prompt_has_what_goes_before_a_text_but_not_what_ends_it(tokenizer):
    ids = tokenizer.prompt_ids('the cat')
    assert ids == [BEGIN, *native(tokenizer).encode('the cat', add_special_tokens=False).ids]
    # A special token that the text itself ends with stays.
    assert tokenizer.prompt_ids('the cat<|im_end|>') == [*ids, IM_END]


def test_response_ends_with_the_end_of_sequence_once(tokenizer):
    ids = tokenizer.response_ids('the cat', ' sat')
    assert ids[-1] == END
    assert ids.count(END) == 1
    assert tokenizer.response_ids('the cat', ' sat<|end|>') == ids
    whole = native(tokenizer).encode('the cat sat', add_special_tokens=False).ids
    assert tokenizer.prompt_ids('the cat')[1:] + ids[:-1] == whole


def test_response_that_merges_with_the_prompt_is_split_by_itself(tokenizer):
    whole = native(tokenizer).encode('the cat', add_special_tokens=False).ids
    prompt = tokenizer.prompt_ids('the c')
    assert whole[: len(prompt) - 1] != prompt[1:]
    ids = tokenizer.response_ids('the c', 'at')
    assert ids == [*native(tokenizer).encode('at', add_special_tokens=False).ids, END]


@pytest.mark.parametrize('end', ['<|end|>', '<|im_end|>', ''])
def test_a_response_of_the_data_loses_the_end_that_is_written_out(tokenizer, end):
    assert tokenizer.without_end(f' yes{end}') == ' yes'
    assert tokenizer.without_end(f'{end}yes') == f'{end}yes'


def test_chat_response_is_the_template_s_up_to_the_end_of_the_turn(tokenizer):
    assert tokenizer.eos_ids == (END, IM_END)
    prompt, ids = tokenizer.prompt_ids(TURN), tokenizer.response_ids(TURN, 'hello')
    assert ids[-1] == IM_END
    rendered = '<|im_start|>user\nwhat a cat<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>'
    assert native(tokenizer).encode(rendered, add_special_tokens=False).ids == prompt + ids
    assert prompt[0] == IM_START
    assert tokenizer.text(prompt + ids) == 'user\nwhat a cat\nassistant\nhello'


@pytest.mark.parametrize('prompt', ['the cat', TURN])
@pytest.mark.parametrize('response', ['no<|end|> yes', 'no<|im_end|> yes'])
def test_response_with_an_end_inside_is_refused(tokenizer, prompt, response):
    with pytest.raises(UserError, match=r'response: holds .* before its end'):
        tokenizer.response_ids(prompt, response)


def test_settings_of_the_file_that_cut_or_fill_up_are_ignored(tmp_path):
    plain, text = tokens.load(write(tmp_path)), ' '.join(TEXT)
    cutting = backend()
    cutting.enable_truncation(3)
    cutting.save(str(tmp_path / 'tokenizer.json'))
    assert tokens.load(tmp_path).digest == plain.digest
    # What is filled up with is a special token from then on, which a template may name.
    cutting.enable_padding(length=40, pad_id=END, pad_token='<|end|>')
    cutting.save(str(tmp_path / 'tokenizer.json'))
    tokenizer = tokens.load(tmp_path)
    assert tokenizer.prompt_ids(text) == plain.prompt_ids(text)
    assert tokenizer.text(tokenizer.prompt_ids(text)) == text


def test_ends_of_sequence_of_all_files(tmp_path):
    eos = lambda **files: tokens.load(write(tmp_path, template=None, **files)).eos_ids
    assert eos() == (END,)
    assert eos(config={'eos_token_id': IM_END}) == (END,)  # That is tokenizer_config.json.
    (tmp_path / 'config.json').write_text(json.dumps({'eos_token_id': IM_END}))
    assert eos() == (END, IM_END)
    assert eos(generation_config={'eos_token_id': [IM_START, END]}) == (END, IM_START)


def test_older_forms_of_the_files(tmp_path, tokenizer):
    old = write(
        tmp_path / 'old',
        config={
            'bos_token': {'content': '<|begin|>', 'lstrip': False},
            'chat_template': [
                {'name': 'tool_use', 'template': '{{ fail }}'},
                {
                    'name': 'default',
                    'template': (tokenizer.path / 'chat_template.jinja').read_text(),
                },
            ],
        },
        template=None,
    )
    assert tokens.load(old).prompt_ids(DIALOGUE) == tokenizer.prompt_ids(DIALOGUE)
    assert tokens.load(old).special == tokenizer.special


def test_prompt_depends_on_a_day_that_can_be_fixed(tmp_path):
    template = '{{ strftime_now("%Y-%m-%d %H") if strftime_now is defined else "26 Jul 2024" }}'
    directory = write(tmp_path, template=template)
    day = datetime.date(2026, 2, 3)
    tokenizer = tokens.load(directory, date=day)
    assert tokenizer.text(tokenizer.prompt_ids(TURN)) == '2026-02-03 00'
    assert tokens.load(directory, date=day).digest == tokenizer.digest
    other = tokens.load(directory)
    assert other.text(other.prompt_ids(TURN)) == '2024-07-26 00'
    assert other.digest != tokenizer.digest
    other = write(tmp_path / 'other')  # Where no day is written, prepared data stay what they are.
    assert tokens.load(other).digest == tokens.load(other, date=day).digest


def test_variables_that_transformers_gives_to_templates(tmp_path):
    template = (
        '{% if tools is defined and tools is none and documents is none %}yes{% endif %}'
        '{{ image_token }}{% if enable_thinking is defined and not enable_thinking %}no{% endif %}'
    )
    directory = write(tmp_path, {'image_token': 'cat'}, template)
    tokenizer = tokens.load(directory)
    assert tokenizer.text(tokenizer.prompt_ids(TURN)) == 'yes'  # The marker is a special token.
    assert tokenizer._render([(TURN, True)]) == ['yescat']
    silent = tokens.load(directory, variables={'enable_thinking': False, 'image_token': 'a'})
    assert silent.text(silent.prompt_ids(TURN)) == 'yesano'
    assert silent.digest != tokenizer.digest
    for name in ('enable_thinkng', 'messages', 'tools', 'documents', 'add_generation_prompt'):
        with pytest.raises(UserError, match=f'^chat_template_kwargs: {name}: ') as caught:
            tokens.load(directory, variables={name: 1})
        assert '\n' not in str(caught.value)
    with pytest.raises(UserError, match=r'enable_thinking: .* has no such variable'):
        tokens.load(write(tmp_path / 'without', template=None), variables={'enable_thinking': 1})


@pytest.mark.parametrize(
    ('template', 'message'),
    [
        ('{% for %}', 'chat template: '),
        ('{{ raise_exception("no system turn") }}', 'chat template: no system turn'),
        ('{{ messages[0].role.__class__.__mro__ }}', 'chat template: .*unsafe'),
        ('{{ messages.append(1) }}', 'chat template: '),
        ('{% for i in range(10**9) %}{% endfor %}', 'chat template: Range too big'),
        ('{{ 1 / 0 }}', 'chat template: division by zero'),
        ('', 'prompt: no tokens'),
        ('{{ messages | length }}', 'adding a response changes the text before it'),
        (None, 'no chat template.*put a chat_template.jinja there'),
    ],
)
def test_bad_template_is_one_line(tmp_path, template, message):
    with pytest.raises(UserError, match=message) as caught:  # noqa: PT012
        tokenizer = tokens.load(write(tmp_path, template=template))
        tokenizer.prompt_ids(TURN)
        tokenizer.response_ids(TURN, 'hello')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('file', 'content', 'message'),
    [
        ('tokenizer.json', None, 'tokenizer.json: No such file'),
        ('tokenizer.json', '{"model": 3}', 'not a tokenizer.json'),
        ('tokenizer_config.json', '[]', 'expected a JSON object'),
        ('tokenizer_config.json', '{}', 'no end of sequence'),
        ('tokenizer_config.json', '{"eos_token": 3}', 'eos_token: expected text, got 3'),
        ('tokenizer_config.json', '{"eos_token": ""}', "'' is not in tokenizer.json"),
        ('generation_config.json', '{"eos_token_id": 5000}', 'eos_token_id: 5000 is not in'),
        ('generation_config.json', '{"eos_token_id": ["a"]}', "eos_token_id: 'a' is not in"),
        ('config.json', '{"vocab_size": "x"}', "vocab_size: 'x'"),
    ],
)
def test_bad_file_is_one_line(tmp_path, file, content, message):
    write(tmp_path, template=None)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        tokens.load(tmp_path)
    assert '\n' not in str(caught.value)


def test_id_that_the_model_does_not_have(tmp_path):
    tokenizer = tokens.load(write(tmp_path, template=None))
    (tmp_path / 'config.json').write_text(json.dumps({'vocab_size': 60}))
    small = tokens.load(tmp_path)
    largest = max(tokenizer.prompt_ids('the cat'))
    with pytest.raises(UserError, match=f'prompt: .* has id {largest}, and the model only 60 ids'):
        small.prompt_ids('the cat')


def test_digest_tells_tokenisers_apart(tmp_path, tokenizer):
    other = backend()
    other.add_special_tokens(['<|other|>'])
    directory = write(tmp_path / 'other')
    assert tokens.load(directory).digest == tokenizer.digest
    other.save(str(directory / 'tokenizer.json'))
    assert tokens.load(directory).digest != tokenizer.digest


TEXTS = st.text() | st.lists(
    st.sampled_from([*TEXT, *SPECIAL, ' ', '\n', 'c', 'é']), max_size=6
).map(''.join)


@given(TEXTS.filter(bool), TEXTS, st.booleans())
@example('0', '0\r<|end|>', True)
def test_any_response_ends_once_or_is_refused(tokenizer, prompt, response, chat):
    prompt = (Message('user', prompt),) if chat else prompt
    inside = any(end in response.removesuffix(end) for end in ('<|end|>', '<|im_end|>'))
    try:
        ids = tokenizer.response_ids(prompt, response)
    except UserError:
        assert inside
        return
    assert not inside
    assert [i in tokenizer.eos_ids for i in ids] == [False] * (len(ids) - 1) + [True]
    text = native(tokenizer).decode(ids[:-1], skip_special_tokens=False)
    response = response.strip() if chat else response
    for end in ('<|end|>', '<|im_end|>'):
        response = response.removesuffix(end)
    assert text == response


@pytest.mark.parametrize('conversation', [TURN, DIALOGUE])
def test_parity_with_transformers(tokenizer, conversation):
    transformers = pytest.importorskip('transformers')
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tokenizer.path)
    messages = [message._asdict() for message in conversation]
    render = lambda messages, **kwargs: theirs.apply_chat_template(
        messages, tokenize=True, return_dict=False, **kwargs
    )
    prompt = tokenizer.prompt_ids(conversation)
    assert prompt == render(messages, add_generation_prompt=True)
    whole = render([*messages, {'role': 'assistant', 'content': 'hello'}])
    ours = prompt + tokenizer.response_ids(conversation, 'hello')
    assert ours == whole[: len(ours)]
    assert theirs.decode(whole[len(ours) :]) == '\n'
    plain = 'the cat <|im_end|> é'
    assert [*tokenizer.prompt_ids(plain), END] == theirs(plain)['input_ids']


def test_parity_of_template_features_with_transformers(tmp_path):
    transformers = pytest.importorskip('transformers')
    template = (
        '{{ bos_token }}{% for m in messages %}\n'
        '    {% if loop.index > 3 %}{% break %}{% endif %}\n'
        '    {% generation %}{{ m | tojson }}{% endgeneration %}\n'
        '{% endfor %}{{ unk_token is defined }}'
    )
    tokenizer = tokens.load(write(tmp_path, template=template))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    messages = [message._asdict() for message in DIALOGUE]
    expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert tokenizer.prompt_ids(DIALOGUE) == expected


@pytest.mark.parametrize(
    ('name', 'most'),
    [
        ('tokenizer.json', tokens.MAX_TOKENIZER),
        ('chat_template.jinja', 4 * template.MAX_TEMPLATE),
        ('tokenizer_config.json', MAX_JSON),
    ],
)
def test_what_is_no_file_or_absurdly_large_is_not_read(tmp_path, name, most):
    file = write(tmp_path) / name
    os.truncate(file, most + 1)
    with pytest.raises(UserError, match=f'^{file}: over {most} bytes; at most that'):
        tokens.load(tmp_path)
    file.unlink()
    file.symlink_to('/dev/null')
    with pytest.raises(UserError, match=f'^{file}: not a regular file'):
        tokens.load(tmp_path)


def test_line_breaks_of_a_template_are_those_of_any_system(tmp_path, tokenizer):
    file = write(tmp_path) / 'chat_template.jinja'
    file.write_bytes(file.read_bytes().replace(b'\n', b'\r\n'))
    assert tokens.load(tmp_path).digest == tokenizer.digest


def test_named_templates_without_a_default(tmp_path):
    for files in ('directory', 'list', 'map'):
        path = write(tmp_path / files, template=None)
        named = {'rag': '{{ 1 }}', 'tool_use': '{{ 2 }}'}
        if files == 'directory':
            (path / 'additional_chat_templates').mkdir()
            for name, source in named.items():
                (path / 'additional_chat_templates' / f'{name}.jinja').write_text(source)
        else:
            listed = [{'name': k, 'template': v} for k, v in named.items()]
            write(path, {'chat_template': listed if files == 'list' else named}, None)
        tokenizer = tokens.load(path)
        assert tokenizer.prompt_ids('the cat')
        message = 'no chat template is the default; there are rag, tool_use; put the one to be used'
        with pytest.raises(UserError, match=f'^{path}: {message} there as chat_template.jinja$'):
            tokenizer.prompt_ids(TURN)


def test_named_templates_with_a_default(tmp_path):
    path = write(tmp_path, template='file')
    (path / 'additional_chat_templates').mkdir()
    (path / 'additional_chat_templates' / 'rag.jinja').write_text('rag')
    assert tokens.load(path)._render([(TURN, True)]) == ['file']
    (path / 'additional_chat_templates' / 'default.jinja').write_text('named')
    assert tokens.load(path)._render([(TURN, True)]) == ['named']  # Transformers reads it last.


def test_a_template_that_leaves_out_what_is_said_is_told_once(tmp_path, caplog):
    """As of models that see, whose templates write contents in parts alone."""
    parts = (
        '{% for m in messages %}<{{ m.role }}>{% for part in m.content %}'
        "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
    )
    silent = tokens.load(write(tmp_path / 'silent', template=parts))
    for _ in range(2):
        assert silent._render([(TURN, True)]) == ['<user>']
    says = '<{{ messages[-1].content | trim | replace("cat", "dog") }}>'
    for template_, messages in ((says, DIALOGUE), (says, (Message('user', ' '),))):
        tokens.load(write(tmp_path / 'says', template=template_))._render([(messages, True)])
    assert [record.message for record in caplog.records] == [
        f'{silent.path}: chat template: writes nothing of what a conversation says; the model sees '
        'none of the prompts that are chats (is it a template for contents in parts?)'
    ]
