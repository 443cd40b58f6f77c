"""LoRA (arXiv 2106.09685): low-rank adapters beside frozen weights.

The reference is the model with the adapter off: both are bound to one copy of the frozen weights.

    adapted = lora.split(lora.add(decoder, settings, key))
    policy = nnx.merge(adapted.on, adapted.trained, adapted.frozen)
    reference = nnx.merge(adapted.off, adapted.frozen)
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import nnx

from sail_jax import files, hub
from sail_jax.errors import UserError
from sail_jax.language.adapter import ALL_LINEAR, Lora
from sail_jax.language.model import hf_config
from sail_jax.language.model.families import FAMILIES
from sail_jax.language.model.layers import Linear
from sail_jax.language.model.tensors import check_tensors, open_safetensors
from sail_jax.language.model.transformer import Decoder
from sail_jax.terminal import shown

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
# Settings that other tools read too, and their value of plain LoRA.
PLAIN = {
    'peft_type': 'LORA',
    'bias': 'none',
    'fan_in_fan_out': False,
    'use_dora': False,
    'use_rslora': False,
    'rank_pattern': {},
    'alpha_pattern': {},
    'layer_replication': None,
    'modules_to_save': None,
    'lora_bias': False,
}
# What an adapter does not depend on. Any other setting is a variant of LoRA, whether or not this
# version knows it, and refused unless it is off.
INERT = {
    *('peft_version', 'task_type', 'base_model_name_or_path', 'revision', 'auto_mapping'),
    *(
        'layers_pattern',
        'inference_mode',
        'lora_dropout',
        'megatron_core',
        'qalora_group_size',
        'runtime_config',
    ),
    *('loftq_config', 'eva_config', 'corda_config', 'lora_ga_config'),  # Of `init_lora_weights`.
}
# Beginnings that leave the base model's weights alone; pissa, olora and others take their part out
# of them, so that their tensors belong to another base.
INITS = (True, False, None, 'gaussian', 'eva', 'orthogonal')


TRAINED = nnx.Any(nnx.LoRAParam, nnx.PathContains('score'))
"""What is trained of a model whose weights are frozen: its adapter, and a reward model's score."""


class Adapted(NamedTuple):
    """A model with an adapter, taken apart."""

    on: nnx.GraphDef[Decoder]
    """Merges with what is trained and the frozen weights: the policy."""
    off: nnx.GraphDef[Decoder]
    """Of a language model merges with the frozen weights alone: the reference."""
    trained: nnx.State
    frozen: nnx.State


def add(decoder: Decoder, settings: Lora, key: jax.Array) -> Decoder:
    """The model with a new adapter, which changes nothing yet; weights are shared, not copied.

    Initialised as by PEFT: `a` uniform within `1 / sqrt(in)`, `b` zero.

    Raises:
      UserError: there are no such maps, or not so many layers.
    """
    decoder = off(decoder)
    maps = {name.rpartition('.')[2] for name, _ in _linears(decoder)}
    if missing := [name for name in settings.targets if name not in {*maps, ALL_LINEAR}]:
        raise UserError(
            f'model.lora.targets: {", ".join(missing)}: the layers of '
            f'{decoder.architecture.family} have {", ".join(sorted(maps))}'
        )
    layers, first = decoder.architecture.layers, _layers(decoder, settings).start
    if first < 0:
        raise UserError(f'model.lora.layers: {settings.layers}; the model has {layers}')
    for number, (_, linear) in enumerate(_targets(decoder, settings)):
        bound = linear.in_features**-0.5
        shape = (layers, linear.in_features, settings.rank)
        a = jax.random.uniform(jax.random.fold_in(key, number), shape, minval=-bound, maxval=bound)
        if first:
            a = a.at[:first].set(0)  # With `b` zero too, neither has a gradient.
        _attach(linear, settings, a, jnp.zeros((layers, settings.rank, linear.out_features)))
    return decoder


def off(decoder: Decoder) -> Decoder:
    """The model without its adapter, on the same weights."""
    decoder = nnx.clone(decoder)
    for _, linear in _linears(decoder):
        if linear.lora_a is not None:
            del linear.lora_a, linear.lora_b, linear.lora_scale
    return decoder


def split(decoder: Decoder) -> Adapted:
    """Takes a model with an adapter apart, for training."""
    on, trained, frozen = nnx.split(decoder, TRAINED, ...)
    return Adapted(on=on, off=nnx.graphdef(off(decoder)), trained=trained, frozen=frozen)


