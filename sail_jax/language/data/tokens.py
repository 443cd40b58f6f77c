"""Prompts and responses as token ids, by a checkpoint's own tokeniser and chat template.

Ids are made once, here; text made from ids is for people and labellers and is never encoded again.
"""

import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sail_jax import files, hub
from sail_jax.errors import UserError
from sail_jax.language.data import sandbox, special, template, turns
from sail_jax.language.data.rows import Message, Prompt
from sail_jax.language.data.sandbox import Definition
from sail_jax.language.data.variables import DAY

MAX_TOKENIZER = 2**28
"""Bytes of a tokenizer.json."""
COMPANIONS = (
    'tokenizer_config.json',
    'special_tokens_map.json',
    'added_tokens.json',
    'generation_config.json',
    'config.json',
)
FLAGS = (
    'split_special_tokens',
    'clean_up_tokenization_spaces',
    'clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output',
)
PROBE = (Message('user', 'a'),), 'probe0'
"""A conversation that shows how the template ends a response."""


class _Exceeded(UserError):
    """A template that takes too much."""


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids; see `load`."""

    path: Path
    definition: Definition
    """Of the tokeniser and the template, which run in the process of `sandbox`."""
    no_template: str | None
    """Why there is no chat template; None, if there is one."""
    takes_tools: bool
    """Whether the chat template reads tools."""
    special: Mapping[str, str]
    """What templates know as `bos_token` and so on."""
    eos_ids: tuple[int, ...]
    """The ids that end a response. The first is put after a response that has none."""
    ends: tuple[str, ...]
    """Their texts."""
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
        if isinstance(prompt, str):
            [ids] = self._encode([prompt], 'start')
        else:
            [ids] = self._encode(self._render([(prompt, True)]))
        if not ids:
            raise UserError('prompt: no tokens')
        return self._checked(ids, 'prompt')

    def text_ids(self, text: str) -> list[int]:
        """A text that is learned as a whole, with what the tokeniser puts before it, up to and
        including an end of sequence.

        Raises:
          UserError: an end of sequence before the text's end.
        """
        self._check_ends(text, 'text')
        [ids] = self._encode([text], 'start')
        end = [] if ids and ids[-1] in self.eos_ids else [self.eos_ids[0]]
        return self._checked(ids + end, 'text')

    def response_ids(self, prompt: Prompt, response: str) -> list[int]:
        """The response to a prompt, up to and including the end of sequence.

        Raises:
          UserError: as of `prompt_ids`; or an end of sequence before the response's end.
        """
        self._check_ends(response, 'response')
        if isinstance(prompt, str):
            turn = response
            before, whole = self._encode([prompt, prompt + response], 'start')
        else:
            text, turn = self._turn(prompt, response)
            before, whole = self._encode([text, text + turn])
        # A response is what follows the prompt's ids. Where both together are split elsewhere than
        # at their border, it is split by itself.
        follows = whole[: len(before)] == before
        ids = whole[len(before) :] if follows else self._encode([turn])[0]
        # A template may go on after the turn's end, with a line break for example.
        end = next((n for n, i in enumerate(ids, 1) if i in self.eos_ids), None)
        return self._checked(ids[:end] + ([] if end else [self.eos_ids[0]]), 'response')

    def _check_ends(self, text: str, what: str) -> None:
        for token in self.ends:
            if token in text.removesuffix(token):
                raise UserError(f'{what}: holds {token!r} before its end')

    def without_end(self, response: str) -> str:
        """A response less the end of sequence that it may have written out, as `text` gives one."""
        end = next((token for token in self.ends if response.endswith(token)), '')
        return response.removesuffix(end)

    def scored_ids(self, prompt: Prompt, response: str) -> list[int]:
        """Prompt and response as a reward model reads them: all that the tokeniser or the chat
        template writes, what follows the end of the turn included.

        Raises:
          UserError: as of `prompt_ids`.
        """
        if isinstance(prompt, str):
            [ids] = self._encode([prompt + response], 'whole')
        else:
            whole = (*prompt, Message('assistant', response))
            [ids] = self._encode(self._render([(whole, False)]))
        if not ids:
            raise UserError('response: no tokens')
        return self._checked(ids, 'response')

    def pad_id(self) -> int:
        """The id to pad with: its own, or where it has none, the end of sequence."""
        token = self.special.get('pad_token')
        [own] = [None] if token is None else self._ask('ids_of', tokens=[token])
        return self.eos_ids[0] if own is None or own >= self.vocab_size else own

    def text(self, ids: Sequence[int]) -> str:
        """For people and labellers; without special tokens and ends of sequence.

        Raises:
          UserError: the tokeniser refuses.
        """
        return self._decode([list(ids)])[0]

    def texts(self, tokens_BxKxR: np.ndarray, lengths_BxK: np.ndarray) -> list[list[str]]:
        """`text` of groups of padded responses, [B][K]."""
        rows, lengths = tokens_BxKxR.reshape(-1, tokens_BxKxR.shape[-1]), lengths_BxK.ravel()
        pairs = zip(rows.tolist(), lengths.tolist(), strict=True)
        texts = iter(self._decode([ids[:n] for ids, n in pairs]))
        return [[next(texts) for _ in group] for group in lengths_BxK]

    def _decode(self, groups: list[list[int]]) -> list[str]:
        kept = [[i for i in ids if i not in self.eos_ids] for ids in groups]
        return self._ask('decode', ids=kept)

    def _encode(self, texts: list[str], special: str = 'plain') -> list[list[int]]:
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:  # Half of a surrogate pair.
                raise UserError(f'not valid UTF-8 at character {error.start}') from None
        return self._ask('encode', texts=texts, special=special)

    def _ask(self, what: str, **arguments: Any) -> Any:
        try:
            return sandbox.ask(self.definition, what, **arguments)
        except sandbox.Failed as error:
            raise UserError(f'{self.path / "tokenizer.json"}: {error}') from None

    def _checked(self, ids: list[int], what: str) -> list[int]:
        if (largest := max(ids)) >= self.vocab_size:
            [token] = self._ask('tokens_of', ids=[largest])
            raise UserError(
                f'{what}: {token!r} has id {largest}, and the model only {self.vocab_size} ids'
            )
        return ids

    def _turn(self, prompt: tuple[Message, ...], response: str) -> tuple[str, str]:
        """A conversation up to the beginning of the assistant's turn, and the turn."""
        turn = (Message('assistant', response),)
        before, whole = self._render([(prompt, True), (prompt + turn, False)])
        if whole.startswith(before):
            return before, whole[len(before) :]
        turn = template.after_thoughts(before, whole, response)
        if turn is None:
            raise UserError(
                f'{self.path}: chat template: adding a response changes the text before it'
            )
        return before, turn

    def _render(self, calls: list[tuple[tuple[Message, ...], bool]]) -> list[str]:
        """Conversations, each with the beginning of another turn of the assistant or without."""
        if self.no_template is not None:
            raise UserError(f'{self.path}: {self.no_template}')
        conversations = []
        for messages, generate in calls:
            tools, messages = turns.told(messages)
            if tools and not self.takes_tools:
                raise UserError(f'{self.path}: chat template: takes no tools')
            # What a message does not have, templates must not find.
            listed = [
                {k: v for k, v in message._asdict().items() if v is not None}
                for message in messages
            ]
            one = {'messages': listed, 'add_generation_prompt': generate}
            conversations.append(one | ({'tools': tools} if tools else {}))
        try:
            texts = sandbox.ask(self.definition, 'render', calls=conversations)
        except sandbox.Failed as error:
            kind = _Exceeded if isinstance(error, sandbox.Exceeded) else UserError
            raise kind(f'{self.path}: chat template: {error}') from None
        for (messages, _), text in zip(calls, texts, strict=True):
            template.say_if_silent(text, [message.content for message in messages], self.path)
        return texts


