"""Rows: converters by golden rows, and what is refused."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail_jax.errors import UserError
from sail_jax.language.data import rows
from sail_jax.language.data.rows import DataRow, Message

USER = {'role': 'user', 'content': 'Which sky?'}
BLUE = {'role': 'assistant', 'content': 'Blue.'}
RED = {'role': 'assistant', 'content': 'Red.'}
PROMPT = (Message('user', 'Which sky?'),)
PAIR = DataRow(PROMPT, 'Blue.', 'Red.')
HH = '\n\nHuman: Which sky?\n\nAssistant: Here?\n\nHuman: Yes\n\nAssistant: '
LONG = (*PROMPT, Message('assistant', 'Here?'), Message('user', 'Yes'))
PKU = {
    'prompt': 'Which sky?',
    'response_0': 'Red.',
    'response_1': 'Blue.',
    'is_response_0_safe': True,
    'better_response_id': 1,
    'safer_response_id': 0,
}


BE = {'role': 'system', 'content': 'Be.'}
TOLD = PAIR._replace(prompt=(Message('system', 'Be.'), *PROMPT))
MEW = {'type': 'function', 'function': {'name': 'mew', 'parameters': {'é': 1}}}
WITH_NULL = MEW | {'bark': None, 'function': MEW['function'] | {'loud': None}}
HAS_TOOLS = Message('tools', json.dumps([MEW], ensure_ascii=False)), *PROMPT
PLAIN = DataRow('It is', 'a', 'b')
ANSWERS = {'chosen': 'Blue.', 'rejected': 'Red.'}
PARTS = [{'type': 'text', 'text': 'Which '}, {'type': 'text', 'text': 'sky?'}]


def safer(raw):
    return rows.pku_safe_rlhf(raw, 'safer')


@pytest.mark.parametrize(
    ('convert', 'raw', 'row'),
    [
        (rows.trl, {'prompt': 'The sky is'}, DataRow('The sky is')),
        (rows.trl, {'prompt': [USER]}, DataRow(PROMPT)),
        (rows.trl, {'prompt': 'It is', 'completion': ' blue'}, DataRow('It is', ' blue')),
        (rows.trl, {'prompt': [USER], 'completion': [BLUE]}, DataRow(PROMPT, 'Blue.')),
        (rows.trl, {'prompt': 'a', 'completion': 'b', 'chosen': None}, DataRow('a', 'b')),
        (
            rows.trl,
            {'prompt': 'It is', 'chosen': ' a', 'rejected': ' b'},
            DataRow('It is', ' a', ' b'),
        ),
        (rows.trl, {'chosen': 'It is a', 'rejected': 'It is b'}, DataRow('It is', ' a', ' b')),
        (rows.trl, {'prompt': [USER], 'chosen': [BLUE], 'rejected': [RED]}, PAIR),
        (rows.trl, {'prompt': [USER], 'tools': [WITH_NULL]}, DataRow(HAS_TOOLS)),
        (rows.trl, {'prompt': [USER], 'tools': json.dumps([MEW])}, DataRow(HAS_TOOLS)),
        (rows.trl, {'prompt': [USER], 'tools': 'null'}, DataRow(PROMPT)),
        (rows.trl, {'prompt': 'It is', 'tools': []}, DataRow('It is')),
        (
            rows.trl,
            {'chosen': [USER, BLUE], 'rejected': [USER, RED], 'tools': [MEW]},
            PAIR._replace(prompt=HAS_TOOLS),
        ),
        (rows.trl, {'messages': [USER, BLUE], 'tools': [MEW]}, DataRow(HAS_TOOLS, 'Blue.')),
        (rows.trl, {'chosen': [USER, BLUE], 'rejected': [USER, RED]}, PAIR),
        (rows.trl, {'prompt': 'Which sky?', 'chosen': [BLUE], 'rejected': [RED]}, PAIR),
        (
            rows.ultrafeedback,
            {
                'prompt': 'Which sky?',
                'prompt_id': 'f0',
                'chosen': [USER, BLUE],
                'rejected': [USER, RED],
                'messages': [USER, BLUE],
                'score_chosen': 8.0,
                'score_rejected': 7.5,
            },
            PAIR,
        ),
        (
            rows.hh_rlhf,
            {'chosen': HH + 'Blue.', 'rejected': HH + 'Red.\n'},
            PAIR._replace(prompt=LONG),
        ),
        (rows.trl, {'system': 'Be.', 'prompt': [USER], 'chosen': [BLUE], 'rejected': [RED]}, TOLD),
        (rows.trl, {'system': 'Be.', 'prompt': 'Which sky?', **ANSWERS}, TOLD),
        (
            rows.trl,
            {'system': 'Be.', 'prompt': 'Which sky?', 'chosen': [BLUE], 'rejected': [RED]},
            TOLD,
        ),
        (rows.trl, {'system': 'Be.', 'chosen': [USER, BLUE], 'rejected': [USER, RED]}, TOLD),
        (
            rows.trl,
            {'system': 'Be.', 'prompt': [BE, USER], 'chosen': [BLUE], 'rejected': [RED]},
            TOLD,
        ),
        (rows.trl, {'system': 'Be.', 'prompt': 'Which sky?'}, DataRow(TOLD.prompt)),
        (rows.trl, {'system': '', 'prompt': 'It is', 'chosen': 'a', 'rejected': 'b'}, PLAIN),
        (rows.trl, {'system': None, 'prompt': 'It is', 'chosen': 'a', 'rejected': 'b'}, PLAIN),
        (
            rows.ultrafeedback,
            {'system': 'Be.', 'chosen': [USER, BLUE], 'rejected': [USER, RED]},
            TOLD,
        ),
        (
            rows.trl,
            {'prompt': ' Which sky?\n', 'chosen': [BE, USER, BLUE], 'rejected': [BE, USER, RED]},
            TOLD,
        ),
        (rows.trl, {'prompt': [USER | {'content': PARTS}]}, DataRow(PROMPT)),
        (rows.pku_safe_rlhf, PKU, PAIR),
        (safer, PKU, DataRow(PROMPT, 'Red.', 'Blue.')),
    ],
)
def test_converter(convert, raw, row):
    assert convert(raw) == row
    kind = 'prompt' if row.chosen is None else 'preference' if row.rejected else 'completion'
    assert rows.check(row, kind) == row


@pytest.mark.parametrize(
    ('convert', 'raw', 'message'),
    [
        (rows.trl, {}, 'prompt: missing'),
        (rows.trl, ANSWERS | {'system': 'Be.', 'question': 'Q'}, 'question: call this column pro'),
        (
            rows.trl,
            {'prompt': 'Q', 'chosen': [{'from': 'human', 'value': 'Q'}], 'rejected': [RED]},
            r'chosen\[0\]: from and value; call them role and content',
        ),
        (
            rows.trl,
            {'prompt': [USER], 'chosen': [USER, BLUE], 'rejected': [USER, RED]},
            r'one message of the assistant after the prompt, got user, assistant \(the prompt ag',
        ),
        (
            rows.trl,
            {'prompt': [USER], 'chosen': [BLUE | {'role': 'gpt'}], 'rejected': [RED]},
            r'one message of the assistant after the prompt, got gpt$',
        ),
        (
            rows.trl,
            {'chosen': [BE, USER, BLUE], 'rejected': [USER, RED]},
            'chosen and rejected answer different prompts',
        ),
        (rows.trl, {'prompt': json.dumps([USER])}, 'prompt: messages written out as text'),
        (
            rows.trl,
            {'prompt': 'Q', 'chosen': f'{[BLUE]}\n', 'rejected': 'Red.'},
            'chosen: messages written out as text',
        ),
        (
            rows.trl,
            {'prompt': 'Q', 'completion': str(np.array([USER, BLUE]))},
            'completion: messages written out as text; expected a list of messages',
        ),
        (rows.trl, {'prompt': 3}, 'prompt: expected text, got int'),
        (rows.trl, {'prompt': None}, 'prompt: missing'),
        (rows.trl, {'prompt': 'a', 'chosen': 1, 'rejected': 'b'}, 'chosen: expected text, got int'),
        (rows.trl, {'prompt': 'a', 'chosen': 'b'}, 'rejected: missing'),
        (rows.trl, {'prompt': 'a', 'chosen': 'b', 'rejected': ' \n'}, 'rejected: empty'),
        (rows.trl, {'prompt': 'a', 'chosen': '', 'rejected': 'b'}, 'chosen: empty'),
        (rows.trl, {'prompt': ' ', 'chosen': 'a', 'rejected': 'b'}, 'prompt: empty'),
        (
            rows.trl,
            {'prompt': 'a', 'chosen': 'b', 'rejected': 'b'},
            'chosen and rejected are the s',
        ),
        (rows.trl, {'chosen': 'abc', 'rejected': 'xyz'}, 'prompt: empty'),
        (rows.trl, {'text': '', 'id': 3}, '^text: empty'),
        (rows.trl, {'messages': [], 'prompt': None}, '^messages: empty'),
        (
            rows.trl,
            {'prompt': 'a', 'chosen': '\ud800', 'rejected': 'b'},
            'chosen: not valid UTF-8 at',
        ),
        (rows.trl, {'prompt': [], 'chosen': [BLUE], 'rejected': [RED]}, 'prompt: empty'),
        (
            rows.trl,
            {'prompt': [USER], 'chosen': 'b', 'rejected': 'c'},
            'chosen: expected a list of',
        ),
        (rows.trl, {'prompt': [USER], 'chosen': [], 'rejected': [RED]}, 'chosen: empty'),
        (
            rows.trl,
            {'prompt': [USER], 'chosen': [USER], 'rejected': [RED]},
            'chosen: expected one m',
        ),
        (rows.trl, {'chosen': [USER, BLUE], 'rejected': [RED, BLUE]}, 'answer different prompts'),
        (
            rows.trl,
            {'prompt': [USER, BLUE], 'chosen': [RED], 'rejected': [BLUE]},
            'its last message',
        ),
        (rows.trl, {'prompt': ['a']}, r'prompt\[0\]: expected a message, got str'),
        (rows.trl, {'prompt': [{'role': 'user'}]}, r'prompt\[0\].content: missing'),
        (rows.trl, {'prompt': [{'role': '', 'content': 'a'}]}, r'prompt\[0\].role: empty'),
        (rows.trl, {'prompt': [USER | {'tool_calls': [1]}]}, r'prompt\[0\]: tool calls'),
        (rows.trl, {'prompt': 'a', 'tools': [1]}, r'tools: expected a list of objects, .* \[1\]'),
        (rows.trl, {'prompt': [USER], 'tools': '[{'}, 'tools: expected a list of objects'),
        (rows.trl, {'prompt': [USER], 'tools': 3}, 'tools: expected a list of objects'),
        (rows.trl, {'prompt': 'a', 'tools': [MEW]}, 'tools: for a chat template, and prompt is no'),
        (rows.trl, {'prompt': [{'role': 'tools', 'content': '[]'}]}, r'prompt\[0\].role: tools'),
        (
            rows.trl,
            {'prompt': [USER, {'role': '', 'content': 'a'}], 'tools': [MEW]},
            r'prompt\[1\].role: empty',
        ),
        (rows.trl, {'prompt': 'a', 'completion': 'b', 'label': False}, 'label: unpaired'),
        (rows.trl, {'prompt': 'a', 'completion': 'b', **ANSWERS}, 'completion: beside chosen'),
        (
            rows.trl,
            {'prompt': 'No.', 'chosen': [USER, BLUE], 'rejected': [USER, RED]},
            'prompt: not what is asked',
        ),
        (
            rows.ultrafeedback,
            {'prompt': 'No.', 'chosen': [USER, BLUE], 'rejected': [USER, RED]},
            'prompt: not what is asked',
        ),
        (
            rows.trl,
            {'system': 'No.', 'prompt': [BE, USER], 'chosen': [BLUE], 'rejected': [RED]},
            r'system: another text than that of prompt\[0\]',
        ),
        (rows.trl, {'system': 3, 'prompt': 'a'}, 'system: expected text, got int'),
        (
            rows.trl,
            {'system': 'Be.', 'chosen': 'It is a', 'rejected': 'It is b'},
            'system: chosen is no conversation that it could begin; give a prompt',
        ),
        *(
            (rows.trl, {name: 'Which?', **ANSWERS}, f'{name}: call this column prompt')
            for name in ('question', 'instruction', 'Query', 'Prompt')
        ),
        (
            rows.trl,
            {'prompt': [USER | {'content': [PARTS[0], {'type': 'image'}]}]},
            r"prompt\[0\].content\[1\]: a part of type 'image'; only text is read",
        ),
        (rows.trl, {'prompt': [USER | {'content': ['a']}]}, r"content\[0\]: a part of type 'str'"),
        (rows.ultrafeedback, {'chosen': [USER, BLUE]}, 'rejected: missing'),
        (rows.ultrafeedback, {'chosen': 'a', 'rejected': 'b'}, 'chosen: expected a list of mess'),
        (rows.hh_rlhf, {'chosen': 'Human: a', 'rejected': HH}, 'chosen: expected a transcript'),
        (rows.hh_rlhf, {'chosen': HH, 'rejected': HH + 'Red'}, 'chosen: empty'),
        (
            rows.pku_safe_rlhf,
            PKU | {'better_response_id': -1},
            'better_response_id: expected 0 or 1',
        ),
        (rows.pku_safe_rlhf, PKU | {'better_response_id': 1.0}, 'expected 0 or 1, got 1.0'),
        (safer, PKU | {'safer_response_id': True}, 'safer_response_id: expected 0 or 1, got True'),
        (rows.pku_safe_rlhf, PKU | {'response_0': None}, 'response_0: missing'),
    ],
)
def test_bad_row_is_one_line_that_names_the_field(convert, raw, message):
    kind = 'preference' if 'chosen' in raw or 'response_0' in raw else 'prompt'
    with pytest.raises(UserError, match=message) as caught:
        rows.check(convert(raw), kind)
    assert '\n' not in str(caught.value)


def test_messages_and_texts_are_whole_rows():
    user, assistant = {'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}
    asked = (Message('user', 'a'),)
    for raw, row in (
        ({'messages': [user, assistant]}, DataRow(asked, 'b')),
        ({'messages': [user]}, DataRow(asked)),
        ({'messages': [user, assistant, user], 'system': 's'}, None),
        ({'text': 'a b'}, DataRow('', 'a b')),
    ):
        converted = rows.trl(raw)
        if row is None:
            assert [m.role for m in converted.prompt] == ['system', 'user', 'assistant', 'user']
        else:
            assert converted == row
        assert rows.unread(raw, rows.FORMATS['trl'].columns) == set()
    assert rows.check(DataRow('', 'a b'), 'completion') == DataRow('', 'a b')
    for kind in ('prompt', 'preference'):
        with pytest.raises(UserError, match=r'^text: no prompt and no response; call it prompt'):
            rows.check(DataRow('', 'a b'), kind)
    with pytest.raises(UserError, match=r'^prompt: empty'):
        rows.trl({'prompt': '', 'chosen': 'a b'})
    # Beside a prompt they say nothing that is read.
    both = {'prompt': 'a', 'chosen': 'b', 'text': 'a b', 'messages': [user]}
    assert rows.trl(both) == DataRow('a', 'b')
    assert rows.unread(both, rows.FORMATS['trl'].columns) == {'messages', 'text'}
    with pytest.raises(UserError, match=r'^text: beside messages'):
        rows.trl({'messages': [user], 'text': 'a'})
    with pytest.raises(UserError, match=r'^messages\[0\].content: missing'):
        rows.trl({'messages': [{'role': 'user'}]})


def test_unread_names_what_says_something():
    row = {
        'prompt': [USER | {'name': 'Ann'}],
        'chosen': [BLUE | {'reasoning_content': 'hm', 'tool_calls': []}],
        'rejected': 'text',
        'score': 0.0,
        'label': False,
        'history': [],
        'id': '',
        'images': ['a'],
    }
    columns = rows.FORMATS['trl'].columns
    expected = {'prompt[].name', 'chosen[].reasoning_content', 'score', 'label', 'images'}
    assert rows.unread(row, columns) == expected


def test_kind_keeps_what_is_needed():
    assert rows.check(PAIR, 'prompt') == DataRow(PROMPT)
    assert rows.check(PAIR, 'completion') == DataRow(PROMPT, 'Blue.')
    assert rows.check(DataRow('a', 'b', 'b'), 'prompt') == DataRow('a')


def test_text_of_absurd_length():
    text = 'a' * (rows.MAX_CHARACTERS + 1)
    with pytest.raises(UserError, match='prompt: 4194305 characters; at most 4194304'):
        rows.check(DataRow(text), 'prompt')


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS | st.sampled_from([USER, BLUE, RED, [USER, BLUE], [BLUE], HH, 'Which sky?']),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(['role', 'content', 'tool_calls']), inner)
    ),
    max_leaves=6,
)
SOUND = {
    rows.trl: {'prompt': [USER], 'chosen': [BLUE], 'rejected': [RED]},
    rows.ultrafeedback: {'chosen': [USER, BLUE], 'rejected': [USER, RED]},
    rows.hh_rlhf: {'chosen': HH + 'Blue.', 'rejected': HH + 'Red.'},
    rows.pku_safe_rlhf: PKU,
}


@given(st.data(), st.sampled_from(list(SOUND)))
def test_mutated_row_is_a_row_or_one_line(data, convert):
    raw = dict(SOUND[convert])
    for key in data.draw(st.sets(st.sampled_from([*raw, 'completion', 'tools']), min_size=1)):
        if data.draw(st.booleans()):
            raw.pop(key, None)
        else:
            raw[key] = data.draw(VALUES)
    try:
        row = rows.check(convert(raw), 'preference')
    except UserError as error:
        message = str(error)
    else:
        message = ''
        texts = [row.chosen, row.rejected]
        if isinstance(row.prompt, str):
            texts.append(row.prompt)
        else:
            assert all(isinstance(message, Message) for message in row.prompt)
            assert row.prompt[-1].role != 'assistant'
        assert all(isinstance(text, str) and text.strip() and text.encode() for text in texts)
        assert row.chosen != row.rejected
    assert '\n' not in message
    assert len(message) < 300


NO_MARGINS = {'huge': 10**400, '-huge': -(10**400), '1e300': 1e300, 'inf': np.inf, 'nan': np.nan}


@pytest.mark.parametrize(
    'value', [*NO_MARGINS.values(), '1', True], ids=[*NO_MARGINS, 'text', 'true']
)
def test_a_margin_is_a_number_of_float32(value):
    with pytest.raises(UserError, match=r'^margin: expected a number, got'):
        rows.margin({'margin': value})
    assert rows.margin({'margin': -3}) == -3
