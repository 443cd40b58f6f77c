"""Tokens that files beside tokenizer.json declare: ids and texts as transformers has them."""

import itertools
import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sail_jax.errors import UserError
from sail_jax.language.data import tokens
from sail_jax.language.data.rows import Message
from sail_jax.language.data.special import NAMES
from tests.support.tiny_tokenizer import CHATML, TEXT

START, STOP, BOS, EOS = '<|im_start|>', '<|im_end|>', '<s>', '</s>'
TURN = (Message('user', 'what a <|im_end|> cat'),)
PLAIN = (
    'the cat sat',
    f'no {START} yes {STOP} no{STOP}x',
    f'a{EOS}b {EOS}  {BOS}c <unk><pad>',
    'catSTART  START start <mark> mark',
)


def directory(path, config=None, own=(), affixes=True, padding=None, **files):
    """A checkpoint whose tokenizer.json has `<s>`, `</s>` and `own` as added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if affixes:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f'{BOS} $A {EOS}', special_tokens=[(BOS, 0), (EOS, 1)]
        )
    data = json.loads(tokenizer.to_str())
    by_content = {token['content']: token for token in data['added_tokens']}
    for token in own:
        number = by_content.get(token['content'], {'id': 280 + len(by_content) - 2})['id']
        by_content[token['content']] = flags(**token) | {'id': number}
    data['added_tokens'] = list(by_content.values())
    data['padding'] = padding
    path.mkdir(exist_ok=True)
    files = {'tokenizer': data, 'tokenizer_config': {'eos_token': EOS} | (config or {})} | files
    for stem, content in files.items():
        (path / f'{stem}.json').write_text(json.dumps(content))
    (path / 'chat_template.jinja').write_text('{{ bos_token }}' + CHATML)
    return path


def flags(content, special=True, **others):
    return {
        'content': content,
        'lstrip': False,
        'rstrip': False,
        'single_word': False,
        'normalized': False,
        'special': special,
    } | others


def padding(token):
    """Of a tokenizer.json."""
    return {
        'strategy': 'BatchLongest',
        'direction': 'Right',
        'pad_to_multiple_of': None,
        'pad_id': 0,
        'pad_type_id': 0,
        'pad_token': token,
    }


BOTH = [START, STOP]
FORMS = {
    'decoder': {
        'config': {'added_tokens_decoder': {'280': flags(START), '281': flags(STOP)}},
    },
    'decoder in another order, not special': {
        'config': {'added_tokens_decoder': {'281': flags(STOP, False), '280': flags(START, False)}},
    },
    'decoder without flags': {
        'config': {'added_tokens_decoder': {'280': {'content': START}}},
    },
    'decoder repeats with other flags': {
        'config': {'added_tokens_decoder': {'1': flags(EOS, lstrip=True, rstrip=True)}},
    },
    'decoder leaves out what is not special': {
        'config': {'added_tokens_decoder': {'280': flags(START)}},
        'own': [flags(START, False), flags(STOP, False)],
    },
    'additional': {'config': {'additional_special_tokens': BOTH}},
    'extra list': {'config': {'extra_special_tokens': BOTH}},
    'extra empty': {
        'config': {'extra_special_tokens': [], 'additional_special_tokens': BOTH},
    },
    'extra and additional': {
        'config': {'extra_special_tokens': [START], 'additional_special_tokens': BOTH},
    },
    'extra dict': {'config': {'extra_special_tokens': {'start': START, 'stop_token': STOP}}},
    'objects in lists': {
        'config': {
            'additional_special_tokens': [
                {'__type': 'AddedToken'} | flags(START, rstrip=True),
                STOP,
            ]
        },
    },
    'typed objects': {
        'config': {
            'eos_token': {'__type': 'AddedToken'} | flags(EOS, lstrip=True),
            'pad_token': {'__type': 'AddedToken'} | flags('<pad>'),
        },
    },
    'names of its own': {'config': {'image_token': START, 'turn_token': STOP}},
    'names in every file': {
        'config': {'unk_token': '<unk>', 'pad_token': '<pad>', 'image_token': '<image>'},
        'special_tokens_map': {'mask_token': flags('<mask>'), 'audio_token': '<audio>'},
    },
    'pad is eos': {'config': {'pad_token': EOS, 'bos_token': BOS}},
    'pad is bos and new': {'config': {'pad_token': '<pad>', 'bos_token': '<pad>'}},
    'null': {'config': {'pad_token': None, 'additional_special_tokens': None}},
    'map': {
        'special_tokens_map': {
            'bos_token': BOS,
            'eos_token': flags(STOP, rstrip=True),
            'additional_special_tokens': [START],
        },
    },
    'map comes first': {
        'config': {'eos_token': EOS, 'pad_token': '<pad>'},
        'special_tokens_map': {'eos_token': STOP, 'pad_token': None},
    },
    'map is not read beside a decoder': {
        'config': {'added_tokens_decoder': {'280': flags(START)}},
        'special_tokens_map': {'eos_token': STOP, 'pad_token': '<pad>'},
    },
    'map extends': {
        'config': {'extra_special_tokens': [START]},
        'special_tokens_map': {'extra_special_tokens': [{'content': STOP, 'lstrip': True}, START]},
    },
    'map does not extend': {
        'config': {'extra_special_tokens': [START]},
        'special_tokens_map': {'additional_special_tokens': [STOP]},
    },
    'added_tokens.json': {'added_tokens': {STOP: 281, START: 280}},
    'added_tokens.json, special': {
        'config': {'additional_special_tokens': BOTH},
        'added_tokens': {STOP: 281, START: 280},
    },
    'eos is not special': {'own': [flags(EOS, False)]},
    'eos is not special, normalized': {'own': [flags(EOS, False, normalized=True)]},
    'bos is not special': {'config': {'bos_token': BOS}, 'own': [flags(BOS, False)]},
    'markers are not special': {'own': [flags(START, False), flags(STOP, False)]},
    'eos is a marker that is not special': {
        'config': {'eos_token': STOP},
        'own': [flags(START, False), flags(STOP, False)],
    },
    'lstrip': {'own': [flags(START, lstrip=True), flags(STOP, lstrip=True)]},
    'rstrip': {'own': [flags(START, rstrip=True), flags(STOP, rstrip=True)]},
    'single word': {'own': [flags('START', single_word=True), flags('mark', single_word=True)]},
    'normalized': {'own': [flags('START', normalized=True), flags('<mark>', False)]},
    'a word of the vocabulary': {'config': {'additional_special_tokens': ['a', 'he', 'cat']}},
    'add bos': {'config': {'bos_token': BOS, 'add_bos_token': True, 'add_eos_token': True}},
    'add nothing': {'config': {'add_bos_token': False, 'add_eos_token': False}},
    'add without a processor': {
        'config': {'bos_token': BOS, 'add_bos_token': True},
        'affixes': False,
    },
    'split': {'config': {'split_special_tokens': True}},
    'clean up': {'config': {'clean_up_tokenization_spaces': True}},
    'clean up all the same': {
        'config': {
            'clean_up_tokenization_spaces': True,
            'clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output': True,
        },
    },
    'padding': {'padding': padding('<pad>')},
    'padding that the text has': {'padding': padding('cat')},
    'padding by null': {'padding': padding('<pad>'), 'config': {'pad_token': None}},
    'padding by another': {'padding': padding('<pad>'), 'config': {'pad_token': '<mark>'}},
    'padding beside a map': {'padding': padding('<pad>'), 'special_tokens_map': {'bos_token': BOS}},
    'padding by a map': {
        'padding': padding('<pad>'),
        'special_tokens_map': {'pad_token': '<mark>'},
    },
    'padding by null in a map': {
        'padding': padding('<pad>'),
        'special_tokens_map': {'pad_token': None},
    },
    'padding beside a decoder': {
        'padding': padding('<pad>'),
        'config': {'added_tokens_decoder': {'280': flags(START)}},
    },
    'cut': {'config': {'model_max_length': 2, 'truncation_side': 'left'}},
    'prefix': {'config': {'add_prefix_space': True, 'legacy': True}},
}


@pytest.mark.parametrize('form', FORMS)
def test_ids_and_texts_are_transformers(tmp_path, form):
    transformers = pytest.importorskip('transformers')
    directory(tmp_path, **FORMS[form])
    tokenizer = tokens.load(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert dict(tokenizer.special) == theirs.special_tokens_map
    messages = [message._asdict() for message in TURN]
    chat = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokenizer.prompt_ids(TURN) == chat
    ends = set(tokenizer.eos_ids)
    for text in (*PLAIN, "it 's , no n't . what ?"):
        expected = theirs(text)['input_ids']
        assert tokenizer.scored_ids(text, '') == expected
        # What is left out besides: ends that transformers does not know to be special.
        kept = [i for i in expected if i not in ends]
        assert tokenizer.text(expected) == theirs.decode(kept, skip_special_tokens=True)
    known = {theirs.convert_tokens_to_ids(theirs.eos_token), theirs.convert_tokens_to_ids(STOP)}
    assert ends <= known
    assert tokenizer.eos_ids[0] == theirs.eos_token_id


def test_an_end_that_is_not_special_is_in_no_text(tmp_path):
    tokenizer = tokens.load(directory(tmp_path, own=[flags(EOS, False), flags(STOP, False)]))
    for prompt, end in [('the cat', EOS), (TURN, STOP)]:
        ids = tokenizer.response_ids(prompt, ' sat')
        assert tokenizer.ends[tokenizer.eos_ids.index(ids[-1])] == end
        assert tokenizer.text(ids) == ' sat'.strip() if end == STOP else ' sat'


def test_markers_that_only_the_configuration_has_end_a_turn(tmp_path):
    for form in ('decoder', 'additional', 'extra dict', 'names of its own', 'added_tokens.json'):
        tokenizer = tokens.load(directory(tmp_path / form, **FORMS[form]))
        assert tokenizer.ends == (EOS, STOP)
        assert tokenizer.eos_ids == (1, 281)
        assert tokenizer.response_ids(TURN, 'no')[-1] == 281


@pytest.mark.parametrize(
    ('form', 'message'),
    [
        (
            {'config': {'added_tokens_decoder': {'7': flags(START)}}},
            r"tokenizer.json: '<\|im_start\|>' is declared with id 7, and has 280",
        ),
        ({'added_tokens': {START: 279}}, r'declared with id 279, and has 280'),
        ({'added_tokens': {START: 'x'}}, r"added_tokens.json: '<\|im_start\|>': expected an id"),
        ({'added_tokens': {START: True}}, r'expected an id, got True'),
        (
            {'config': {'added_tokens_decoder': [START]}},
            'tokenizer_config.json: added_tokens_decoder: expected ids with tokens',
        ),
        ({'config': {'added_tokens_decoder': {'x': flags(START)}}}, "expected an id, got 'x'"),
        ({'config': {'added_tokens_decoder': {'280': 3}}}, '280: expected text, got 3'),
        ({'config': {'additional_special_tokens': 'x'}}, 'expected a list of tokens'),
        ({'config': {'additional_special_tokens': [3]}}, r'special_tokens\[0\]: expected text'),
        ({'config': {'extra_special_tokens': {'a_token': 3}}}, 'a_token: expected text, got 3'),
        ({'config': {'pad_token': ['x']}}, r"pad_token: expected text, got \['x'\]"),
        ({'config': {'pad_token': '\ud800'}}, 'pad_token: not valid UTF-8 at character 0'),
        ({'config': {'pad_token': flags('x', lstrip=1)}}, 'lstrip: expected true or false, got 1'),
        ({'config': {'split_special_tokens': 'yes'}}, 'split_special_tokens: expected true or'),
        ({'config': {'eos_token': ''}}, "eos_token: '' is not in tokenizer.json"),
        (
            {'config': {'eos_token': '<new>'}, 'model': {'vocab_size': 280}},
            "eos_token: '<new>' has id 280, and the model only 280 ids",
        ),
    ],
)
def test_what_is_declared_wrongly_is_one_line(tmp_path, form, message):
    form = dict(form)
    model = form.pop('model', None)
    directory(tmp_path, **form)
    if model:
        (tmp_path / 'config.json').write_text(json.dumps(model))
    with pytest.raises(UserError, match=message) as caught:
        tokens.load(tmp_path)
    assert '\n' not in str(caught.value)


def test_dropout_is_refused(tmp_path):
    directory(tmp_path)
    file = tmp_path / 'tokenizer.json'
    data = json.loads(file.read_text())
    for dropout in (0.0, None):
        data['model']['dropout'] = dropout
        file.write_text(json.dumps(data))
        tokens.load(tmp_path)
    data['model']['dropout'] = 0.1
    file.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r'tokenizer.json: model.dropout: 0.1 makes the ids'):
        tokens.load(tmp_path)


CONTENTS = st.sampled_from([BOS, EOS, START, STOP, '<pad>', '<unk>', 'cat', ' a', 'no'])
FLAGS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ('lstrip', 'rstrip', 'single_word', 'normalized', 'special'), st.booleans()
    ),
)
OBJECTS = st.builds(lambda content, flags: {'content': content} | flags, CONTENTS, FLAGS)
TYPED = OBJECTS.map(lambda token: {'__type': 'AddedToken'} | token)
VALUES = st.none() | CONTENTS | TYPED
LISTS = st.lists(CONTENTS | TYPED, max_size=3)
NAMED = st.dictionaries(st.sampled_from([*NAMES, 'image_token', 'turn_token']), VALUES, max_size=4)
LATE = st.dictionaries(st.sampled_from(NAMES), st.none() | CONTENTS | OBJECTS, max_size=3)


@settings(max_examples=40)
@given(
    named=NAMED,
    lists=st.dictionaries(
        st.sampled_from(['additional_special_tokens', 'extra_special_tokens']), LISTS
    ),
    decoder=st.none() | st.lists(OBJECTS, max_size=4, unique_by=lambda token: token['content']),
    special_map=st.none() | LATE,
    own=st.lists(st.tuples(CONTENTS, FLAGS), max_size=3, unique_by=lambda pair: pair[0]),
    affixes=st.booleans(),
)
def test_any_declarations_are_transformers(
    tmp_path_factory, named, lists, decoder, special_map, own, affixes
):
    transformers = pytest.importorskip('transformers')
    config = {'eos_token': EOS} | named | lists
    path = tmp_path_factory.mktemp('declared')
    files = {} if special_map is None else {'special_tokens_map': special_map}
    own = [{'content': content} | given for content, given in own]
    directory(path, config, own, affixes, **files)
    if decoder is not None:
        # Ids as they come to be: others are refused.
        ids = Tokenizer.from_file(str(path / 'tokenizer.json'))
        known = {token['content']: ids.token_to_id(token['content']) for token in decoder}
        free = itertools.count(ids.get_vocab_size())
        config['added_tokens_decoder'] = {
            str(next(free) if known[t['content']] is None else known[t['content']]): t
            for t in decoder
        }
        (path / 'tokenizer_config.json').write_text(json.dumps(config))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(path)
    if theirs.eos_token is None:  # The template may end turns with a marker.
        assume(STOP in theirs.get_vocab())
    ours = tokens.load(path)
    assert dict(ours.special) == theirs.special_tokens_map
    for text in PLAIN:
        expected = theirs(text)['input_ids']
        assert ours.scored_ids(text, '') == expected
        kept = [i for i in expected if i not in ours.eos_ids]
        assert ours.text(expected) == theirs.decode(kept, skip_special_tokens=True)


@pytest.mark.parametrize('clean', [False, True])
def test_blanks_of_words_are_cleaned_up_as_transformers_does(tmp_path, clean):
    transformers = pytest.importorskip('transformers')
    words = [
        'it',
        "'s",
        ',',
        'no',
        "n't",
        '.',
        'what',
        '?',
        "'",
        'a',
        '!',
        "'",
        'I',
        "'ve",
        'they',
        "'re",
        'I',
        "'m",
    ]
    vocab = {word: i for i, word in enumerate([EOS, '<unk>', *dict.fromkeys(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / 'tokenizer.json'))
    config = {'eos_token': EOS, 'clean_up_tokenization_spaces': clean}
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = tokens.load(tmp_path)
    ids = ours.prompt_ids(' '.join(words))
    assert ids == theirs(' '.join(words))['input_ids']
    assert ours.text(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ("it's, non't." in ours.text(ids)) == clean