def drop(decoder: Decoder, key_B: jax.Array, rate: float) -> Decoder:
    """The model as a gradient step sees it: each adapter reads its input with a share of it zero,
    and the rest scaled up (arXiv 1207.0580; as PEFT's `lora_dropout`).

    Args:
      key_B: of the rows that the model will be called with; what is drawn is a function of a row's
        key, the layer, the linear map and the numbers of lanes and tokens.
      rate: the share.
    """
    decoder = nnx.clone(decoder)
    layer = jnp.arange(decoder.architecture.layers)
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))
    for number, (_, linear) in enumerate(_linears(decoder)):
        if linear.lora_a is not None:
            of_map_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, number)
            linear.drop_key, linear.drop_rate = nnx.Variable(fold(of_map_B, layer)), rate
    return decoder


def merge(decoder: Decoder) -> Decoder:
    """The model with the adapter added into its weights, for export."""
    merged = off(decoder)
    for (_, source), (_, linear) in zip(_linears(decoder), _linears(merged), strict=True):
        if source.lora_a is not None and source.lora_b is not None:
            kernel, a, b = source.kernel[...], source.lora_a[...], source.lora_b[...]
            sum_ = kernel.astype(jnp.float32) + source.lora_scale * (a @ b)
            linear.kernel = nnx.Param(sum_.astype(kernel.dtype))
    return merged


def save(
    decoder: Decoder,
    settings: Lora,
    path: str | Path,
    base: str | Path | None = None,
    dtype: jnp.dtype | None = None,
) -> Path:
    """Writes the adapter alone, in the format of PEFT.

    Args:
      path: a new directory.
      base: the checkpoint that the adapter belongs to, named in the file.
      dtype: of the tensors; None keeps the parameters'.

    Raises:
      UserError: if `path` exists or cannot be made.
    """
    path = Path(path)
    tensors = {}
    for name, linear in _targets(decoder, settings):
        for part, variable in (('lora_A', linear.lora_a), ('lora_B', linear.lora_b)):
            assert variable is not None  # Targets have both.
            values = np.asarray(variable[...])
            for layer in _layers(decoder, settings):
                tensor = np.ascontiguousarray(values[layer].T, dtype=dtype or values.dtype)
                tensors[_tensor_name(decoder, layer, name, part)] = tensor
    names = sorted({name.rpartition('.')[2] for name, _ in _targets(decoder, settings)})
    config = PLAIN | {
        'task_type': 'CAUSAL_LM',
        'base_model_name_or_path': None if base is None else hub.name_of(base),
        'r': settings.rank,
        'lora_alpha': settings.alpha,
        'lora_dropout': settings.dropout,
        'target_modules': names if ALL_LINEAR in settings.targets else list(settings.targets),
        'layers_to_transform': settings.layers and [*_layers(decoder, settings)],
        'inference_mode': True,
    }
    with files.new_directory(path) as partial:
        files.write_tensors(partial / WEIGHTS, tensors)
        files.write_json(partial / CONFIG, config)
    return path


def load(decoder: Decoder, path: str | Path) -> tuple[Decoder, Lora]:
    """The model with an adapter that PEFT, or `save`, wrote.

    Raises:
      UserError: a file that is missing or damaged; a setting of another variant than plain LoRA; a
        tensor that is missing, left over, or of the wrong shape or type.
    """
    path = hub.local(path, hub.MODEL)
    settings = read_settings(path)
    decoder = off(decoder)
    layers = _layers(decoder, settings)
    if layers.start < 0:
        raise UserError(
            f'{path / CONFIG}: layers_to_transform: {settings.layers} layers; the model has '
            f'{layers.stop}'
        )
    with ExitStack() as stack:
        sources = open_safetensors(path / WEIGHTS, stack)
        linears = dict(_targets(decoder, settings))
        shapes = {}
        for name, linear in linears.items():
            for layer in layers:
                a, b = (_tensor_name(decoder, layer, name, part) for part in ('lora_A', 'lora_B'))
                shapes |= {a: (settings.rank, linear.in_features)}
                shapes |= {b: (linear.out_features, settings.rank)}
        check_tensors(shapes, sources, path / WEIGHTS)
        for name, linear in linears.items():
            stacks = [
                np.stack(
                    [
                        sources[_tensor_name(decoder, layer, name, part)].view[:].T
                        for layer in layers
                    ]
                )
                for part in ('lora_A', 'lora_B')
            ]
            # Zeros for the layers before.
            whole = (np.pad(x, ((layers.start, 0), (0, 0), (0, 0))) for x in stacks)
            _attach(linear, settings, *(jnp.asarray(x, jnp.float32) for x in whole))
    return decoder, settings


def _linears(decoder: Decoder) -> Iterator[tuple[str, Linear]]:
    """The layers' linear maps by dotted name within a layer, in a fixed order."""
    linears = {
        '.'.join(map(str, path)): module
        for path, module in nnx.iter_modules(decoder.layers)
        if isinstance(module, Linear)
    }
    return iter(sorted(linears.items()))


