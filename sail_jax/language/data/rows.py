"""Rows of preference data: their one form here, and the forms that data sets come in.

A converter is a pure function from a data set's own row, a mapping, to `DataRow`. All raise
`UserError` naming the field; who reads the file adds the place.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeGuard

from sail_jax.errors import UserError
from sail_jax.terminal import shown

MAX_CHARACTERS = 2**22
"""Of one text: a thousand pages."""


class Message(NamedTuple):
    """A turn of a conversation."""

    role: str
    content: str


Prompt = str | tuple[Message, ...]
"""Plain text, or a conversation that awaits the assistant's turn."""

RowType = Literal['prompt', 'completion', 'preference', 'comparison']
"""What is needed of a row: the prompt, the chosen response too, or both responses; of a comparison,
these as a reward model reads them, and by how much the chosen one is better."""


class DataRow(NamedTuple):
    """A prompt and two responses, or fewer. Those to a conversation are the assistant's turn."""

    prompt: Prompt
    chosen: str | None = None
    rejected: str | None = None
    margin: float = 0.0
    """By how much the chosen one's reward should be higher, where the data say it."""


Raw = Mapping[str, Any]
Convert = Callable[[Raw], DataRow]

PROMPT_LIKE = (
    'prompt', 'prompts', 'question', 'instruction', 'query', 'input', 'inputs', 'problem', 'context'
)  # fmt: skip
"""Columns that other forms keep the prompt in: leaving one out would change what is asked."""

_WRITTEN_OUT = re.compile(r"""\s*\[\s*\{\s*(['"])(role|content)\1\s*:.*\}\s*\]\s*""", re.DOTALL)
"""Messages as CSV files and data frames save them: as JSON, or as Python or NumPy print them."""


class Missing(UserError):
    """A column that is needed and not there."""


def trl(raw: Raw) -> DataRow:
    """TRL's forms: prompt-only, prompt-completion, and preference with or without a prompt of its
    own; strings or lists of messages (https://huggingface.co/docs/trl/dataset_formats).

    Without a prompt, it is what chosen and rejected begin with in common: whole messages, or
    characters (less a final space), which is TRL's rule. A `system` text is the conversation's
    first turn; with it a prompt of plain text is the user's.
    """
    if raw.get('prompt') is None:
        for name in raw:
            if str(name).strip().lower() in PROMPT_LIKE and _says(raw[name]):
                raise UserError(f'{name}: call this column prompt')
    for name in ('prompt', 'chosen', 'completion', 'rejected'):
        if isinstance(raw.get(name), str) and _WRITTEN_OUT.fullmatch(raw[name]):
            raise UserError(f'{name}: messages written out as text; expected a list of messages')
    raw = _with_system(raw)
    if raw.get('tools'):
        raise UserError('tools: tool calls are not supported')
    if raw.get('completion') is not None and raw.get('label') is not None:
        raise UserError('label: unpaired preferences are not supported')
    prompt = raw.get('prompt')
    answer = 'completion' if raw.get('chosen') is None else 'chosen'
    if answer == 'chosen' and raw.get('completion') is not None:
        raise UserError('completion: beside chosen, which says the response; leave one of them out')
    chosen = raw.get(answer)
    if chosen is None:
        return DataRow(_messages(prompt, 'prompt') if _is_list(prompt) else _text(raw, 'prompt'))
    rejected = raw.get('rejected')
    if not _is_list(chosen):
        if _is_list(prompt):
            raise UserError(f'{answer}: expected a list of messages, as prompt is one')
        chosen = _text(raw, answer)
        rejected = None if rejected is None else _text(raw, 'rejected')
        if prompt is None and rejected is not None:
            return _split_text(chosen, rejected)
        return DataRow(_text(raw, 'prompt'), chosen=chosen, rejected=rejected)
    turns = [_messages(chosen, answer)]
    if rejected is not None:
        turns.append(_messages(rejected, 'rejected'))
    if prompt is None:
        return _conversation(*turns)
    if isinstance(prompt, str) and len(turns[0]) > 1:
        return _repeated(prompt, _conversation(*turns))
    if isinstance(prompt, str):
        prompt = [{'role': 'user', 'content': prompt}]
    before = _messages(prompt, 'prompt')
    return _conversation(*(before + answers for answers in turns), prompt=before)


def ultrafeedback(raw: Raw) -> DataRow:
    """UltraFeedback, binarised (HuggingFaceH4/ultrafeedback_binarized): whole conversations; its
    `prompt` column repeats the first turn."""
    raw = _with_system(raw)
    row = _conversation(
        _messages(raw.get('chosen'), 'chosen'), _messages(raw.get('rejected'), 'rejected')
    )
    return _repeated(raw['prompt'], row) if isinstance(raw.get('prompt'), str) else row


