"""Prompts and responses as token ids, by a checkpoint's own tokeniser and chat template.

Ids are made once, here; text made from ids is for people and labellers and is never encoded again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np
import tokenizers

from sail_jax import files
from sail_jax.errors import UserError, one_line
from sail_jax.language.architecture import read_json
from sail_jax.language.rows import Message, Prompt

MAX_TEMPLATE = 2**20
"""Characters of a chat template."""
MAX_TOKENIZER = 2**28
"""Bytes of a tokenizer.json."""
SPECIAL = ('bos_token', 'eos_token', 'unk_token', 'pad_token')
COMPANIONS = ('tokenizer_config.json', 'special_tokens_map.json', 'generation_config.json')
PROBE = (Message('user', 'a'),), 'b'
"""A conversation that shows how the template ends a response."""


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids; see `load`."""

    path: Path
    backend: tokenizers.Tokenizer
    template: jinja2.Template | None
    special: Mapping[str, str]
    """What templates know as `bos_token` and so on."""
    eos_ids: tuple[int, ...]
    """The ids that end a response. The first is put after a response that has none."""
    vocab_size: int
    """Of the model. Ids lie below."""
    digest: str
    """Equal for tokenisers that give equal ids."""

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """What a response follows.

        Plain text gets the special tokens that the tokeniser puts before a text, a conversation
        the chat template with the beginning of the assistant's turn.

        Raises:
          UserError: no chat template, or one that does not take this conversation; no tokens.
        """
        ids = (
            self._with_start(prompt)
            if isinstance(prompt, str)
            else self._plain(self._render(prompt))
        )
        if not ids:
            raise UserError('prompt: no tokens')
        return self._checked(ids, 'prompt')

    def response_ids(self, prompt: Prompt, response: str) -> list[int]:
        """The response to a prompt, up to and including the end of sequence.

        Raises:
          UserError: as of `prompt_ids`; or an end of sequence before the response's end.
        """
        for token in map(self.backend.id_to_token, self.eos_ids):
            if token in response.removesuffix(token):
                raise UserError(f'response: holds {token!r} before its end')
        if isinstance(prompt, str):
            turn = response
            before, whole = self._with_start(prompt), self._with_start(prompt + response)
        else:
            turn = self._turn(prompt, response)
            text = self._render(prompt)
            before, whole = self._plain(text), self._plain(text + turn)
        # A response is what follows the prompt's ids. Where both together are split elsewhere than
        # at their border, it is split by itself.
        follows = whole[: len(before)] == before
        ids = whole[len(before) :] if follows else self._plain(turn)
        # A template may go on after the turn's end, with a line break for example.
        end = next((n for n, i in enumerate(ids, 1) if i in self.eos_ids), None)
        return self._checked(ids[:end] + ([] if end else [self.eos_ids[0]]), 'response')

    def scored_ids(self, prompt: Prompt, response: str) -> list[int]:
        """Prompt and response as a reward model reads them: all that the tokeniser or the chat
        template writes, what follows the end of the turn included.

        Raises:
          UserError: as of `prompt_ids`.
        """
        if isinstance(prompt, str):
            return self._checked(self.backend.encode(prompt + response).ids, 'response')
        whole = self._render((*prompt, Message('assistant', response)), generate=False)
        return self._checked(self._plain(whole), 'response')

    def text(self, ids: Sequence[int]) -> str:
        """For people and labellers; without special tokens."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def texts(self, tokens_BxKxR: np.ndarray, lengths_BxK: np.ndarray) -> list[list[str]]:
        """`text` of groups of padded responses, [B][K]."""
        groups = zip(tokens_BxKxR.tolist(), lengths_BxK.tolist(), strict=True)
        return [
            [self.text(ids[:n]) for ids, n in zip(group, lengths, strict=True)]
            for group, lengths in groups
        ]

    def _with_start(self, text: str) -> list[int]:
        """With the special tokens before the text, without those after it, which would end the
        response before it begins."""
        encoding = self.backend.encode(text, add_special_tokens=True)
        end = len(encoding)
        while end and encoding.special_tokens_mask[end - 1]:
            end -= 1
        return encoding.ids[:end]

    def _plain(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def _checked(self, ids: list[int], what: str) -> list[int]:
        if (largest := max(ids)) >= self.vocab_size:
            raise UserError(
                f'{what}: {self.backend.id_to_token(largest)!r} has id {largest}, and the model '
                f'only {self.vocab_size} ids'
            )
        return ids

    def _turn(self, prompt: tuple[Message, ...], response: str) -> str:
        """What the template writes for the assistant's turn, after its beginning."""
        before = self._render(prompt)
        whole = self._render((*prompt, Message('assistant', response)), generate=False)
        if not whole.startswith(before):
            raise UserError(
                f'{self.path}: chat template: adding a response changes the text before it'
            )
        return whole[len(before) :]

    def _render(self, messages: tuple[Message, ...], generate: bool = True) -> str:
        if self.template is None:
            raise UserError(
                f'{self.path}: no chat template, which a conversation needs; '
                'put a chat_template.jinja there'
            )
        try:
            return self.template.render(
                messages=[message._asdict() for message in messages],
                add_generation_prompt=generate,
                **self.special,
            )
        except Exception as error:  # A template is a program: it may raise anything.
            reason = one_line(error)
            raise UserError(f'{self.path}: chat template: {reason}') from None


