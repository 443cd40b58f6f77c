"""The decoder that a Hugging Face `config.json` describes.

Families: Llama 2 and 3, Mistral, Qwen1.5, Qwen2, Qwen2.5 (all three are `qwen2` there) and Qwen3.
What these share is one network; a family is a set of switches of `Architecture`.
"""

import json
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field

from sail_jax import files
from sail_jax.config import Section
from sail_jax.errors import UserError

FAMILIES = ('llama', 'mistral', 'qwen2', 'qwen3')
MAX_JSON = 2**24
"""Bytes of a JSON file that describes others."""


class Rope(Section):
    """Rotary position embedding (arXiv 2104.09864) and how its frequencies are stretched."""

    theta: float = Field(10_000.0, gt=0)
    """Base of the wavelengths."""
    kind: Literal['default', 'linear', 'llama3'] = 'default'
    """`linear` divides every frequency by `factor`, `llama3` only the low ones (Llama 3.1)."""
    factor: float = Field(1.0, gt=0)
    low_freq_factor: float = Field(1.0, gt=0)
    high_freq_factor: float = Field(4.0, gt=0)
    original_max_position_embeddings: int = Field(8192, ge=1)


class Architecture(Section):
    """Sizes and switches of a decoder; hashable. The bounds refuse what no such model has."""

    family: Literal['llama', 'mistral', 'qwen2', 'qwen3']
    """As what `transformers` reads it."""
    vocab_size: int = Field(ge=1, le=2**22)
    """At least the tokeniser's ids."""
    hidden_size: int = Field(ge=1, le=2**17)
    """Width of the residual stream."""
    intermediate_size: int = Field(ge=1, le=2**19)
    """Width of the MLP."""
    layers: int = Field(ge=1, le=2**10)
    heads: int = Field(ge=1, le=2**12)
    """Of attention."""
    kv_heads: int = Field(ge=1, le=2**12)
    """Fewer than `heads`: each serves `heads / kv_heads` of them (GQA)."""
    head_dim: int = Field(ge=2, le=2**13, multiple_of=2)
    """Even; commonly `hidden_size / heads`."""
    norm_eps: float = Field(1e-6, gt=0)
    rope: Rope = Rope()
    tied: bool = False
    """The embedding is the output matrix too."""
    qkv_bias: bool = False
    """Of the maps to queries, keys and values; `qwen2` has them."""
    out_bias: bool = False
    """Of the map out of attention."""
    mlp_bias: bool = False
    qk_norm: bool = False
    """Queries and keys are normalised; `qwen3` does."""
    windows: tuple[int, ...] = ()
    """Positions that each layer looks back on, itself included, 0 for all; empty: all layers
    look back on all."""
    max_positions: int = Field(4096, ge=1)
    """Tokens of prompt and response together."""

    @pydantic.model_validator(mode='after')
    def _consistent(self) -> 'Architecture':
        if self.heads % self.kv_heads:
            raise ValueError(
                f'{self.heads} attention heads do not divide by {self.kv_heads} key-value heads'
            )
        if self.windows and len(self.windows) != self.layers:
            raise ValueError(f'{len(self.windows)} layer_types for {self.layers} layers')
        return self


# Our names and theirs, where the value is the same.
RENAMED = {
    'vocab_size': 'vocab_size',
    'hidden_size': 'hidden_size',
    'intermediate_size': 'intermediate_size',
    'layers': 'num_hidden_layers',
    'heads': 'num_attention_heads',
    'norm_eps': 'rms_norm_eps',
    'tied': 'tie_word_embeddings',
    'max_positions': 'max_position_embeddings',
}


def from_hf(data: dict[str, Any], where: str = 'config.json') -> Architecture:
    """Reads the mapping of a `config.json`, as transformers 4 or 5 writes it.

    Args:
      data: the file's content.
      where: what errors call it.

    Raises:
      UserError: a family, activation or RoPE type that is not supported; a size that is missing,
        of the wrong type or absurd.
    """
    family = data.get('model_type')
    if family not in FAMILIES:
        raise UserError(f'{where}: model_type: {family!r}; supported: {", ".join(FAMILIES)}')
    if (activation := data.get('hidden_act', 'silu')) != 'silu':
        raise UserError(f'{where}: hidden_act: {activation!r}; supported: silu')
    fields = {
        ours: data[theirs] for ours, theirs in RENAMED.items() if data.get(theirs) is not None
    }
    fields |= {'family': family, 'rope': _rope(data, where), 'windows': _windows(data)}
    fields['kv_heads'] = data.get('num_key_value_heads') or (
        8 if family == 'mistral' else fields.get('heads')
    )
    fields['head_dim'] = data.get('head_dim') or _default_head_dim(data)
    bias = bool(data.get('attention_bias', False))
    match family:
        case 'llama':
            fields |= {'qkv_bias': bias, 'out_bias': bias, 'mlp_bias': data.get('mlp_bias', False)}
        case 'qwen2':
            fields |= {'qkv_bias': True}
        case 'qwen3':
            fields |= {'qkv_bias': bias, 'out_bias': bias, 'qk_norm': True}
    try:
        return Architecture.model_validate(fields)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        ours = '.'.join(str(part) for part in first['loc'])
        key = f'{RENAMED.get(ours, ours)}: ' if ours else ''
        value = '' if isinstance(first['input'], dict) else f', got {first["input"]!r:.80}'
        message = first['msg'].removeprefix('Value error, ').removeprefix('Input ')
        raise UserError(f'{where}: {key}{message}{value}') from None


