"""What a Hugging Face `config.json` says, as transformers 5 takes it; see `families`.

A key that is absent has the value that transformers gives it there, a value of another type than
its key's is refused, and so is a key of other architectures that would make another function.
"""

from typing import Any, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict

from sail_jax.errors import UserError
from sail_jax.language.model.families import FAMILIES, ConfigKeys, Family, WholeHead
from sail_jax.language.model.rope import Rope
from sail_jax.terminal import shown

# Keys that are not of these families, and their value where they change nothing besides null. Those
# that come with tensors of their own (experts, further norms) are told by their tensors.
FOREIGN = {
    'is_causal': True,
    'use_bidirectional_attention': False,
    'add_cross_attention': False,
    'is_encoder_decoder': False,
    'attention_multiplier': None,
    'embedding_multiplier': 1,
    'residual_multiplier': 1,
    'logits_scaling': 1,
    'logit_scale': 1,
    'scale_emb': 1,
    'scale_depth': None,
    'dim_model_base': None,
    'attn_scale': None,
    'attn_temperature_tuning': False,
    'attn_logit_softcapping': None,
    'final_logit_softcapping': None,
    'query_pre_attn_scalar': None,
    'clip_qkv': None,
    'attention_chunk_size': None,
    'no_rope_layers': None,
    'no_rope_layer_interval': None,
    'rope_local_base_freq': None,
    'rope_interleaved': False,
    'rotary_pct': 1,
    'rotary_dim': None,
    'rotary_emb_base': None,
    'use_parallel_residual': False,
    'pruned_heads': {},
    'text_config': None,
    'per_layer_config': None,
    'fusion_config': None,
    'transformers_weights': None,
}
ORIGINAL, PARTIAL = 'original_max_position_embeddings', 'partial_rotary_factor'
ROPE_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    'default': ((), ()),
    'linear': (('factor',), ()),
    'dynamic': (('factor',), ()),
    'llama3': (('factor', 'low_freq_factor', 'high_freq_factor', ORIGINAL), ()),
    'yarn': (
        ('factor', ORIGINAL),
        ('attention_factor', 'beta_fast', 'beta_slow', 'mscale', 'mscale_all_dim', 'truncate'),
    ),
    'longrope': (('short_factor', 'long_factor', ORIGINAL), ('factor', 'attention_factor')),
}
"""What each kind of RoPE takes besides `rope_theta`: what it needs, and what it may have."""

ModelT = TypeVar('ModelT', bound=BaseModel)


