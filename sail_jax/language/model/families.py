"""Families of decoders: what the `config.json` of each says, and what its network has of its own.

A family whose network is Llama's is a record in `FAMILIES`, and nothing else. One with other norms,
activations, caps or layers is a record whose `parts` are in a module of its own. Names of tensors
and layouts on devices follow from the names of modules and parameters.

A program adds a family of its own, `FAMILIES['name'] = Family('name', ...)`, before it reads a
model; see `examples/custom_model.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from sail_jax.language.model.architecture import Architecture
    from sail_jax.language.model.layers import Parts

Key = tuple[Any, Any]
"""The type of a key of `config.json`, and its value where it is absent or was never written."""

WholeHead = Annotated[float, Field(ge=1, le=1)]
ROPES = ('default', 'linear', 'dynamic', 'llama3', 'yarn', 'longrope')
"""The kinds of RoPE; see `rope`."""


class ConfigKeys(BaseModel):
    """What the `config.json` of any family says; the sizes' bounds are `Architecture`'s."""

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
    partial_rotary_factor: WholeHead | None = None
    sliding_window: int | None = None
    layer_types: list[Literal['full_attention', 'sliding_attention']] | None = None


@dataclass(frozen=True, eq=False)
class Family:
    """A family of decoders."""

    name: str
    """`model_type` in `config.json`."""
    model_class: str
    """As what `transformers` loads it, `LlamaForCausalLM` for example."""
    classifier: str = ''
    """As what it loads a reward model of the family; by default `model_class` with
    `ForSequenceClassification`."""
    keys: Mapping[str, Key] = field(default_factory=dict)
    """Keys that are not as in `ConfigKeys`. Four more are read where they are named here:
    `attention_bias` and `mlp_bias`, `use_sliding_window` and `max_window_layers`."""
    extras: Mapping[str, Key] = field(default_factory=dict)
    """Keys that only this family has, for its `parts`: `Architecture.extras` has their values."""
    switches: Mapping[str, bool] = field(default_factory=dict)
    """Those of `Architecture` that no key says, because all models of the family have them."""
    looks_back_on_all: Callable[[Any, int], bool] = lambda keys, layer: False
    """`(keys, layer)`: whether a layer has no window in a model with one, whose `layer_types` do
    not say."""
    rotates: Callable[[Any, int], bool] = lambda keys, layer: True
    """`(keys, layer)`: whether a layer's queries and keys are rotated."""
    ropes: tuple[str, ...] = ROPES
    """The kinds of RoPE that its models have in `transformers`."""
    rope_names: Mapping[str, str] = field(default_factory=dict)
    """Further names of these."""
    local_rope: bool = False
    """Whether layers with a window have a RoPE of their own, with the base
    `rope_local_base_freq`."""
    whole_heads: bool = False
    """The width must be a multiple of the heads, whatever `head_dim` is."""
    activation: str = 'silu'
    """The one `hidden_act` that its models have."""
    tensor_names: Mapping[str, str] = field(default_factory=dict)
    """What its files call modules, where it is not what `layers` does: by our dotted name or the
    beginning of it, `{'layers.mlp': 'layers.feed_forward', 'norm': 'final_norm'}` for example."""
    parts: 'Callable[[Architecture], Parts] | None' = None
    """What its network is made of, where it is not Llama's. Called when a network is made, so that
    a configuration is read without JAX."""

    @property
    def classifier_class(self) -> str:
        """See `classifier`."""
        return self.classifier or self.model_class.replace(
            'ForCausalLM', 'ForSequenceClassification'
        )

    @cached_property
    def config(self) -> type[ConfigKeys]:
        """Reads the mapping of a `config.json`."""
        fields: dict[str, Any] = {**self.keys, **self.extras}
        return pydantic.create_model(self.name, __base__=ConfigKeys, **fields)

    def module_name(self, module: str, layer: int | None = None) -> str:
        """What a checkpoint calls a module.

        Args:
          module: our dotted name, `layers.mlp.up_proj` for example.
          layer: of one in the stack of layers.
        """
        name = module
        for beginning, name_there in self.tensor_names.items():
            if f'{module}.'.startswith(f'{beginning}.'):
                name = name_there + module.removeprefix(beginning)
                break
        if layer is not None:
            stack, _, rest = name.partition('.')
            name = f'{stack}.{layer}.{rest}'
        return name if module in ('lm_head', 'score') else f'model.{name}'


BIAS = {'attention_bias': (bool, False)}
QWEN2 = {
    'num_key_value_heads': (int | None, 32),
    'head_dim': (int, None),  # Where it is given it is a number.
    'max_position_embeddings': (int, 32_768),
    'use_sliding_window': (bool, False),
    'sliding_window': (int | None, 4096),
    'max_window_layers': (int, 28),
}


def _first_layers(keys: Any, layer: int) -> bool:
    return layer < keys.max_window_layers