def load(
    path: str | Path,
    *,
    variables: Mapping[str, Any] | None = None,
    date: datetime.date = DAY,
) -> Tokenizer:
    """Reads `tokenizer.json` and its companions from a checkpoint's directory.

    A response ends with any of: the ids of `generation_config.json` (else `config.json`), the
    tokeniser's own end of sequence, and the added token with which the chat template ends the
    assistant's turn.

    Args:
      path: of the directory, or of a model on the hub.
      variables: for the chat template beside the conversation, `enable_thinking` for example.
      date: what `strftime_now` tells the chat template.

    Raises:
      UserError: a file that is missing, damaged or absurdly large; a tokeniser that cannot be used;
        a variable that the template does not have; no end of sequence.
    """
    path = hub.local(path, hub.CONFIG)
    written = _read_files(path)
    padding = _padding(written.tokenizer)
    declared = special.read(written.config, written.special_map, written.added, padding, path)
    source, no_template = template.read(written.config, path)
    flags = {name: _flag(written.config, name, path) for name in FLAGS}
    named = {name: state['content'] for name, state in declared.named.items()}
    request = {
        'tokenizer': written.tokenizer,
        'declared': declared._asdict(),
        'split_special': flags['split_special_tokens'],
        'clean_up': flags[FLAGS[1]],
        'clean_up_bpe': flags[FLAGS[1]] and flags[FLAGS[2]],
        'template': source,
        'variables': named | template.with_lists(variables or {}),
        'date': str(date),
    }
    definition, defined = _define(path, request)
    template.check_variables(variables or {}, defined['names'], path)
    vocab_size = written.model.get('vocab_size', defined['ids'])
    if type(vocab_size) is not int or vocab_size < 1:
        raise UserError(f'{path / "config.json"}: vocab_size: {vocab_size!r:.80}')
    tokenizer = _with_ends(
        written,
        path=path,
        definition=definition,
        no_template=no_template,
        takes_tools=turns.TOOLS in (defined['names'] or ()),
        special=named,
        vocab_size=vocab_size,
    )
    # All that ids depend on.
    day = request['date'] if 'strftime_now' in (source or '') else None
    texts = sorted(request['variables'].items())
    parts = [defined['digest'], source, texts, flags, tokenizer.eos_ids, vocab_size, day]
    return replace(tokenizer, digest=hashlib.sha256(json.dumps(parts).encode()).hexdigest())


