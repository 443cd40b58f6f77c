"""The decoder that a Hugging Face `config.json` describes; `families` has what there are."""

from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import Field

from sail_jax import files, hub
from sail_jax.config import Section
from sail_jax.errors import UserError
from sail_jax.language.model import hf_config
from sail_jax.language.model.families import FAMILIES
from sail_jax.language.model.rope import Rope


class Architecture(Section):
    """Sizes and switches of a decoder; hashable. The bounds refuse what no such model has."""

    family: str
    """As what `transformers` reads it: llama, mistral, qwen2, qwen3, gemma3_text, phi3, olmo2 or
    smollm3."""
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
    local_rope: Rope | None = None
    """Of the layers with a window, where they have another; `gemma3_text` has."""
    unrotated: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Layers, from 0, whose queries and keys are not rotated; `smollm3` has them."""
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
        if any(layer >= self.layers for layer in self.unrotated):
            raise ValueError(f'unrotated: {max(self.unrotated)}: there are {self.layers} layers')
        self._check_rope()
        return self

    def _check_rope(self) -> None:
        rope, local = self.rope, self.local_rope
        width = rope.width(self.head_dim)
        if width < 2 or width % 2:
            raise ValueError(
                f'rope: partial_rotary_factor {rope.partial_rotary_factor:g} of a head of '
                f'{self.head_dim} is {width} entries; expected an even number'
            )
        if local is not None and local.partial_rotary_factor != rope.partial_rotary_factor:
            raise ValueError('local_rope: partial_rotary_factor: is that of rope')
        factors = {len(rope.short_factor), len(rope.long_factor)}
        if rope.kind == 'longrope' and factors != {width // 2}:
            raise ValueError(
                f'rope: short_factor and long_factor have {len(rope.short_factor)} and '
                f'{len(rope.long_factor)} entries; expected {width // 2} of each'
            )
        if rope.kind == 'dynamic' and width == 2:
            raise ValueError('rope: dynamic needs more than 2 entries that are rotated')
        original = rope.original_max_position_embeddings
        if rope.kind == 'dynamic' and original != self.max_positions:
            raise ValueError(
                f'rope: of dynamic, original_max_position_embeddings ({original}) is '
                f'max_positions ({self.max_positions})'
            )

    @property
    def ropes(self) -> tuple[Rope | None, ...]:
        """That of each layer; None does not rotate."""
        local = self.local_rope or self.rope
        windows = self.windows or (0,) * self.layers
        ropes = [local if window else self.rope for window in windows]
        return tuple(None if i in self.unrotated else rope for i, rope in enumerate(ropes))

    @property
    def longest(self) -> int:
        """Tokens of prompt and response together that the model makes sense of: `max_positions`,
        or what its RoPE stretches them to."""
        rope = self.rope
        if rope.kind not in ('yarn', 'dynamic'):
            return self.max_positions
        stretched = rope.original_max_position_embeddings * rope.factor
        return max(self.max_positions, int(min(stretched, 2**30)))


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
    """The architecture in the `config.json` of a checkpoint directory, or of a model on the hub.

    Raises:
      UserError: see `from_hf`; or the file is missing or no JSON object.
    """
    path = hub.local(path, hub.CONFIG)
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
    windows = a.windows or (0,) * a.layers
    data |= {
        'model_type': family.name,
        'architectures': [family.model_class],
        'hidden_act': family.activation,
        'rope_theta': a.rope.theta,
        'sliding_window': max(windows) or None,
        # Absent, they would be those of the family's first model.
        **dict.fromkeys(('bos_token_id', 'eos_token_id', 'pad_token_id')),
    }
    if not any(windows) and family.keys.get('sliding_window', (None, None))[0] is int:
        del data['sliding_window']  # Gemma's is a number also where no layer uses it.
    if a.rope.kind != 'default':
        data['rope_scaling'] = {'rope_type': a.rope.kind} | hf_config.rope_keys(a.rope)
    if a.local_rope is not None:
        data['rope_local_base_freq'] = a.local_rope.theta
    written = {
        'attention_bias': a.qkv_bias,
        'mlp_bias': a.mlp_bias,
        'partial_rotary_factor': a.rope.partial_rotary_factor,
        'original_max_position_embeddings': a.rope.original_max_position_embeddings,
        'no_rope_layers': [int(i not in a.unrotated) for i in range(a.layers)],
    }
    data |= {key: value for key, value in written.items() if key in family.keys}
    if 'use_sliding_window' in family.keys and any(windows):
        data['use_sliding_window'] = True
    data |= {key: a.extras.get(key) for key in family.extras}
    if hf_config.windows(family.config.model_construct(**data), family, '') != a.windows:
        data['layer_types'] = [
            'sliding_attention' if window else 'full_attention' for window in windows
        ]
    return data
