"""Rows of preference data: their one form here, and the forms that data sets come in.

A converter is a pure function from a data set's own row, a mapping, to `DataRow`. All raise
`UserError` naming the field; who reads the file adds the place.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from sail_jax.errors import UserError
from sail_jax.language.data import turns
from sail_jax.language.data.turns import Message, Missing, Raw
from sail_jax.scalars import FLOAT_MAX
from sail_jax.terminal import shown

MAX_CHARACTERS = 2**22
"""Of one text: a thousand pages."""


Prompt = str | tuple[Message, ...]
"""Plain text, or a conversation that awaits the assistant's turn, with its own tools before it
(`turns.TOOLS`)."""

RowType = Literal['prompt', 'completion', 'preference', 'comparison']
"""What is needed of a row: the prompt, the chosen response too, or both responses; of a comparison,
these as a reward model reads them, and by how much the chosen one is better."""


class DataRow(NamedTuple):
    """A prompt and two responses, or fewer. Those to a conversation are the assistant's turn."""

    prompt: Prompt
    """Empty text where `chosen` is a text that is learned as a whole."""
    chosen: str | None = None
    rejected: str | None = None
    margin: float = 0.0
    """By how much the chosen one's reward should be higher, where the data say it."""

    @property
    def is_text(self) -> bool:
        """Whether it is a text that is learned as a whole."""
        return self.prompt == '' and self.chosen is not None and self.rejected is None


Convert = Callable[[Raw], DataRow]

PROMPT_LIKE = (
    'prompt', 'prompts', 'question', 'instruction', 'query', 'input', 'inputs', 'problem', 'context'
)  # fmt: skip
"""Columns that other forms keep the prompt in: leaving one out would change what is asked."""

WHOLE = ('messages', 'text')
"""Columns that say all of a row that has no prompt and no responses."""

OTHERS = ('prompt', 'chosen', 'completion', 'rejected')
"""Those."""

_WRITTEN_OUT = re.compile(r"""\s*\[\s*\{\s*(['"])(role|content)\1\s*:.*\}\s*\]\s*""", re.DOTALL)
"""Messages as CSV files and data frames save them: as JSON, or as Python or NumPy print them."""


def trl(raw: Raw) -> DataRow:
    """TRL's forms: prompt-only, prompt-completion, and preference with or without a prompt of its
    own; strings or lists of messages; and of language modelling, `messages`, whose last turn is the
    response where it is the assistant's, and `text`
    (https://huggingface.co/docs/trl/dataset_formats).

    Without a prompt, it is what chosen and rejected begin with in common: whole messages, or
    characters (less a final space), which is TRL's rule. A `system` text is the conversation's
    first turn; with it a prompt of plain text is the user's. `tools` are for the chat template.
    """
    row = _trl(raw)
    tools = turns.tools(raw.get('tools'))
    if tools is None or not row.prompt:
        return row
    if isinstance(row.prompt, str):
        raise UserError('tools: for a chat template, and prompt is no conversation')
    return row._replace(prompt=(tools, *row.prompt))


def _trl(raw: Raw) -> DataRow:
    if raw.get('prompt') is None:
        for name in raw:
            if str(name).strip().lower() in PROMPT_LIKE and turns.says(raw[name]):
                raise UserError(f'{name}: call this column prompt')
    for name in ('prompt', 'chosen', 'completion', 'rejected', 'messages'):
        if isinstance(raw.get(name), str) and _WRITTEN_OUT.fullmatch(raw[name]):
            raise UserError(f'{name}: messages written out as text; expected a list of messages')
    raw = _with_system(raw)
    if is_whole(raw):
        return _whole(raw)
    if (empty := [name for name in WHOLE if name in raw]) and not _says_any(raw, *OTHERS):
        raise UserError(f'{empty[0]}: empty')
    if raw.get('completion') is not None and raw.get('label') is not None:
        raise UserError('label: unpaired preferences are not supported')
    prompt = raw.get('prompt')
    answer = 'completion' if raw.get('chosen') is None else 'chosen'
    if answer == 'chosen' and raw.get('completion') is not None:
        raise UserError('completion: beside chosen, which says the response; leave one of them out')
    chosen = raw.get(answer)
    if chosen is None:
        return DataRow(
            turns.messages(prompt, 'prompt') if turns.is_list(prompt) else turns.text(raw, 'prompt')
        )
    rejected = raw.get('rejected')
    if not turns.is_list(chosen):
        if turns.is_list(prompt):
            raise UserError(f'{answer}: expected a list of messages, as prompt is one')
        chosen = turns.text(raw, answer)
        rejected = None if rejected is None else turns.text(raw, 'rejected')
        if prompt is None and rejected is not None:
            return _split_text(chosen, rejected)
        if prompt == '':
            raise UserError('prompt: empty')
        return DataRow(turns.text(raw, 'prompt'), chosen=chosen, rejected=rejected)
    dialogues = [turns.messages(chosen, answer)]
    if rejected is not None:
        dialogues.append(turns.messages(rejected, 'rejected'))
    if prompt is None:
        return _conversation(*dialogues)
    if isinstance(prompt, str) and len(dialogues[0]) > 1:
        return _repeated(prompt, _conversation(*dialogues))
    if isinstance(prompt, str):
        prompt = [{'role': 'user', 'content': prompt}]
    before = turns.messages(prompt, 'prompt')
    return _conversation(*(before + answers for answers in dialogues), prompt=before)


def is_whole(raw: Raw) -> bool:
    """Whether a row is of `WHOLE` alone."""
    return _says_any(raw, *WHOLE) and not _says_any(raw, *OTHERS)


def _says_any(raw: Raw, *names: str) -> bool:
    return any(turns.says(raw.get(name)) for name in names)