def hh_rlhf(raw: Raw) -> DataRow:
    """HH-RLHF (Anthropic/hh-rlhf): transcripts with turns `\\n\\nHuman:` and `\\n\\nAssistant:`."""
    return _conversation(_transcript(raw, 'chosen'), _transcript(raw, 'rejected'))


def pku_safe_rlhf(raw: Raw, label: Literal['better', 'safer'] = 'better') -> DataRow:
    """PKU-SafeRLHF (PKU-Alignment): a question and two responses, compared twice.

    Args:
      label: the comparison that counts: the more helpful response, or the safer.
    """
    key = f'{label}_response_id'
    best = raw.get(key)
    if type(best) is not int or best not in (0, 1):
        raise UserError(f'{key}: expected 0 or 1, got {best!r:.80}')
    responses = _text(raw, 'response_0'), _text(raw, 'response_1')
    prompt = (Message('user', _text(raw, 'prompt')),)
    return DataRow(prompt, chosen=responses[best], rejected=responses[1 - best])


class Format(NamedTuple):
    """A form that data sets come in."""

    convert: Convert
    columns: frozenset[str]
    """Those that it reads."""


_PKU = frozenset(('prompt', 'response_0', 'response_1', 'better_response_id', 'safer_response_id'))

FORMATS = {
    'trl': Format(
        trl,
        frozenset(('prompt', 'chosen', 'rejected', 'completion', 'system', 'tools')),
    ),
    'ultrafeedback': Format(ultrafeedback, frozenset(('prompt', 'chosen', 'rejected', 'system'))),
    'hh-rlhf': Format(hh_rlhf, frozenset(('chosen', 'rejected'))),
    'pku-safe-rlhf': Format(pku_safe_rlhf, _PKU),
    'pku-safe-rlhf-safer': Format(functools.partial(pku_safe_rlhf, label='safer'), _PKU),
}
"""By the names of `data.format`."""


MARGIN = 'margin'
"""The column of `DataRow.margin`, as in TRL's data for reward models."""


def margin(raw: Raw) -> float:
    """What a row's `margin` says; 0 where it says nothing.

    Raises:
      UserError: it is no finite number.
    """
    value = raw.get(MARGIN)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f'{MARGIN}: expected a number, got {value!r:.80}')
    return float(value)


def unread(raw: Raw, columns: frozenset[str]) -> set[str]:
    """Names of what a row says and its converter does not read: columns, and keys of messages as
    `chosen[].weight`. What is empty says nothing.

    Args:
      columns: of `Format`.
    """
    names = {str(name) for name, value in raw.items() if name not in columns and _says(value)}
    for name in columns & raw.keys():
        for message in raw[name] if _is_list(raw[name]) else ():
            if isinstance(message, Mapping):
                keys = message.keys() - {'role', 'content'}
                names |= {f'{name}[].{key}' for key in keys if _says(message[key])}
    return names


def check(row: DataRow, row_type: RowType) -> DataRow:
    """The row with what is needed of it and no more.

    Raises:
      UserError: an empty prompt or response, no response where one is needed, twice the same
        response, text that is not Unicode or absurdly long, a conversation that does not await
        the assistant.
    """
    if isinstance(row.prompt, str):
        _check_text(row.prompt, 'prompt')
    else:
        if not row.prompt:
            raise UserError('prompt: empty')
        for i, message in enumerate(row.prompt):
            _check_text(message.role, f'prompt[{i}].role')
            # An empty system turn is a way to say that there is none.
            _check_text(message.content, f'prompt[{i}].content', message.role != 'system')
        if row.prompt[-1].role == 'assistant':
            raise UserError("prompt: its last message is the assistant's; expected another role")
    if row_type == 'prompt':
        return DataRow(row.prompt)
    names = ('chosen',) if row_type == 'completion' else ('chosen', 'rejected')
    for name in names:
        if (text := getattr(row, name)) is None:
            raise Missing(f'{name}: missing')
        _check_text(text, name)
    if row_type == 'completion':
        return DataRow(row.prompt, row.chosen)
    if row.chosen == row.rejected:
        raise UserError('chosen and rejected are the same')
    return row


def _check_text(text: str, name: str, filled: bool = True) -> None:
    if len(text) > MAX_CHARACTERS:
        raise UserError(f'{name}: {len(text)} characters; at most {MAX_CHARACTERS}')
    if filled and not text.strip():
        raise UserError(f'{name}: empty')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # JSON can escape halves of surrogate pairs, which no UTF-8 has.
        raise UserError(f'{name}: not valid UTF-8 at character {error.start}') from None


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _says(value: Any) -> bool:
    """Whether a value is more than an empty place of a table; False and 0 are values."""
    return value is not None and value != '' and not (_is_list(value) and len(value) == 0)