def read(path: Path) -> Architecture:
    """The architecture in a checkpoint directory's `config.json`.

    Raises:
      UserError: see `from_hf`; or the file is missing or no JSON object.
    """
    _require_checkpoint(path)
    path = path / 'config.json'
    return from_hf(read_json(path), str(path))


def _require_checkpoint(path: Path) -> None:
    """Refuses what is no checkpoint directory; of a run's, says where its model is."""
    if not path.is_dir():
        raise UserError(f'{path}: no such directory')
    if (path / 'config.json').exists() or not (path / 'config.yaml').exists():
        return
    model = path / 'model'  # What a supervised run leaves.
    if (model / 'config.json').exists():
        raise UserError(f'{path}: a run; its model is {model}')
    raise UserError(
        f'{path}: a run, and no model directory; `sail-jax export {path} DIR` writes one of a '
        "language model's run"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
      UserError: if it cannot be read, is absurdly large, or is no object.
    """
    content = files.read(path, MAX_JSON)
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path}: not valid JSON: {error}') from None
    if not isinstance(data, dict):
        raise UserError(f'{path}: expected a JSON object, got {type(data).__name__}')
    return data


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """A `config.json` for a model that did not come from one; transformers 4 and 5 read it."""
    a = architecture
    data = {theirs: getattr(a, ours) for ours, theirs in RENAMED.items()}
    data |= {
        'model_type': a.family,
        'architectures': [f'{a.family.title()}ForCausalLM'],
        'num_key_value_heads': a.kv_heads,
        'head_dim': a.head_dim,
        'hidden_act': 'silu',
        'rope_theta': a.rope.theta,
        'sliding_window': max(a.windows, default=0) or None,
    }
    if a.rope.kind != 'default':
        scaling = a.rope.model_dump(exclude={'theta', 'kind'})
        keys = ('factor',) if a.rope.kind == 'linear' else tuple(scaling)
        data['rope_scaling'] = {'rope_type': a.rope.kind} | {key: scaling[key] for key in keys}
    if a.family in ('llama', 'qwen3'):
        data['attention_bias'] = a.qkv_bias
    if a.family == 'llama':
        data['mlp_bias'] = a.mlp_bias
    if a.family.startswith('qwen') and any(a.windows):
        data['use_sliding_window'] = True
        data['layer_types'] = [
            'sliding_attention' if window else 'full_attention' for window in a.windows
        ]
    return data


def _default_head_dim(data: dict[str, Any]) -> int | None:
    if data['model_type'] == 'qwen3':
        return 128
    hidden, heads = data.get('hidden_size'), data.get('num_attention_heads')
    # Where these are wrong, their own fields say so.
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else 2


def _rope(data: dict[str, Any], where: str) -> dict[str, Any]:
    """`rope_parameters` of transformers 5, else `rope_theta` and `rope_scaling`."""
    parameters = data.get('rope_parameters') or data.get('rope_scaling') or {}
    if not isinstance(parameters, dict):
        raise UserError(f'{where}: rope_parameters: expected an object, got {parameters!r:.80}')
    kind = parameters.get('rope_type', parameters.get('type', 'default'))
    if kind not in ('default', 'linear', 'llama3'):
        raise UserError(f'{where}: rope type: {kind!r}; supported: default, linear, llama3')
    if parameters.get('partial_rotary_factor', data.get('partial_rotary_factor', 1.0)) != 1.0:
        raise UserError(f'{where}: partial_rotary_factor: only 1.0 is supported')
    theta = parameters.get('rope_theta', data.get('rope_theta'))
    rope = {'kind': kind} | ({} if theta is None else {'theta': theta})
    if kind == 'default':
        return rope
    keys = ['factor']
    if kind == 'llama3':
        keys += ['low_freq_factor', 'high_freq_factor']
        rope['original_max_position_embeddings'] = parameters.get(
            'original_max_position_embeddings', data.get('max_position_embeddings')
        )
    if missing := [key for key in keys if key not in parameters]:
        raise UserError(f'{where}: rope type {kind} needs {", ".join(missing)}')
    return rope | {key: parameters[key] for key in keys}


def _windows(data: dict[str, Any]) -> tuple[int, ...]:
    """Per layer; Mistral's holds for every layer, Qwen's from `max_window_layers` on."""
    mistral = data['model_type'] == 'mistral'
    window, layers = data.get('sliding_window', 4096), data.get('num_hidden_layers')
    applies = mistral or (data['model_type'].startswith('qwen') and data.get('use_sliding_window'))
    if not applies or not isinstance(window, int) or not isinstance(layers, int):
        return ()
    layers = min(layers, 2**10)
    if mistral:
        return (window,) * layers
    if kinds := data.get('layer_types'):
        return tuple(window if kind == 'sliding_attention' else 0 for kind in kinds)
    full = data.get('max_window_layers', 28)
    return tuple(window if layer >= full else 0 for layer in range(layers))