def _whole(raw: Raw) -> DataRow:
    """Of a conversation, its last turn answers those before it; a text answers nothing."""
    if not turns.says(raw.get('messages')):
        return DataRow('', chosen=turns.text(raw, 'text'))
    if turns.says(raw.get('text')):
        raise UserError('text: beside messages, which says the same; leave one of them out')
    messages = turns.messages(raw['messages'], 'messages')
    if messages[-1].role != 'assistant':
        return DataRow(messages)
    return DataRow(messages[:-1], chosen=messages[-1].content)


def ultrafeedback(raw: Raw) -> DataRow:
    """UltraFeedback, binarised (HuggingFaceH4/ultrafeedback_binarized): whole conversations; its
    `prompt` column repeats the first turn."""
    raw = _with_system(raw)
    row = _conversation(
        turns.messages(raw.get('chosen'), 'chosen'), turns.messages(raw.get('rejected'), 'rejected')
    )
    return _repeated(raw['prompt'], row) if isinstance(raw.get('prompt'), str) else row


def hh_rlhf(raw: Raw) -> DataRow:
    """HH-RLHF (Anthropic/hh-rlhf): transcripts with turns `\\n\\nHuman:` and `\\n\\nAssistant:`."""
    return _conversation(turns.transcript(raw, 'chosen'), turns.transcript(raw, 'rejected'))


def pku_safe_rlhf(raw: Raw, label: Literal['better', 'safer'] = 'better') -> DataRow:
    """PKU-SafeRLHF (PKU-Alignment): a question and two responses, compared twice.

    Args:
      label: the comparison that counts: the more helpful response, or the safer.
    """
    key = f'{label}_response_id'
    best = raw.get(key)
    if type(best) is not int or best not in (0, 1):
        raise UserError(f'{key}: expected 0 or 1, got {best!r:.80}')
    responses = turns.text(raw, 'response_0'), turns.text(raw, 'response_1')
    prompt = (Message('user', turns.text(raw, 'prompt')),)
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
        frozenset(('prompt', 'chosen', 'rejected', 'completion', 'system', 'tools', *WHOLE)),
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
      UserError: it is no finite number, or none of float32.
    """
    value = raw.get(MARGIN)
    if value is None:
        return 0.0
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and abs(value) <= FLOAT_MAX):
        raise UserError(f'{MARGIN}: expected a number, got {value!r:.80}')
    return float(value)


def unread(raw: Raw, columns: frozenset[str]) -> set[str]:
    """Names of what a row says and its converter does not read: columns, and keys of messages as
    `chosen[].weight`. What is empty says nothing.

    Args:
      columns: of `Format`.
    """
    columns = columns if is_whole(raw) else columns - {*WHOLE}
    names = {str(name) for name, value in raw.items() if name not in columns and turns.says(value)}
    for name in columns & raw.keys() - {'tools'}:
        for message in raw[name] if turns.is_list(raw[name]) else ():
            if isinstance(message, Mapping):
                keys = message.keys() - {'role', 'content'}
                names |= {f'{name}[].{key}' for key in keys if turns.says(message[key])}
    return names


def check(row: DataRow, row_type: RowType) -> DataRow:
    """The row with what is needed of it and no more.

    Raises:
      UserError: an empty prompt or response, no response where one is needed, twice the same
        response, text that is not Unicode or absurdly long, a conversation that does not await
        the assistant.
    """
    if row.is_text and row_type != 'completion':
        raise UserError(
            'text: no prompt and no response; call it prompt, or learn it by workload: sft'
        )
    if isinstance(row.prompt, str):
        _check_text(row.prompt, 'prompt', not row.is_text)
    else:
        if not row.prompt:
            raise UserError('prompt: empty')
        # Its own tools, which stand before them, are none of its messages.
        for i, message in enumerate(row.prompt, -(row.prompt[0].role == turns.TOOLS)):
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


def _with_system(raw: Raw) -> Raw:
    """The row with its `system` text as the first turn of its conversations."""
    if not turns.says(raw.get('system')):
        return raw
    row = dict(raw)
    answers = [
        name
        for name in ('chosen', 'completion', 'rejected', 'messages')
        if raw.get(name) is not None
    ]
    whole = any(turns.is_list(raw[name]) and len(raw[name]) > 1 for name in answers)
    if isinstance(raw.get('prompt'), str) and not whole:
        row['prompt'] = [{'role': 'user', 'content': raw['prompt']}]
        for name in answers:
            if isinstance(raw[name], str):
                row[name] = [{'role': 'assistant', 'content': raw[name]}]
    for name in ['prompt'] if turns.is_list(row.get('prompt')) else answers:
        row[name] = _begun_by(turns.text(raw, 'system'), row[name], name)
    return row


def _begun_by(system: str, messages: Any, name: str) -> list[Any]:
    if not turns.is_list(messages):
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


def _conversation(
    *dialogues: tuple[Message, ...], prompt: tuple[Message, ...] | None = None
) -> DataRow:
    """A row from conversations of which each is a prompt and the assistant's turn."""
    names = ('chosen', 'rejected')
    if prompt is None:
        prompt = dialogues[0][:-1]
    for name, messages in zip(names, dialogues, strict=False):
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
    chosen, *others = (messages[-1].content for messages in dialogues)
    return DataRow(prompt, chosen=chosen, rejected=others[0] if others else None)


def _split_text(chosen: str, rejected: str) -> DataRow:
    pairs = enumerate(zip(chosen, rejected, strict=False))
    end = next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    if end and chosen[end - 1] == ' ':
        end -= 1
    return DataRow(chosen[:end], chosen=chosen[end:], rejected=rejected[end:])
