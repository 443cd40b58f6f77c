"""The decoder that a Hugging Face `config.json` describes; `families` has what there are."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from sail_jax import files
from sail_jax.config import Section
from sail_jax.errors import UserError
from sail_jax.language.model import hf_config
from sail_jax.language.model.families import FAMILIES


class Rope(Section):
    """Rotary position embedding (arXiv 2104.09864) and how its frequencies are stretched."""

    theta: float = Field(default=10_000.0, gt=0, le=1e30)
    """Base of the wavelengths."""
    kind: Literal['default', 'linear', 'llama3'] = 'default'
    """`linear` divides every frequency by `factor`, `llama3` only the low ones (Llama 3.1)."""
    factor: float = Field(default=1.0, gt=0, le=1e30)
    low_freq_factor: float = Field(default=1.0, gt=0, le=1e30)
    high_freq_factor: float = Field(default=4.0, gt=0, le=1e30)
    original_max_position_embeddings: int = Field(default=8192, ge=1, le=2**30)

    @pydantic.model_validator(mode='after')
    def _ordered(self) -> 'Rope':
        if self.kind == 'llama3' and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f'high_freq_factor {self.high_freq_factor:g} is not above '
                f'low_freq_factor {self.low_freq_factor:g}'
            )
        return self


class Architecture(Section):
    """Sizes and switches of a decoder; hashable. The bounds refuse what no such model has."""

    family: str
    """As what `transformers` reads it: llama, mistral, qwen2 or qwen3."""
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
    norm_eps: float = Field(default=1e-6, gt=0)
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
    windows: tuple[Annotated[int, Field(ge=0, le=2**30)], ...] = ()
    """Positions that each layer looks back on, itself included, 0 for all; empty: all layers
    look back on all."""
    max_positions: int = Field(default=4096, ge=1, le=2**30)
    """Tokens of prompt and response together."""
    extras: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """What only this family has, by the keys of its `config.json`; null is left out."""

    def __hash__(self) -> int:
        values = (getattr(self, name) for name in type(self).model_fields if name != 'extras')
        return hash((*values, *sorted(self.extras.items())))

    @pydantic.field_validator('family')
    @classmethod
    def _known(cls, family: str) -> str:
        if family not in FAMILIES:
            raise ValueError(f'should be one of {", ".join(FAMILIES)}')
        return family

    @pydantic.model_validator(mode='after')
    def _consistent(self) -> 'Architecture':
        if self.heads % self.kv_heads:
            raise ValueError(
                f'{self.heads} attention heads do not divide by {self.kv_heads} key-value heads'
            )
        if FAMILIES[self.family].whole_heads and self.hidden_size % self.heads:
            raise ValueError(
                f'hidden_size {self.hidden_size} does not divide by {self.heads} attention heads'
            )
        if self.windows and len(self.windows) != self.layers:
            raise ValueError(f'{len(self.windows)} layer_types for {self.layers} layers')
        return self


# Fields whose value is that of a key.
RENAMED = {
    'vocab_size': 'vocab_size',
    'hidden_size': 'hidden_size',
    'intermediate_size': 'intermediate_size',
    'layers': 'num_hidden_layers',
    'heads': 'num_attention_heads',
    'kv_heads': 'num_key_value_heads',
    'head_dim': 'head_dim',
    'norm_eps': 'rms_norm_eps',
    'tied': 'tie_word_embeddings',
    'max_positions': 'max_position_embeddings',
}


def from_hf(data: dict[str, Any], where: str = 'config.json') -> Architecture:
    """Reads the mapping of a `config.json`, written by transformers 4 or 5, as 5 reads it.

    Args:
      data: the file's content.
      where: what errors call it.

    Raises:
      UserError: a family, activation, RoPE type or other setting that is not supported; one that
        is missing, contradicts another, or is of the wrong type or absurd.
    """
    names = RENAMED | {'windows': 'sliding_window', 'theta': 'rope_theta'}
    return hf_config.validated(Architecture, hf_config.fields(data, where), where, names)


def read(path: Path) -> Architecture:
    """The architecture in a checkpoint directory's `config.json`.

    Raises:
      UserError: see `from_hf`; or the file is missing or no JSON object.
    """
    _require_checkpoint(path)
    path = path / 'config.json'
    return from_hf(files.read_json(path), str(path))


def _require_checkpoint(path: Path) -> None:
    """Refuses what is no checkpoint directory; of a run's, says where its model is."""
    if not (files.exists(path) and path.is_dir()):
        raise UserError(f'{path}: no such directory')
    if (path / 'adapter_config.json').exists():
        raise UserError(
            f'{path}: an adapter of PEFT (adapter_config.json), which is not read as a model; save '
            'the merged one (in PEFT, model.merge_and_unload()), or remove the file beside a '
            "model's own weights"
        )
    if (path / 'config.json').exists() or not (path / 'config.yaml').exists():
        return
    model = path / 'model'  # What a supervised run leaves.
    if (model / 'config.json').exists():
        raise UserError(f'{path}: a run; its model is {model}')
    raise UserError(
        f'{path}: a run, and no model directory; `sail-jax export {path} DIR` writes one of a '
        "language model's run"
    )


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """A `config.json` for a model that did not come from one; transformers 4 and 5 read it."""
    a, family = architecture, FAMILIES[architecture.family]
    data = {key: getattr(a, field) for field, key in RENAMED.items()}
    data |= {
        'model_type': family.name,
        'architectures': [family.model_class],
        'hidden_act': family.activation,
        'rope_theta': a.rope.theta,
        'sliding_window': max(a.windows, default=0) or None,
    }
    if a.rope.kind != 'default':
        scaling = a.rope.model_dump(exclude={'theta', 'kind'})
        keys = ('factor',) if a.rope.kind == 'linear' else tuple(scaling)
        data['rope_scaling'] = {'rope_type': a.rope.kind} | {key: scaling[key] for key in keys}
    if 'attention_bias' in family.keys:
        data['attention_bias'] = a.qkv_bias
    if 'mlp_bias' in family.keys:
        data['mlp_bias'] = a.mlp_bias
    switched = 'use_sliding_window' in family.keys and any(a.windows)
    if switched:
        data['use_sliding_window'] = True
    if switched or len(set(a.windows)) > 1:
        data['layer_types'] = [
            'sliding_attention' if window else 'full_attention' for window in a.windows
        ]
    return data | {key: a.extras.get(key) for key in family.extras}
