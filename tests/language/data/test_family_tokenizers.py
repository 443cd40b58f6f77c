"""Tokenisers in the forms of the families' own: ids, texts and prompts against transformers', which
is told the class that their files name."""

import json
from functools import partial

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from sail_jax.language.data import tokens
from sail_jax.language.data.rows import Message

transformers = pytest.importorskip('transformers')

CORPUS = ['the cat sat on the mat and said hello', 'what a good cat', 'no\n\nyes\n', '12 345 cats']
TEXTS = [
    'the cat sat',
    '  two  blanks and\ta tab\n\n\nlines ',
    'naïve café \U0001f408 漢字',
    'e\u0301 is not é',
    '12 and 345678',
    '▁ is a block',
    'x',
]
CONVERSATIONS = [
    (Message('user', 'what a cat'),),
    (
        Message('system', 'be good'),
        Message('user', ' hello '),
        Message('assistant', 'yes'),
        Message('user', 'no\n\n'),
    ),
]
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
{%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
{%- set loop_messages = messages[1:] -%}
{%- else -%}
{%- set first_user_prefix = "" -%}
{%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
{{- message['content'] | trim }}{{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""
PHI3 = """{% for message in messages %}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}
{%- else %}{{ eos_token }}{% endif %}"""
OLMO2 = """{{ bos_token }}{% for message in messages %}
{%- if message['role'] != 'assistant' %}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}
{%- else %}
{{- '<|assistant|>\\n' + message['content'] + eos_token + ('' if loop.last else '\\n') }}
{%- endif %}
{%- if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"""
CHATML = """{% for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def added(*contents, special=True, **flags):
    return [AddedToken(content, special=special, normalized=False, **flags) for content in contents]


def trained(tokenizer, special, alphabet=()):
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=list(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def of_sentencepiece(special, prefix):
    """BPE on characters with bytes for those it has not, as converted from SentencePiece."""
    tokenizer = Tokenizer(models.BPE(unk_token='<unk>', byte_fallback=True, fuse_unk=True))
    blanks = normalizers.Replace(' ', '▁')
    tokenizer.normalizer = blanks
    if prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), blanks])
    trained(tokenizer, [*special, *(f'<0x{i:02X}>' for i in range(256))])
    # Bytes are pieces, and not special tokens.
    data = json.loads(tokenizer.to_str())
    data['added_tokens'] = [
        token for token in data['added_tokens'] if not token['content'].startswith('<0x')
    ]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    parts = [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, *([decoders.Strip(' ', 1, 0)] * prefix)])
    return tokenizer


def gemma():
    tokenizer = of_sentencepiece(['<pad>', '<eos>', '<bos>', '<unk>'], prefix=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(' ', 'merged_with_previous')
    tokenizer.add_special_tokens(added('<start_of_turn>', '<end_of_turn>'))
    tokenizer.add_tokens(added('\n\n', '\n\n\n', '▁▁', special=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single='<bos> $A', special_tokens=[('<bos>', 2)]
    )
    named = {'bos_token': '<bos>', 'eos_token': '<eos>', 'pad_token': '<pad>', 'unk_token': '<unk>'}
    return tokenizer, {'tokenizer_class': 'GemmaTokenizer', **named}, GEMMA


def phi3():
    tokenizer = of_sentencepiece(['<unk>', '<s>', '</s>'], prefix=True)
    tokenizer.add_special_tokens(added('<|endoftext|>'))
    turns = '<|system|>', '<|user|>', '<|assistant|>', '<|end|>'
    tokenizer.add_special_tokens(added(*turns, rstrip=True))
    named = {'bos_token': '<s>', 'eos_token': '<|endoftext|>', 'unk_token': '<unk>'}
    config = {'tokenizer_class': 'LlamaTokenizer', 'legacy': False, 'add_bos_token': False}
    return tokenizer, {**config, **named, 'pad_token': '<|endoftext|>'}, PHI3


def of_bytes(special, before=(), regex=True, **options):
    tokenizer = Tokenizer(models.BPE(**options))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, last]) if before else last
    tokenizer.decoder = decoders.ByteLevel()
    return trained(tokenizer, special, pre_tokenizers.ByteLevel.alphabet())


def olmo():
    tokenizer = of_bytes(['<|endoftext|>', '<|padding|>'])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(' ' * n, normalized=True) for n in range(2, 6)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    named = {'bos_token': '<|endoftext|>', 'eos_token': '<|endoftext|>'}
    config = {'tokenizer_class': 'GPTNeoXTokenizer', 'pad_token': '<|padding|>'}
    return tokenizer, {**config, **named, 'unk_token': '<|endoftext|>'}, OLMO2


def smollm():
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer = of_bytes(['<|endoftext|>', '<|im_start|>', '<|im_end|>'], [digits])
    named = {'bos_token': '<|im_start|>', 'eos_token': '<|im_end|>', 'pad_token': '<|im_end|>'}
    config = {'tokenizer_class': 'GPT2Tokenizer', 'unk_token': '<|endoftext|>'}
    return tokenizer, {**config, **named}, CHATML


def smollm3():
    pattern = Regex(r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+")
    split = pre_tokenizers.Split(pattern, 'isolated')
    special = ['<|begin_of_text|>', '<|end_of_text|>', '<|im_start|>', '<|im_end|>']
    tokenizer = of_bytes(special, [split], regex=False, ignore_merges=True)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single='<|begin_of_text|> $A', special_tokens=[('<|begin_of_text|>', 0)]
            ),
        ]
    )
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': '<|im_end|>'}
    return tokenizer, config | {'bos_token': '<|begin_of_text|>'}, CHATML


FAMILIES = {
    'gemma3_text': gemma,
    'phi3': phi3,
    'olmo2': olmo,
    'llama': smollm,  # SmolLM2's.
    'smollm3': smollm3,
}


def rendered(tokenizer, messages, more, **kwargs):
    return tokenizer.apply_chat_template(messages + more, return_dict=False, **kwargs)


@pytest.mark.parametrize('name', FAMILIES)
def test_ids_texts_and_prompts_are_transformers(name, tmp_path):
    tokenizer, config, template = FAMILIES[name]()
    tokenizer.save(str(tmp_path / 'tokenizer.json'))
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
    (tmp_path / 'chat_template.jinja').write_text(template)
    ours = tokens.load(tmp_path)
    # Which decides, for some families, whether transformers goes by tokenizer.json or by the class.
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': name}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = ours.prompt_ids(text)
        assert ids == theirs(text).input_ids, text
        assert ours.text(ids) == theirs.decode(
            [i for i in ids if i not in ours.eos_ids], skip_special_tokens=True
        )
    for turns in CONVERSATIONS:
        messages = [turn._asdict() for turn in turns]
        render = partial(rendered, theirs, messages)
        prompt = ours.prompt_ids(turns)
        assert prompt == render([], add_generation_prompt=True)
        for said in ('sure', 'two\n\nlines', '  café 漢'):
            response = ours.response_ids(turns, said)
            whole = render([{'role': 'assistant', 'content': said}])
            assert (prompt + response) == whole[: len(prompt) + len(response)]
            assert response[-1] in ours.eos_ids
            assert not set(response[:-1]) & set(ours.eos_ids)
            assert ours.scored_ids(turns, said) == whole