def load(path: str | Path) -> Tokenizer:
    """Reads `tokenizer.json` and its companions from a checkpoint's directory.

    A response ends with any of: the ids of `generation_config.json` (else `config.json`), the
    tokeniser's own end of sequence, and the special token with which the chat template ends the
    assistant's turn.

    Raises:
      UserError: a file that is missing, damaged or absurdly large; no end of sequence.
    """
    path = Path(path)
    file = path / 'tokenizer.json'
    if not file.exists():
        raise UserError(f'{file}: No such file or directory; other formats are not read')
    content = files.read(file, MAX_TOKENIZER)
    try:
        backend = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # The library raises nothing more precise.
        raise UserError(f'{file}: not a tokenizer.json: {" ".join(str(error).split())}') from None
    # The file may ask for both; nothing is cut or filled up in silence.
    backend.no_truncation()
    backend.no_padding()

    config, special_map, generation = (_optional(path / name) for name in COMPANIONS)
    model = _optional(path / 'config.json')
    special = _special(special_map | config, path)
    source = _template_source(config, path)
    ids = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    vocab_size = model.get('vocab_size', ids)
    if type(vocab_size) is not int or vocab_size < 1:
        raise UserError(f'{path / "config.json"}: vocab_size: {vocab_size!r:.80}')
    tokenizer = Tokenizer(
        path=path,
        backend=backend,
        template=None if source is None else _compile(source, path),
        special=special,
        eos_ids=tuple(_eos(backend, special, generation, model, path)),
        vocab_size=vocab_size,
        digest='',
    )
    eos_ids = tuple(dict.fromkeys([*tokenizer.eos_ids, *_turn_end(tokenizer)]))
    if not eos_ids:
        raise UserError(f'{path}: no end of sequence: no eos_token in tokenizer_config.json')
    parts = [backend.to_str(), source, sorted(special.items()), eos_ids, vocab_size]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return Tokenizer(**vars(tokenizer) | {'eos_ids': eos_ids, 'digest': digest})


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _special(config: dict[str, Any], path: Path) -> dict[str, str]:
    """The named tokens that are set; older files wrap each in an object."""
    found = {}
    for name in SPECIAL:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get('content')
        if value is None:
            continue
        if not isinstance(value, str):
            raise UserError(f'{path}: {name}: expected text, got {value!r:.80}')
        found[name] = value
    return found


def _eos(
    backend: tokenizers.Tokenizer,
    special: dict[str, str],
    generation: dict[str, Any],
    model: dict[str, Any],
    path: Path,
) -> list[int]:
    found = []
    if (token := special.get('eos_token')) is not None:
        if (own := backend.token_to_id(token)) is None:
            raise UserError(f'{path}: eos_token: {token!r:.80} is not in tokenizer.json')
        found.append(own)
    value = generation.get('eos_token_id', model.get('eos_token_id'))
    listed = [] if value is None else value if isinstance(value, list) else [value]
    for i in listed:
        if type(i) is not int or not 0 <= i < 2**31 or backend.id_to_token(i) is None:
            raise UserError(f'{path}: eos_token_id: {i!r:.80} is not in tokenizer.json')
    return found + listed


def _turn_end(tokenizer: Tokenizer) -> list[int]:
    """The special token that the chat template writes right after a response."""
    if tokenizer.template is None:
        return []
    try:
        turn = tokenizer._turn(*PROBE)
    except UserError:
        return []  # Said with the first conversation; plain text does not need the template.
    after = tokenizer._plain(turn.rpartition(PROBE[1])[2])
    added = tokenizer.backend.get_added_tokens_decoder()
    return after[:1] if after and after[0] in added and added[after[0]].special else []


def _template_source(config: dict[str, Any], path: Path) -> str | None:
    """`chat_template.jinja`; else the one in the tokeniser's configuration, which may be a list
    of named ones."""
    file = path / 'chat_template.jinja'
    if file.exists():
        content = files.read(file, 4 * MAX_TEMPLATE)  # A character has up to four bytes.
        try:
            source = content.decode().replace('\r\n', '\n')
        except UnicodeDecodeError as error:
            raise UserError(f'{file}: cannot be read: {error}') from None
    else:
        source = config.get('chat_template')
    if isinstance(source, list):
        named = [t for t in source if isinstance(t, dict) and t.get('name') == 'default']
        source = named[0].get('template') if named else None
    if source is not None and not isinstance(source, str):
        raise UserError(f'{path}: chat_template: expected text, got {type(source).__name__}')
    if source is not None and len(source) > MAX_TEMPLATE:
        raise UserError(f'{path}: chat_template: {len(source)} characters; at most {MAX_TEMPLATE}')
    return source


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for masks; here lengths tell it."""

    tags = {'generation'}  # noqa: RUF012

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(['name:endgeneration'], drop_needle=True)


def _compile(source: str, path: Path) -> jinja2.Template:
    """In the environment that chat templates are written for.

    But for `strftime_now`: a prompt must not depend on the day; templates that look whether it is
    there then write a date of their own.
    """

    def fail(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **kwargs: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **kwargs)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    environment.globals['raise_exception'] = fail
    environment.filters['tojson'] = to_json  # Jinja's own escapes HTML.
    try:
        return environment.from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise UserError(f'{path}: chat template: {" ".join(str(error).split())}') from None