def _targets(decoder: Decoder, settings: Lora) -> Iterator[tuple[str, Linear]]:
    return (item for item in _linears(decoder) if settings.wants(item[0]))


def _layers(decoder: Decoder, settings: Lora) -> range:
    """The layers that get one."""
    layers = decoder.architecture.layers
    return range(layers - (settings.layers or layers), layers)


def _attach(linear: Linear, settings: Lora, a: jax.Array, b: jax.Array) -> None:
    linear.lora_a, linear.lora_b = nnx.LoRAParam(a), nnx.LoRAParam(b)
    linear.lora_scale = settings.alpha / settings.rank


def _tensor_name(decoder: Decoder, layer: int, linear: str, part: str) -> str:
    family = FAMILIES[decoder.architecture.family]
    return f'base_model.model.{family.module_name(f"layers.{linear}", layer)}.{part}.weight'


class _Written(Lora):
    """As a file has it: no text in the place of a number."""

    model_config = pydantic.ConfigDict(strict=True)


def read_settings(path: Path) -> Lora:
    """Of an adapter's directory; without dropout.

    Raises:
      UserError: as of `load`.
    """
    path = hub.local(path, hub.CONFIG)
    _require_adapter(path)
    file = path / CONFIG
    data = {'bias': 'none'} | files.read_json(file)
    if data.get('peft_type') != 'LORA':
        raise UserError(f"{file}: peft_type: {data.get('peft_type')!r:.80}; only 'LORA' is read")
    if (init := data.get('init_lora_weights', True)) not in INITS:
        raise UserError(
            f'{file}: init_lora_weights: {init!r:.80}: such an adapter belongs to a base model '
            'that it has changed; save it as plain LoRA (in PEFT, save_pretrained with '
            'path_initial_model_for_weight_conversion)'
        )
    read = {'peft_type', 'init_lora_weights', 'r', 'lora_alpha', 'target_modules'}
    read |= {'layers_to_transform'}
    for key in sorted(data.keys() - read - INERT):
        value = data[key]
        off = value is None or value is False or value in ({}, [], '')
        if not off and (key not in PLAIN or value != PLAIN[key]):
            only = f'only {PLAIN[key]!r} is' if key in PLAIN else 'a variant of LoRA that is not'
            raise UserError(f'{file}: {shown(key)}: {value!r:.80}; {only} supported')
    targets = data.get('target_modules')
    if isinstance(targets, str):
        raise UserError(
            f'{file}: target_modules: a pattern, {targets!r:.80}; list the names that it finds, '
            "['q_proj', 'v_proj'] for example"
        )
    if isinstance(targets, list):
        # Of `all-linear` PEFT writes each layer's name; that no layer lacks one, the tensors tell.
        last = (name.rpartition('.')[2] if isinstance(name, str) else str(name) for name in targets)
        targets = tuple(dict.fromkeys(last))
    fields = {'rank': data.get('r'), 'alpha': data.get('lora_alpha'), 'targets': targets}
    fields['layers'] = _last(data.get('layers_to_transform'), file)
    names = {'rank': 'r', 'alpha': 'lora_alpha', 'targets': 'target_modules'}
    return Lora(**hf_config.validated(_Written, fields, str(file), names).model_dump())


def _require_adapter(path: Path) -> None:
    """Says of a directory that is no adapter's what it is."""
    there = lambda name: files.exists(path / name)
    if there(CONFIG):
        return
    if there('config.yaml'):
        raise UserError(
            f'{path}: a run, and no adapter; `sail-jax export {path} DIR --adapter` writes that of '
            "a language model's run"
        )
    if there('config.json'):
        raise UserError(f'{path}: a model, and no adapter: it has no {CONFIG}')
    # Of those that are not its `default`, PEFT makes a directory each.
    for file in sorted(path.glob(f'*/{CONFIG}')):
        raise UserError(f'{path}: no {CONFIG}; name one of its adapters, e.g. {file.parent}')


def _last(layers: Any, file: Path) -> int | None:
    """How many layers PEFT's `layers_to_transform` names. That they are the model's last, the
    tensors tell."""
    if layers is None or layers == []:
        return None
    numbers = layers if isinstance(layers, list) else [layers]
    if not all(type(number) is int for number in numbers) or sorted(numbers) != [
        *range(min(numbers), min(numbers) + len(numbers))
    ]:
        raise UserError(
            f'{file}: layers_to_transform: {layers!r:.80}; only the last layers of a model, one '
            'after the other, are supported'
        )
    return len(numbers)
