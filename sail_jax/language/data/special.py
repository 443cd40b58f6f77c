"""The tokens that files beside tokenizer.json declare, read as transformers 5 reads them."""

from pathlib import Path
from typing import Any, NamedTuple

from sail_jax.errors import UserError

NAMES = (
    'bos_token',
    'eos_token',
    'unk_token',
    'sep_token',
    'pad_token',
    'cls_token',
    'mask_token',
)
FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')

TokenFields = dict[str, Any]
"""The attributes that a `tokenizers.AddedToken` is made with."""


class Declared(NamedTuple):
    """What is to be added to a tokeniser."""

    named: dict[str, TokenFields]
    """By what templates call them: `bos_token` and so on."""
    extra: list[TokenFields]
    """Special tokens without a name."""
    added: list[tuple[int, TokenFields]]
    """With their ids."""
    legacy: bool
    """No `added_tokens_decoder`: the tokeniser's own added tokens stand in for it."""


def read(
    config: dict[str, Any],
    special_map: dict[str, Any],
    added: dict[str, Any],
    padding: str | None,
    path: Path,
) -> Declared:
    """From `tokenizer_config.json`, and where that has no `added_tokens_decoder` from
    `special_tokens_map.json`, which then comes first, and `added_tokens.json`.

    Args:
      padding: what tokenizer.json pads with, the `pad_token` of files that do not speak of one.

    Raises:
      UserError: what is not a token, or not an id.
    """
    config, decoder = dict(config), config.get('added_tokens_decoder')
    where = path / 'tokenizer_config.json'
    if not config.get('extra_special_tokens') and 'additional_special_tokens' in config:
        config['extra_special_tokens'] = config.pop('additional_special_tokens')
    named_later = {k: config.pop(k) for k in list(config) if _is_own_name(k, config[k], str)}
    if isinstance(config.get('extra_special_tokens'), dict):
        named_later |= config.pop('extra_special_tokens')
    if decoder is None:
        special_map = dict(special_map)
        more = special_map.pop('extra_special_tokens', None)
        if isinstance(more, dict):
            named_later |= more
        elif more is not None:
            config['extra_special_tokens'] = [
                *_list(config.get('extra_special_tokens'), 'extra_special_tokens', where),
                *_list(more, 'extra_special_tokens', path / 'special_tokens_map.json'),
            ]
        config |= special_map
    config.setdefault('pad_token', padding)
    if 'extra_special_tokens' not in config:
        config['extra_special_tokens'] = config.get('additional_special_tokens')

    values = {name: config.get(name) for name in NAMES}
    values |= {k: v for k, v in config.items() if _is_own_name(k, v, str | dict)}
    values |= named_later
    named = {k: _state(v, f'{where}: {k}') for k, v in values.items() if v is not None}
    listed = _list(config['extra_special_tokens'], 'extra_special_tokens', where)
    extra = [_state(v, f'{where}: extra_special_tokens[{i}]') for i, v in enumerate(listed)]
    if decoder is not None:
        if not isinstance(decoder, dict):
            raise UserError(f'{where}: added_tokens_decoder: expected ids with tokens')
        pairs = [
            (_id(i, f'{where}: added_tokens_decoder'), _state(token, f'{where}: {i}', False))
            for i, token in decoder.items()
        ]
        return Declared(named=named, extra=extra, added=pairs, legacy=False)
    special = {state['content'] for state in [*named.values(), *extra]}
    file = path / 'added_tokens.json'
    pairs = [
        (_id(i, f'{file}: {token!r:.80}'), _state(token, str(file), token in special))
        for token, i in added.items()
    ]
    return Declared(named=named, extra=extra, added=pairs, legacy=True)


def _is_own_name(key: str, value: Any, kind: Any) -> bool:
    """Whether it names a token that only this model has: `image_token`."""
    is_token = isinstance(value, kind) and (isinstance(value, str) or 'content' in value)
    return is_token and key.endswith('_token') and key not in NAMES


def _list(value: Any, key: str, where: Path) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise UserError(f'{where}: {key}: expected a list of tokens, got {value!r:.80}')
    return value or []


def _id(value: Any, where: str) -> int:
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if type(number) is not int or not 0 <= number < 2**31:
        raise UserError(f'{where}: expected an id, got {value!r:.80}')
    return number


def _state(value: Any, where: str, special: bool = True) -> TokenFields:
    """A token that is text, or an object with flags; `special` where that does not say."""
    token = {'content': value} if isinstance(value, str) else value
    if not isinstance(token, dict) or not isinstance(token.get('content'), str):
        raise UserError(f'{where}: expected text, got {value!r:.80}')
    flags = {k: token[k] for k in FLAGS if k in token}
    if wrong := [k for k, v in flags.items() if type(v) is not bool]:
        raise UserError(f'{where}: {wrong[0]}: expected true or false, got {flags[wrong[0]]!r:.80}')
    try:
        token['content'].encode()
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair.
        raise UserError(f'{where}: not valid UTF-8 at character {error.start}') from None
    if '__type' in token:  # Such an object says what is true.
        special = False
    return {'content': token['content'], 'special': special} | flags