class _Files(NamedTuple):
    """What a checkpoint's directory has of its tokeniser: tokenizer.json, and `COMPANIONS`."""

    tokenizer: str
    config: dict[str, Any]
    special_map: dict[str, Any]
    added: dict[str, Any]
    generation: dict[str, Any]
    model: dict[str, Any]


def _read_files(path: Path) -> _Files:
    file = path / 'tokenizer.json'
    if not files.exists(file):
        raise UserError(f'{file}: No such file or directory; other formats are not read')
    try:
        tokenizer = files.read(file, MAX_TOKENIZER).decode()
    except UnicodeDecodeError as error:
        raise UserError(f'{file}: not a tokenizer.json: {error}') from None
    return _Files(tokenizer, *(_optional(path / name) for name in COMPANIONS))


def _padding(tokenizer: str) -> str | None:
    """What a tokenizer.json pads with; None of one that is broken, as its own library will say."""
    if not re.search(r'"padding"\s*:\s*{', tokenizer):  # It may be long.
        return None
    try:
        token = json.loads(tokenizer)['padding']['pad_token']
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return token if isinstance(token, str) else None


def _define(path: Path, request: dict[str, Any]) -> tuple[Definition, dict[str, Any]]:
    """Loads tokeniser and template in the process of `sandbox`, and says what they are."""
    key = hashlib.sha256(json.dumps(request).encode()).hexdigest()
    try:
        return sandbox.load(key, **request)
    except sandbox.Failed as error:
        where = path if str(error).startswith('chat template: ') else path / 'tokenizer.json'
        raise UserError(f'{where}: {error}') from None


def _optional(path: Path) -> dict[str, Any]:
    return files.read_json(path) if path.exists() else {}


def _flag(config: dict[str, Any], name: str, path: Path) -> bool:
    value = config.get(name) or False
    if type(value) is not bool:
        where = path / 'tokenizer_config.json'
        raise UserError(f'{where}: {name}: expected true or false, got {value!r:.80}')
    return value


def _with_ends(written: _Files, **fields: Any) -> Tokenizer:
    """The tokeniser that can do all but say where a response ends, which it is asked here."""
    tokenizer = Tokenizer(eos_ids=(), ends=(), digest='', **fields)
    listed = [*_eos(tokenizer, written.generation, written.model), *_turn_end(tokenizer)]
    eos_ids = tuple(dict.fromkeys(listed))
    if not eos_ids:
        raise UserError(
            f'{tokenizer.path}: no end of sequence: no eos_token in tokenizer_config.json'
        )
    ends = tuple(tokenizer._ask('tokens_of', ids=eos_ids))
    return replace(tokenizer, eos_ids=eos_ids, ends=ends)


def _eos(tokenizer: Tokenizer, generation: dict[str, Any], model: dict[str, Any]) -> list[int]:
    """The ids that end a response by the tokeniser's files, and by the model's."""
    declared, path, vocab_size = [], tokenizer.path, tokenizer.vocab_size
    if (token := tokenizer.special.get('eos_token')) is not None:
        declared = tokenizer._ask('ids_of', tokens=[token])
        if declared[0] is None:
            raise UserError(f'{path}: eos_token: {token!r:.80} is not in tokenizer.json')
        if declared[0] >= vocab_size:
            raise UserError(
                f'{path}: eos_token: {token!r:.80} has id {declared[0]}, and the model only '
                f'{vocab_size} ids'
            )
    value = generation.get('eos_token_id', model.get('eos_token_id'))
    listed = [] if value is None else value if isinstance(value, list) else [value]
    for i in listed:
        if (
            type(i) is not int
            or not 0 <= i < min(2**31, vocab_size)
            or tokenizer._ask('tokens_of', ids=[i]) == [None]
        ):
            raise UserError(f'{path}: eos_token_id: {i!r:.80} is not in tokenizer.json')
    return declared + listed


def _turn_end(tokenizer: Tokenizer) -> list[int]:
    """The added token that the chat template writes right after a response."""
    if tokenizer.no_template is not None:
        return []
    try:
        _, turn = tokenizer._turn(*PROBE)
    except _Exceeded:
        raise  # It would again, with each conversation.
    except UserError:
        return []  # Said with the first conversation; plain text does not need the template.
    [after] = tokenizer._encode([turn.rpartition(PROBE[1])[2]])
    # Some tokenisers have runs of blanks as added tokens.
    added = {int(i): token.strip() for i, token in tokenizer._ask('added_of').items()}
    return after[:1] if after and added.get(after[0]) and after[0] < tokenizer.vocab_size else []