def _every_last(keys: Any, layer: int) -> bool:
    return (layer + 1) % keys.sliding_window_pattern == 0


def _is_rotated(keys: Any, layer: int) -> bool:
    if keys.no_rope_layers is not None:
        return bool(keys.no_rope_layers[layer])
    return (layer + 1) % keys.no_rope_layer_interval != 0


def _gemma3(architecture: 'Architecture') -> 'Parts':
    from sail_jax.language.model import gemma

    return gemma.gemma3(architecture)


def _phi3(architecture: 'Architecture') -> 'Parts':
    from sail_jax.language.model import phi

    return phi.parts(architecture)


def _olmo2(architecture: 'Architecture') -> 'Parts':
    from sail_jax.language.model import olmo

    return olmo.parts(architecture)


FAMILIES = {
    family.name: family
    for family in (
        Family(
            'llama',
            'LlamaForCausalLM',
            keys={
                **BIAS,
                'mlp_bias': (bool, False),
                'max_position_embeddings': (int, 2048),
                'sliding_window': (None, None),
                'layer_types': (list[Literal['full_attention']] | None, None),
            },
            whole_heads=True,
        ),
        # With `layer_types` transformers takes it as its Ministral, the same network.
        Family(
            'mistral',
            'MistralForCausalLM',
            keys={
                'num_key_value_heads': (int, 8),
                'max_position_embeddings': (int, 131_072),
                'sliding_window': (int | None, 4096),
            },
        ),
        Family(
            'qwen2',
            'Qwen2ForCausalLM',
            keys=QWEN2,
            switches={'qkv_bias': True},
            looks_back_on_all=_first_layers,
        ),
        Family(
            'qwen3',
            'Qwen3ForCausalLM',
            keys=QWEN2 | BIAS | {'head_dim': (int, 128)},
            switches={'qk_norm': True},
            looks_back_on_all=_first_layers,
        ),
        Family(
            'gemma3_text',
            'Gemma3ForCausalLM',
            'Gemma3TextForSequenceClassification',
            keys={
                **BIAS,
                'num_key_value_heads': (int, 4),
                'head_dim': (int, 256),
                'max_position_embeddings': (int, 131_072),
                'tie_word_embeddings': (bool, True),
                'rope_theta': (float, 1e6),
                'rope_local_base_freq': (float, 10_000.0),
                'sliding_window': (int, 4096),
                'sliding_window_pattern': (Annotated[int, Field(ge=1)], 6),
                'hidden_activation': (Literal['gelu_pytorch_tanh'], 'gelu_pytorch_tanh'),
                # Read there, and used by no layer.
                'attn_logit_softcapping': (None, None),
            },
            extras={
                'query_pre_attn_scalar': (Annotated[int, Field(ge=1)], 256),
                'final_logit_softcapping': (Annotated[float | None, Field(gt=0)], None),
            },
            switches={'qk_norm': True},
            looks_back_on_all=_every_last,
            local_rope=True,
            whole_heads=True,
            activation='gelu_pytorch_tanh',
            parts=_gemma3,
        ),
        Family(
            'phi3',
            'Phi3ForCausalLM',
            keys={
                'head_dim': (int, None),
                'rms_norm_eps': (float, 1e-5),
                'max_position_embeddings': (int, 4096),
                'original_max_position_embeddings': (int, 4096),
                'partial_rotary_factor': (float, 1.0),
                'layer_types': (None, None),
            },
            ropes=('default', 'longrope'),
            rope_names={'su': 'longrope'},
            parts=_phi3,
        ),
        Family(
            'olmo2',
            'Olmo2ForCausalLM',
            keys={
                **BIAS,
                'head_dim': (int, None),
                'rms_norm_eps': (float, 1e-5),
                'max_position_embeddings': (int, 2048),
                'sliding_window': (None, None),
                'layer_types': (list[Literal['full_attention']] | None, None),
            },
            parts=_olmo2,
        ),
        Family(
            'smollm3',
            'SmolLM3ForCausalLM',
            keys={
                **BIAS,
                'mlp_bias': (bool, False),
                'num_key_value_heads': (int | None, 4),
                'head_dim': (int, None),
                'max_position_embeddings': (int, 32_768),
                'tie_word_embeddings': (bool, True),
                'rope_theta': (float, 2e6),
                'use_sliding_window': (bool, False),
                'no_rope_layers': (list[int] | None, None),
                'no_rope_layer_interval': (Annotated[int, Field(ge=1)], 4),
            },
            rotates=_is_rotated,
            looks_back_on_all=_is_rotated,
        ),
    )
}
"""By their names: Llama 2 and 3; Mistral; Qwen1.5, Qwen2 and Qwen2.5, which are all `qwen2` in
their files; Qwen3; Gemma 3 without images; Phi-3 and Phi-4, both `phi3`; OLMo 2; SmolLM3."""
