"""What a Hugging Face `config.json` says, family by family, as transformers 5 takes it.

A key that is absent has the value that transformers gives it there, a value of another type than
its key's is refused, and so is a key of other architectures that would make another function.
"""

from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from sail_jax.errors import UserError, shown

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
ROPE_KEYS = {
    'default': (),
    'linear': ('factor',),
    'llama3': (
        'factor',
        'low_freq_factor',
        'high_freq_factor',
        'original_max_position_embeddings',
    ),
}
"""What each kind of RoPE takes besides `rope_theta`."""

Whole = Annotated[float, Field(ge=1, le=1)]
ModelT = TypeVar('ModelT', bound=BaseModel)


class _Config(BaseModel):
    """The keys that all families have; the sizes' bounds are `Architecture`'s."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int
    rope_theta: float = 10_000.0
    partial_rotary_factor: Whole | None = None
    sliding_window: int | None = None
    layer_types: list[Literal['full_attention', 'sliding_attention']] | None = None

    @property
    def window(self) -> int | None:
        """Of the layers that have one."""
        return self.sliding_window

    @property
    def full_layers(self) -> int:
        """The first layers, which look back on all where `layer_types` does not say."""
        return 0


class _Llama(_Config):
    max_position_embeddings: int = 2048
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: None = None
    layer_types: list[Literal['full_attention']] | None = None


class _Mistral(_Config):
    """With `layer_types`, transformers takes it as its Ministral, the same network."""

    num_key_value_heads: int = 8
    max_position_embeddings: int = 131_072
    sliding_window: int | None = 4096


class _Qwen2(_Config):
    num_key_value_heads: int | None = 32
    head_dim: int = None  # Where it is given it is a number.
    max_position_embeddings: int = 32_768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28

    @property
    def window(self) -> int | None:
        return self.sliding_window if self.use_sliding_window else None

    @property
    def full_layers(self) -> int:
        return self.max_window_layers


class _Qwen3(_Qwen2):
    head_dim: int = 128
    attention_bias: bool = False


class _Rope(BaseModel):
    """`rope_parameters`, or its older name `rope_scaling`, without the kind."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra='forbid')

    rope_theta: float
    partial_rotary_factor: Whole = 1.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


OF_FAMILY = {'llama': _Llama, 'mistral': _Mistral, 'qwen2': _Qwen2, 'qwen3': _Qwen3}


def fields(data: dict[str, Any], where: str) -> dict[str, Any]:
    """What of an `Architecture` the mapping of a `config.json` gives; sizes are not bounded yet.

    Args:
      data: the file's content.
      where: what errors call it.

    Raises:
      UserError: naming the key of what is not supported, contradicts itself, or is of a wrong type.
    """
    family = data.get('model_type')
    if not isinstance(family, str) or family not in OF_FAMILY:
        raise UserError(f'{where}: model_type: {family!r:.80}; supported: {", ".join(OF_FAMILY)}')
    if (activation := data.get('hidden_act', 'silu')) != 'silu':
        raise UserError(f'{where}: hidden_act: {activation!r:.80}; supported: silu')
    _refuse_quantised(data, where)
    for key, neutral in FOREIGN.items():
        if (value := data.get(key)) is not None and value != neutral:
            raise UserError(
                f'{where}: {key}: {value!r:.80}: not of a {family}, and another function; '
                'where the model was trained without it, remove it'
            )
    config = validated(OF_FAMILY[family], data, where)
    heads = config.num_attention_heads
    bias = getattr(config, 'attention_bias', False)
    return {
        'family': family,
        'vocab_size': config.vocab_size,
        'hidden_size': config.hidden_size,
        'intermediate_size': config.intermediate_size,
        'layers': config.num_hidden_layers,
        'heads': heads,
        'kv_heads': heads if config.num_key_value_heads is None else config.num_key_value_heads,
        # Where there are no heads, their own bound says so.
        'head_dim': config.hidden_size // (heads or 1)
        if config.head_dim is None
        else config.head_dim,
        'norm_eps': config.rms_norm_eps,
        'tied': config.tie_word_embeddings,
        'max_positions': config.max_position_embeddings,
        'qkv_bias': bias or family == 'qwen2',
        'out_bias': bias,
        'mlp_bias': getattr(config, 'mlp_bias', False),
        'qk_norm': family == 'qwen3',
        'rope': _rope(data, config, where),
        'windows': _windows(config, where),
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
        key = '.'.join(str((names or {}).get(part, part)) for part in first['loc'])
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


def _rope(data: dict[str, Any], config: _Config, where: str) -> dict[str, Any]:
    """transformers 5 writes `rope_parameters`; an older `rope_scaling` beside it takes its place,
    base included."""
    key = 'rope_scaling' if data.get('rope_scaling') else 'rope_parameters'
    given = data.get(key)
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise UserError(f'{where}: {key}: expected an object, got {given!r:.80}')
    if nested := [name for name, value in given.items() if isinstance(value, dict)]:
        raise UserError(
            f'{where}: {key}: by type of layer ({", ".join(nested)!r:.80}); only one for all '
            'layers is supported'
        )
    kind = given.get('rope_type', given.get('type', 'default'))
    if not isinstance(kind, str) or kind not in ROPE_KEYS:
        raise UserError(f'{where}: rope type: {kind!r:.80}; supported: {", ".join(ROPE_KEYS)}')
    known = {'rope_theta', 'partial_rotary_factor', *ROPE_KEYS[kind]}
    values = {name: value for name, value in given.items() if name not in ('type', 'rope_type')}
    if unknown := values.keys() - known:
        raise UserError(f'{where}: {key}.{shown(min(unknown))}: not of rope type {kind}; remove it')
    values = {'rope_theta': config.rope_theta} | values
    if kind == 'llama3':
        # One beside the object goes before one inside.
        name = 'original_max_position_embeddings'
        values[name] = data.get(name, values.get(name, config.max_position_embeddings))
    if missing := [name for name in ROPE_KEYS[kind] if name not in values]:
        raise UserError(f'{where}: {key}: rope type {kind} needs {", ".join(missing)}')
    rope = validated(_Rope, values, f'{where}: {key}')
    return {
        'kind': kind,
        'theta': rope.rope_theta,
        **{name: getattr(rope, name) for name in ROPE_KEYS[kind]},
    }


def _windows(config: _Config, where: str) -> tuple[int, ...]:
    """As of `Architecture`."""
    window, layers, kinds = config.window, config.num_hidden_layers, config.layer_types
    if window is not None and window < 1:
        raise UserError(f'{where}: sliding_window: expected at least 1, got {window}')
    if kinds is not None and len(kinds) != layers:
        raise UserError(f'{where}: {len(kinds)} layer_types for {layers} layers')
    if kinds is None:
        full = config.full_layers if window is not None else layers
        layers = min(layers, 2**12)  # More are refused.
        kinds = [
            'full_attention' if layer < full else 'sliding_attention' for layer in range(layers)
        ]
    if 'sliding_attention' in kinds and window is None:
        raise UserError(
            f'{where}: layer_types: sliding_attention, but no sliding_window'
            + ('' if config.sliding_window is None else ' (use_sliding_window is false)')
        )
    if 'sliding_attention' not in kinds:
        return ()
    return tuple(window if kind == 'sliding_attention' else 0 for kind in kinds)
