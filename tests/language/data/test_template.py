"""What an export's chat template takes where it is rendered without the run's variables."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail_jax.errors import UserError
from sail_jax.language.config import Data
from sail_jax.language.data import dataset, template, tokens, turns
from sail_jax.language.data.rows import Message
from sail_jax.language.reward import reward_model, rewards
from tests.support.tiny_tokenizer import CHATML, write

TURN = (Message('user', 'hello'),)
# With a blank line and blanks before the first tag, and a macro that reads the variable.
READS = """
  {%- macro name() -%}<{{ style }}>{%- endmacro %}
  {% if add_generation_prompt %}
{{ name() }} {{ style }} {{ loud is defined }}
{% endif %}
"""

CHAT = CHATML.replace('assistant', '{{ style }}')


def rendered(path, source, **variables):
    tokenizer = tokens.load(write(path, template=source), variables=variables)
    return tokenizer._render([(TURN, True)])


@pytest.mark.parametrize('source', [READS, '\n' + READS, CHAT])
@pytest.mark.parametrize('style', [True, False, -3, 1e-7, 'it\'s "so"\n\\ {{ x }} %} 🙂', ''])
def test_a_template_with_defaults_is_the_one_with_these_values(tmp_path, source, style):
    expected = rendered(tmp_path / 'a', source, style=style)
    source = template.with_defaults(source, {'style': style})
    assert rendered(tmp_path / 'b', source) == expected
    # Who gives another value has that.
    changed = rendered(tmp_path / 'c', source, style='other')
    assert changed != expected
    assert 'other' in changed[0]


@given(st.text())
def test_any_text_is_a_literal(text):
    jinja2 = pytest.importorskip('jinja2')
    source = template.with_defaults('{{ x }}', {'x': text})
    assert jinja2.Environment(trim_blocks=True).from_string(source).render() == text


TOOLS = [{'type': 'function', 'function': {'name': 'mew', 'parameters': {'loud': True, 'n': None}}}]
WITH_TOOLS = """
{%- for tool in tools or [] %}<{{ tool.function.name }} {{ tool | tojson }}>{% endfor %}
{%- for document in documents or [] %}[{{ document.title }}]{% endfor %}
{%- for m in messages %}{{ m.content }}{% endfor %}"""


def test_tools_and_documents_are_variables_and_an_export_has_them(tmp_path):
    transformers = pytest.importorskip('transformers')
    variables = {'tools': TOOLS, 'documents': [{'title': 'it\'s "é"'}]}
    path = write(tmp_path / 'a', template=WITH_TOOLS)
    (rendered,) = tokens.load(path, variables=variables)._render([(TURN, True)])
    assert '<mew {' in rendered
    assert '[it\'s "é"]' in rendered
    messages = [turn._asdict() for turn in TURN]
    render = lambda path, **kwargs: transformers.PreTrainedTokenizerFast.from_pretrained(
        path
    ).apply_chat_template(messages, tokenize=False, **kwargs)
    assert render(path, **variables) == rendered
    exported = write(tmp_path / 'b', template=template.with_defaults(WITH_TOOLS, variables))
    assert render(exported) == rendered
    assert render(exported, tools=[{'function': {'name': 'x'}}]).startswith('<x ')


MEW, MOO = ([{'type': 'function', 'function': {'name': name}}] for name in ('mew', 'moo'))


def with_tools(messages, tools=MEW):
    return (turns.tools(tools), *messages)


def test_a_conversation_is_rendered_with_tools_of_its_own(tmp_path):
    """In the place of the settings', which the others have; as transformers renders it."""
    transformers = pytest.importorskip('transformers')
    path = write(tmp_path / 'a', template=WITH_TOOLS)
    calls = [(with_tools(TURN), True), (TURN, True)]
    own, none = tokens.load(path)._render(calls)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(path)
    messages = [turn._asdict() for turn in TURN]
    assert own == theirs.apply_chat_template(messages, tokenize=False, tools=MEW)
    assert none == 'hello'
    own_too, of_settings = tokens.load(path, variables={'tools': MOO})._render(calls)
    assert own_too == own
    assert of_settings.startswith('<moo ')
    with pytest.raises(UserError, match='chat template: takes no tools'):
        tokens.load(write(tmp_path / 'b'))._render(calls)


def test_rows_are_kept_scored_and_shown_with_their_tools(tmp_path):
    """Their token ids, what a function of rewards gets, and what a reward model reads."""
    path = write(tmp_path / 'a', template=WITH_TOOLS)
    tokenizer, plain = tokens.load(path), tokens.load(write(tmp_path / 'b'))
    file = tmp_path / 'rows.jsonl'
    turn = {'role': 'user', 'content': 'hello'}
    file.write_text(json.dumps({'prompt': [turn], 'tools': MEW}) + '\n')
    data = Data(path=str(file))
    prepared = dataset.prepare(data, 'prompt', tokenizer, tmp_path / 'cache')
    assert prepared.unread == ()
    example = prepared[0]
    assert example.row.prompt == with_tools(TURN)
    assert tokenizer.text(example.prompt) == tokenizer._render([(with_tools(TURN), True)])[0]
    told = rewards.trl_prompt(example.row.prompt)
    assert told == [{'role': 'tools', 'content': json.dumps(MEW)}, turn]

    assert reward_model.row_of(told, tokenizer) == with_tools(TURN)
    assert reward_model.row_of(told, plain) == TURN
    with pytest.raises(UserError, match='takes no tools'):
        dataset.prepare(data, 'prompt', plain, tmp_path / 'cache')


def test_transformers_renders_it_alike(tmp_path):
    transformers = pytest.importorskip('transformers')
    path = write(tmp_path, template=template.with_defaults(READS, {'style': False, 'loud': 'a'}))
    (path / 'tokenizer_config.json').write_text(
        json.dumps({'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': '<|end|>'})
    )
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    text = theirs.apply_chat_template(
        [turn._asdict() for turn in TURN], tokenize=False, add_generation_prompt=True
    )
    assert [text] == tokens.load(path)._render([(TURN, True)])
    assert '<False> False True' in text