class _Rope(BaseModel):
    """`rope_parameters`, or its older name `rope_scaling`, without the kind."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra='forbid')

    rope_theta: float
    partial_rotary_factor: WholeHead = 1.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: list[float] = []
    long_factor: list[float] = []


class _PartialRope(_Rope):
    partial_rotary_factor: float = 1.0


def fields(data: dict[str, Any], where: str) -> dict[str, Any]:
    """What of an `Architecture` the mapping of a `config.json` gives; sizes are not bounded yet.

    Args:
      data: the file's content.
      where: what errors call it.

    Raises:
      UserError: naming the key of what is not supported, contradicts itself, or is of a wrong type.
    """
    name = data.get('model_type')
    if not isinstance(name, str) or name not in FAMILIES:
        alone = f'{name}_text' if f'{name}_text' in FAMILIES else None
        hint = f'; its text part saved by itself is a {alone} (docs/guides/language.md)'
        raise UserError(
            f'{where}: model_type: {name!r:.80}; supported: {", ".join(FAMILIES)}'
            + (hint if alone else '')
        )
    family = FAMILIES[name]
    if (activation := data.get('hidden_act', family.activation)) != family.activation:
        raise UserError(f'{where}: hidden_act: {activation!r:.80}; supported: {family.activation}')
    _refuse_quantised(data, where)
    for key, neutral in FOREIGN.items():
        mine = key in family.config.model_fields
        if not mine and (value := data.get(key)) not in (None, neutral):
            raise UserError(
                f'{where}: {key}: {value!r:.80}: not of a {name}, and another function; '
                'where the model was trained without it, remove it'
            )
    keys = validated(family.config, data, where)
    heads, kv_heads, head_dim = keys.num_attention_heads, keys.num_key_value_heads, keys.head_dim
    if PARTIAL in family.keys and head_dim not in (None, keys.hidden_size // (heads or 1)):
        raise UserError(
            f'{where}: head_dim: {head_dim}; of a {name} it is hidden_size / num_attention_heads'
        )
    extras = {key: getattr(keys, key) for key in family.extras}
    bias = getattr(keys, 'attention_bias', False)
    return {
        'family': name,
        'vocab_size': keys.vocab_size,
        'hidden_size': keys.hidden_size,
        'intermediate_size': keys.intermediate_size,
        'layers': keys.num_hidden_layers,
        'heads': heads,
        'kv_heads': heads if kv_heads is None else kv_heads,
        # Where there are no heads, their own bound says so.
        'head_dim': keys.hidden_size // (heads or 1) if head_dim is None else head_dim,
        'norm_eps': keys.rms_norm_eps,
        'tied': keys.tie_word_embeddings,
        'max_positions': keys.max_position_embeddings,
        'qkv_bias': bias,
        'out_bias': bias,
        'mlp_bias': getattr(keys, 'mlp_bias', False),
        **family.switches,
        **_ropes(data, keys, family, where),
        'unrotated': _unrotated(keys, family, where),
        'windows': windows(keys, family, where),
        'extras': {key: value for key, value in extras.items() if value is not None},
    }


def validated(
    model: type[ModelT], data: dict[str, Any], where: str, names: dict[str, str] | None = None
) -> ModelT:
    """The data as a pydantic model.

    Args:
      where: what errors call the data.
      names: what the data call the model's fields, where that is another name.

    Raises:
      UserError: the first error, in one line with its key.
    """
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = '.'.join(str((names or {}).get(str(part), part)) for part in first['loc'])
        value = '' if isinstance(first['input'], dict) else f', got {first["input"]!r:.80}'
        message = first['msg'].removeprefix('Value error, ').removeprefix('Input ')
        raise UserError(f'{where}: {key}{": " if key else ""}{message}{value}') from None


def _refuse_quantised(data: dict[str, Any], where: str) -> None:
    for key in ('quantization_config', 'compression_config'):
        if (value := data.get(key)) is not None:
            method = value.get('quant_method') if isinstance(value, dict) else None
            kind = f'{key} ({method!r:.40})' if method else key
            raise UserError(
                f'{where}: {kind}: quantised weights are not read; save the dequantised model '
                '(in transformers, model.dequantize()), or remove the key where the tensors are '
                'floating-point already'
            )


def rope_keys(rope: Rope) -> dict[str, Any]:
    """The object `rope_scaling` of a RoPE, without its kind and base."""
    needed, optional = ROPE_KEYS[rope.kind]
    values = rope.model_dump(mode='json')
    return {key: values[key] for key in needed + optional if values[key] is not None}


def _ropes(data: dict[str, Any], keys: ConfigKeys, family: Family, where: str) -> dict[str, Any]:
    """`rope`, and `local_rope` where layers with a window have their own.

    transformers 5 writes `rope_parameters`; an older `rope_scaling` beside it takes its place, base
    included.
    """
    key = 'rope_scaling' if data.get('rope_scaling') else 'rope_parameters'
    rope = data.get(key)
    if rope is None:
        rope = {}
    if not isinstance(rope, dict):
        raise UserError(f'{where}: {key}: expected an object, got {rope!r:.80}')
    by_type = [name for name, value in rope.items() if isinstance(value, dict)]
    if not family.local_rope:
        if by_type:
            raise UserError(
                f'{where}: {key}: by type of layer ({", ".join(by_type)!r:.80}); only one for all '
                'layers is supported'
            )
        return {'rope': _rope(rope, data, keys, family, f'{where}: {key}')}
    if key == 'rope_scaling' and data.get('rope_parameters') is not None:
        raise UserError(f'{where}: rope_scaling beside rope_parameters; remove one of them')
    if key == 'rope_scaling':
        rope = {'full_attention': rope}
    if unknown := rope.keys() - {'full_attention', 'sliding_attention'}:
        raise UserError(
            f'{where}: {key}.{shown(min(unknown))}: expected full_attention and sliding_attention'
        )
    result = {}
    of_types = {'rope': 'full_attention', 'local_rope': 'sliding_attention'}
    bases = {'rope': keys.rope_theta, 'local_rope': getattr(keys, 'rope_local_base_freq', 1e4)}
    for field, name in of_types.items():
        inner = rope.get(name)
        inner = {} if inner is None else inner
        if not isinstance(inner, dict):
            raise UserError(f'{where}: {key}.{name}: expected an object, got {inner!r:.80}')
        kinds = ('default', 'linear') if field == 'rope' else ('default',)
        inner = {'rope_theta': bases[field], 'rope_type': 'default'} | inner
        if 'type' in inner or inner['rope_type'] not in kinds:
            kind = inner.get('type', inner['rope_type'])
            raise UserError(
                f'{where}: {key}.{name}: rope type: {kind!r:.80}; supported: {", ".join(kinds)} '
                '(as rope_type)'
            )
        result[field] = _rope(inner, data, keys, family, f'{where}: {key}.{name}')
    return result


def _rope(
    rope: dict[str, Any], data: dict[str, Any], keys: ConfigKeys, family: Family, where: str
) -> dict[str, Any]:
    """As of `Architecture`, of one object."""
    kind = rope.get('rope_type', rope.get('type', 'default'))
    kind = family.rope_names.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in family.ropes:
        raise UserError(f'{where}: rope type: {kind!r:.80}; supported: {", ".join(family.ropes)}')
    needed, optional = ROPE_KEYS[kind]
    allowed = {'rope_theta', PARTIAL, *needed, *optional}
    values = {name: value for name, value in rope.items() if name not in ('type', 'rope_type')}
    if unknown := values.keys() - allowed:
        raise UserError(f'{where}.{shown(min(unknown))}: not of rope type {kind}; remove it')
    values = {'rope_theta': keys.rope_theta} | values
    partial = PARTIAL in family.keys
    if partial:
        values = {PARTIAL: getattr(keys, PARTIAL)} | values
    if ORIGINAL in needed:
        # One beside the object goes before one inside.
        inside = values.get(ORIGINAL, keys.max_position_embeddings)
        values[ORIGINAL] = data.get(ORIGINAL, getattr(keys, ORIGINAL, inside))
    if missing := [name for name in needed if name not in values]:
        raise UserError(f'{where}: rope type {kind} needs {", ".join(missing)}')
    checked = validated(_PartialRope if partial else _Rope, values, where)
    result = {name: getattr(checked, name) for name in needed + optional}
    if kind == 'longrope' and 'factor' not in values:
        original = checked.original_max_position_embeddings
        result['factor'] = keys.max_position_embeddings / (original or 1)
    if kind == 'dynamic':
        result[ORIGINAL] = keys.max_position_embeddings
    result[PARTIAL] = checked.partial_rotary_factor
    return {'kind': kind, 'theta': checked.rope_theta, **result}


def _unrotated(keys: ConfigKeys, family: Family, where: str) -> tuple[int, ...]:
    """As of `Architecture`."""
    layers = min(keys.num_hidden_layers, 2**12)  # More are refused.
    listed = getattr(keys, 'no_rope_layers', None)
    if listed is not None and len(listed) < layers:
        raise UserError(f'{where}: {len(listed)} no_rope_layers for {layers} layers')
    return tuple(layer for layer in range(layers) if not family.rotates(keys, layer))


def windows(keys: ConfigKeys, family: Family, where: str) -> tuple[int, ...]:
    """As of `Architecture`."""
    used = getattr(keys, 'use_sliding_window', True)
    window = keys.sliding_window if used else None
    layers, kinds = keys.num_hidden_layers, keys.layer_types
    if window is not None and window < 1:
        raise UserError(f'{where}: sliding_window: expected at least 1, got {window}')
    if kinds is not None and len(kinds) != layers:
        raise UserError(f'{where}: {len(kinds)} layer_types for {layers} layers')
    if kinds is None:
        layers = min(layers, 2**12)  # More are refused.
        on_all = [window is None or family.looks_back_on_all(keys, i) for i in range(layers)]
        kinds = ['full_attention' if full else 'sliding_attention' for full in on_all]
    if 'sliding_attention' in kinds and window is None:
        raise UserError(
            f'{where}: layer_types: sliding_attention, but no sliding_window'
            + ('' if keys.sliding_window is None else ' (use_sliding_window is false)')
        )
    if 'sliding_attention' not in kinds:
        return ()
    return tuple((window or 0) if kind == 'sliding_attention' else 0 for kind in kinds)
