"""A checkpoint directory with a tiny byte-level tokeniser and a chat template."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXT = ['the cat sat on the mat and said hello', 'what a good cat, what a bad cat', 'no\n\nyes\n']
SPECIAL = ['<|begin|>', '<|end|>', '<|im_start|>', '<|im_end|>']
BEGIN, END, IM_START, IM_END = range(4)
CHATML = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content | trim }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def backend(affixes: bool = True) -> Tokenizer:
    """BPE on bytes; puts begin and end around a text where `affixes`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if affixes:
        tokenizer.post_processor = processors.TemplateProcessing(
            single='<|begin|> $A <|end|>', special_tokens=[('<|begin|>', BEGIN), ('<|end|>', END)]
        )
    return tokenizer


def write(
    path: Path, config: dict | None = None, template: str | None = CHATML, **files: dict
) -> Path:
    """Fills the directory; `files` are further JSON files by stem."""
    path.mkdir(parents=True, exist_ok=True)
    backend().save(str(path / 'tokenizer.json'))
    files['tokenizer_config'] = {'bos_token': '<|begin|>', 'eos_token': '<|end|>'} | (config or {})
    for stem, content in files.items():
        (path / f'{stem}.json').write_text(json.dumps(content))
    if template is not None:
        (path / 'chat_template.jinja').write_text(template)
    return path