def _with_system(raw: Raw) -> Raw:
    """The row with its `system` text as the first turn of its conversations."""
    if not _says(raw.get('system')):
        return raw
    row = dict(raw)
    answers = [name for name in ('chosen', 'completion', 'rejected') if raw.get(name) is not None]
    whole = any(_is_list(raw[name]) and len(raw[name]) > 1 for name in answers)
    if isinstance(raw.get('prompt'), str) and not whole:
        row['prompt'] = [{'role': 'user', 'content': raw['prompt']}]
        for name in answers:
            if isinstance(raw[name], str):
                row[name] = [{'role': 'assistant', 'content': raw[name]}]
    for name in ['prompt'] if _is_list(row.get('prompt')) else answers:
        row[name] = _begun_by(_text(raw, 'system'), row[name], name)
    return row


def _begun_by(system: str, messages: Any, name: str) -> list[Any]:
    if not _is_list(messages):
        raise UserError(f'system: {name} is no conversation that it could begin; give a prompt')
    first = messages[0] if messages else None
    if not isinstance(first, Mapping) or first.get('role') != 'system':
        return [{'role': 'system', 'content': system}, *messages]
    if first.get('content') != system:
        raise UserError(f'system: another text than that of {name}[0]')
    return list(messages)


def _repeated(prompt: str, row: DataRow) -> DataRow:
    """The row, where `prompt` says again what its conversation says.

    Raises:
      UserError: it says something else.
    """
    if prompt.strip() and prompt.strip() not in {
        message.content.strip()
        for message in row.prompt
        if isinstance(message, Message) and message.role != 'assistant'
    }:
        raise UserError('prompt: not what is asked in the conversation of chosen and rejected')
    return row


def _text(raw: Raw, name: str) -> str:
    value = raw.get(name)
    if value is None:
        raise Missing(f'{name}: missing')
    if not isinstance(value, str):
        raise UserError(f'{name}: expected text, got {type(value).__name__}')
    return value


def _messages(value: Any, name: str) -> tuple[Message, ...]:
    if value is None:
        raise Missing(f'{name}: missing')
    if not _is_list(value):
        raise UserError(f'{name}: expected a list of messages, got {type(value).__name__}')
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise UserError(f'{name}[{i}]: expected a message, got {type(message).__name__}')
        if message.get('tool_calls'):
            raise UserError(f'{name}[{i}]: tool calls are not supported')
        if 'role' not in message and 'from' in message:
            raise UserError(f'{name}[{i}]: from and value; call them role and content')
        try:
            messages.append(Message(_text(message, 'role'), _content(message)))
        except UserError as error:
            raise UserError(f'{name}[{i}].{error}') from None
    return tuple(messages)


def _content(message: Raw) -> str:
    """A turn's text; where it comes in parts, as for models that see, all of them are text."""
    parts = message.get('content')
    if not _is_list(parts):
        return _text(message, 'content')
    texts = []
    for i, part in enumerate(parts):
        kind = part.get('type') if isinstance(part, Mapping) else type(part).__name__
        if kind != 'text':
            raise UserError(f'content[{i}]: a part of type {kind!r:.40}; only text is read')
        try:
            texts.append(_text(part, 'text'))
        except UserError as error:
            raise UserError(f'content[{i}].{error}') from None
    return ''.join(texts)


def _transcript(raw: Raw, name: str) -> tuple[Message, ...]:
    parts = re.split(r'\n\n(Human|Assistant):', _text(raw, name))
    if len(parts) < 3 or parts[0].strip():
        raise UserError(f'{name}: expected a transcript that begins with "\\n\\nHuman:"')
    roles = {'Human': 'user', 'Assistant': 'assistant'}
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return tuple(Message(roles[speaker], text.strip()) for speaker, text in turns)


def _conversation(
    *turns: tuple[Message, ...], prompt: tuple[Message, ...] | None = None
) -> DataRow:
    """A row from conversations of which each is a prompt and the assistant's turn."""
    names = ('chosen', 'rejected')
    if prompt is None:
        prompt = turns[0][:-1]
    for name, messages in zip(names, turns, strict=False):
        if len(messages) <= len(prompt) and messages == prompt[: len(messages)]:
            raise UserError(f'{name}: empty')
        if messages[: len(prompt)] != prompt:
            raise UserError('chosen and rejected answer different prompts')
        answer = messages[len(prompt) :]
        if len(answer) != 1 or answer[0].role != 'assistant':
            roles = ', '.join(shown(message.role, 20) for message in answer[:4])
            again = ' (the prompt again?)' if answer[: len(prompt)] == prompt else ''
            raise UserError(
                f'{name}: expected one message of the assistant after the prompt, '
                f'got {roles}{again}'
            )
    return DataRow(prompt, *(messages[-1].content for messages in turns))


def _split_text(chosen: str, rejected: str) -> DataRow:
    pairs = enumerate(zip(chosen, rejected, strict=False))
    end = next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    if end and chosen[end - 1] == ' ':
        end -= 1
    return DataRow(chosen[:end], chosen=chosen[end:], rejected=rejected[end:])
