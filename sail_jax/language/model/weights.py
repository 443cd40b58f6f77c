"""Hugging Face checkpoint directories: read into (sharded) arrays, and written back.

Parameters keep their names there: `layers.self_attn.q_proj.kernel` [layers, in, out] is the stack
of the transposed `model.layers.{i}.self_attn.q_proj.weight` [out, in].
"""

import re
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sail_jax import files, hub
from sail_jax.errors import UserError
from sail_jax.language.model import architecture as architectures
from sail_jax.language.model import companions
from sail_jax.language.model.families import FAMILIES
from sail_jax.language.model.tensors import (
    DTYPES,
    SCORE,
    Source,
    check_tensors,
    open_safetensors,
    require_labels,
)
from sail_jax.language.model.transformer import Decoder
from sail_jax.terminal import shown
from sail_jax.training import hosts

SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
WEIGHTS: dict[str, str] = dict.fromkeys(('kernel', 'scale', 'embedding'), 'weight')
"""Parameters of another name than their tensors."""
HEAD = 'lm_head.weight'
SHARD = 5 * 10**9
"""Bytes of the largest file that is written."""
ROWS = 2**12
"""Of the output matrix that are compared at once."""

DecoderT = TypeVar('DecoderT', bound=Decoder)
ShardingOf = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
"""`(name of a parameter, its shape) -> how it lies on the devices`."""


class Place(NamedTuple):
    """Where a tensor of the checkpoint lies in ours."""

    parameter: str
    layer: int | None
    """Of a stacked parameter."""
    transposed: bool

    def shape(self, parameter_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The tensor's, given the parameter's."""
        shape = parameter_shape if self.layer is None else parameter_shape[1:]
        return shape[::-1] if self.transposed else shape


def parameters(decoder: Decoder) -> dict[str, nnx.Param]:
    """The decoder's own parameters (no adapter) by dotted name."""
    state = nnx.state(decoder, nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam)))
    return {'.'.join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def places(decoder: Decoder) -> dict[str, Place]:
    """All tensors of the checkpoint by Hugging Face's names; see `layers` and `Family`."""
    a, tensors = decoder.architecture, {}
    for parameter in parameters(decoder):
        module, _, kind = parameter.rpartition('.')
        tail = WEIGHTS.get(kind, kind)
        for layer in range(a.layers) if module.startswith('layers.') else (None,):
            name = f'{FAMILIES[a.family].module_name(module, layer)}.{tail}'
            tensors[name] = Place(parameter, layer, transposed=kind == 'kernel')
    return tensors


# parameters: those of `Decoder`, and where its arrays come from and go.
def load(
    path: str | Path,
    model: Callable[..., DecoderT] = Decoder,
    *,
    score: np.ndarray | None = None,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype | None = None,
    remat: bool = False,
    sharding: ShardingOf | None = None,
    mesh: Mesh | None = None,
) -> DecoderT:
    """Reads `config.json` and one or several `.safetensors` files.

    The files are mapped, not read: of each parameter the parts of this process's devices are copied
    out of them, each once, so the host holds those of one parameter at a time beside the model.

    Args:
      path: the directory, or a model on the hub.
      model: what is in it; see `reward_model.RewardModel`.
      score: a reward model's [D, heads], as of `read_score`; None needs the file's.
      dtype: of activations.
      param_dtype: of parameters; None keeps the file's.
      remat: see `Decoder`.
      sharding: where each parameter goes; None is the default device.
      mesh: see `Decoder`.

    Raises:
      UserError: a file that is missing or damaged; a tensor that is missing, left over, or of the
        wrong shape or type.
    """
    path = Path(path)
    architecture = architectures.read(path)  # Before its weights are downloaded.
    path = hub.local(path, hub.MODEL)
    decoder = nnx.eval_shape(
        lambda: model(architecture, rngs=nnx.Rngs(0), dtype=dtype, remat=remat, mesh=mesh)
    )
    if sharding is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        sharding = lambda name, shape: device
    with ExitStack() as stack:
        sources = _matched(decoder, _open(path, stack), path, score is not None)
        of_parameter: dict[str, list[Source]] = {}
        for name, place in places(decoder).items():
            if name in sources:
                of_parameter.setdefault(place.parameter, []).append(sources[name])
        flat = []
        for keys, variable in nnx.to_flat_state(nnx.state(decoder, nnx.Param)):
            name = '.'.join(map(str, keys))
            where = sharding(name, variable.shape)
            if name in of_parameter:
                value = _read(name, variable.shape, of_parameter[name], param_dtype, where)
            else:
                assert score is not None  # Nothing else may be missing.
                value = jax.make_array_from_callback(score.shape, where, score.__getitem__)
            flat.append((keys, variable.replace(value)))
    nnx.update(decoder, nnx.from_flat_state(flat))
    return decoder


def read_score(path: str | Path, shape: tuple[int, ...]) -> np.ndarray:
    """The matrix with which a sequence classifier scores, float32; zeros of a language model.

    Args:
      path: the checkpoint's directory.
      shape: [D, heads].

    Raises:
      UserError: as of `load`.
    """
    with ExitStack() as stack:
        path = hub.local(path, hub.MODEL)
        source = _open(path, stack).get(SCORE)
        if source is None:
            return np.zeros(shape, np.float32)
        require_labels(source, shape[1])
        check_tensors({SCORE: shape[::-1]}, {SCORE: source}, path)
        return np.asarray(source.view[:], np.float32).T


def save(
    decoder: Decoder,
    path: str | Path,
    *,
    source: str | Path | None = None,
    dtype: jnp.dtype | None = None,
    shard_bytes: int = SHARD,
) -> Path:
    """Writes a directory that `transformers` loads.

    Args:
      decoder: without an adapter; see `lora.merge`. Where it lies on the devices of several
        processes, the others call `hand_over` at the same time.
      path: a new directory.
      source: the checkpoint that the model came from: its configuration, tokeniser and chat
        template are copied. None writes a configuration alone.
      dtype: of the tensors; None keeps the parameters'.
      shard_bytes: the largest file; the host holds one file's tensors at a time.

    Raises:
      UserError: `path` exists or cannot be made; as of `companions.copy`.
    """
    path = Path(path)
    if nnx.to_flat_state(nnx.state(decoder, nnx.LoRAParam)):
        raise ValueError('the model has an adapter; save lora.merge(model)')
    with files.new_directory(path) as partial:
        fill(decoder, partial, source, dtype, shard_bytes)
    return path


def hand_over(decoder: Decoder) -> None:
    """What other processes than the first do while that one writes a decoder with `save`: each
    tensor has parts on their devices."""
    values = parameters(decoder)
    for place in places(decoder).values():
        _whole(values[place.parameter], place)


def fill(
    decoder: Decoder,
    to: Path,
    source: str | Path | None = None,
    dtype: jnp.dtype | None = None,
    shard_bytes: int = SHARD,
) -> None:
    """Writes into a directory that is there and empty; arguments and errors as of `save`."""
    config = _copy_companions(decoder, source, to)
    values = parameters(decoder)
    # A score is float32 beside weights of any type.
    types = [value for name, value in values.items() if name != 'score.kernel']
    kept = jnp.result_type(*types) if dtype is None else jnp.dtype(dtype)
    for key in {'torch_dtype', 'dtype'} & config.keys() or {'dtype'}:
        config[key] = kept.name
    files.write_json(to / 'config.json', config)

    shards, sizes = [[]], [0]
    for name, place in places(decoder).items():
        value = values[place.parameter]
        itemsize = jnp.dtype(dtype or value.dtype).itemsize
        size = int(np.prod(place.shape(value.shape))) * itemsize
        if shards[-1] and sizes[-1] + size > shard_bytes:
            shards.append([])
            sizes.append(0)
        shards[-1].append((name, place))
        sizes[-1] += size
    weight_map = {}
    for number, members in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f'model-{number:05}-of-{len(shards):05}.safetensors'
        tensors = {name: _tensor(values[place.parameter], place, dtype) for name, place in members}
        files.write_tensors(to / file, tensors)
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        index = {'metadata': {'total_size': sum(sizes)}, 'weight_map': weight_map}
        files.write_json(to / INDEX, index)


def _open(path: Path, stack: ExitStack) -> dict[str, Source]:
    """Every tensor of a checkpoint by name."""
    if (path / SINGLE).exists():
        return open_safetensors(path / SINGLE, stack)
    index = path / INDEX
    if not index.exists():
        raise UserError(f'{path}: neither {SINGLE} nor {INDEX}; other formats are not read')
    weight_map = files.read_json(index).get('weight_map')
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f'{index}: weight_map: expected an object of tensor names and files')
    opened, sources = {}, {}
    for name, file in weight_map.items():
        # A name alone: an index must not reach outside its directory.
        if not isinstance(file, str) or not re.fullmatch(r'[\w.-]+\.safetensors', file):
            raise UserError(
                f'{index}: {shown(name)}: {file!r:.80}: expected a .safetensors file of this '
                'directory'
            )
        if file not in opened:
            opened[file] = open_safetensors(path / file, stack)
        if name not in opened[file]:
            raise UserError(f'{index}: {shown(name)}: not in {file}')
        sources[name] = opened[file][name]
    return sources


def _matched(
    decoder: Decoder, sources: dict[str, Source], path: Path, scored: bool
) -> dict[str, Source]:
    """The tensors by the names that `places` has, without what is superfluous by design.

    Args:
      scored: whether a reward model has its score from elsewhere.

    Raises:
      UserError: they do not fit.
    """
    family = FAMILIES[decoder.architecture.family]
    embedding = f'{family.module_name("embed_tokens")}.weight'
    # The base model alone, as `AutoModel` saves it, has its tensors without the prefix.
    if embedding not in sources and embedding.removeprefix('model.') in sources:
        apart = ('lm_head.', 'score.')
        sources = {
            name if name.startswith(apart) else f'model.{name}': source
            for name, source in sources.items()
        }
    expected, values = places(decoder), parameters(decoder)
    # Constants that old Llama checkpoints carry.
    sources = {
        name: source
        for name, source in sources.items()
        if name in expected or not name.endswith('.rotary_emb.inv_freq')
    }
    if HEAD in expected and HEAD not in sources and expected.keys() - {HEAD} == sources.keys():
        raise UserError(
            f'{path}: no {HEAD}, and config.json has tie_word_embeddings: false (where it is left '
            'out, too); set it to true if the embedding is the output matrix as well'
        )
    if SCORE in expected and HEAD in sources:
        if SCORE not in sources and not scored:
            raise UserError(
                f'{path}: a language model, not a reward model: it has {HEAD} and no {SCORE} (in '
                'transformers, AutoModelForSequenceClassification with num_labels=1)'
            )
        del sources[HEAD]  # Of the language model that it was made from; its function has none.
    if scored:
        del expected[SCORE]
        sources.pop(SCORE, None)
    if decoder.architecture.tied and HEAD in sources and embedding in sources:
        _require_same_head(sources[embedding], sources.pop(HEAD), embedding)
    shapes = {name: place.shape(values[place.parameter].shape) for name, place in expected.items()}
    if SCORE in shapes and SCORE in sources:
        require_labels(sources[SCORE], shapes[SCORE][0])
    check_tensors(shapes, sources, path)
    return sources


def _require_same_head(embedding: Source, head: Source, name: str) -> None:
    """A tied matrix, the embedding of this name, may be written twice, but with the same values."""
    shapes = [tuple(source.view.get_shape()) for source in (embedding, head)]
    types = {source.view.get_dtype() for source in (embedding, head)}
    how = f'shapes {shapes[0]} and {shapes[1]}'
    if len(shapes[0]) == 2 and shapes[0] == shapes[1] and types <= DTYPES.keys():
        blocks = [slice(i, min(i + ROWS, shapes[0][0])) for i in range(0, shapes[0][0], ROWS)]
        apart, largest = 0.0, 0.0
        # Of several processes, which all read the model, each compares its part.
        for rows in blocks[jax.process_index() :: jax.process_count()]:
            a, b = (np.asarray(source.view[rows], np.float32) for source in (embedding, head))
            if not np.array_equal(a, b):
                apart = np.maximum(apart, np.abs(a - b).max())
            largest = np.maximum(largest, np.abs(a).max())
        if apart == 0:
            return
        how = f'apart by up to {apart / largest:.2g} of the largest entry'
    raise UserError(
        f'{head.file}: {HEAD} is not {name} ({how}), but config.json has '
        'tie_word_embeddings: true; set it to false if the model has an output matrix of its own'
    )


def _read(
    name: str,
    shape: tuple[int, ...],
    sources: list[Source],
    param_dtype: jnp.dtype | None,
    sharding: jax.sharding.Sharding,
) -> jax.Array:
    """One parameter, the part of each device of this process straight from the file."""
    stacked, transposed = name.startswith('layers.'), name.endswith('.kernel')
    dtype = jnp.result_type(*[DTYPES[source.view.get_dtype()] for source in sources])
    dtype = param_dtype or dtype

    @cache  # Devices may hold the same part.
    def part(*bounds: tuple[int, int]) -> np.ndarray:
        """Of the entries between a start and a stop for each axis."""
        ranges = [slice(*bound) for bound in bounds]
        layers, inner = (ranges[0], ranges[1:]) if stacked else (slice(0, 1), ranges)
        size = [r.stop - r.start for r in inner]
        out = np.empty((layers.stop - layers.start, *size), dtype)
        for row, source in zip(out, sources[layers], strict=True):
            tensor = source.view[tuple(inner[::-1] if transposed else inner)]
            row[...] = tensor.T if transposed else tensor
        return out if stacked else out[0]

    def part_of(index: Any) -> np.ndarray:
        return part(*(s.indices(size)[:2] for s, size in zip(index, shape, strict=True)))

    return jax.make_array_from_callback(shape, sharding, part_of)


def _tensor(value: nnx.Param, place: Place, dtype: jnp.dtype | None) -> np.ndarray:
    array = _whole(value, place)
    array = array.T if place.transposed else array
    return np.ascontiguousarray(array, dtype=dtype or array.dtype)


def _whole(value: nnx.Param, place: Place) -> np.ndarray:
    """A tensor as it lies in its parameter, on the host."""
    array = value[...]
    if place.layer is not None:
        array = jax.lax.dynamic_index_in_dim(array, place.layer, keepdims=False)
    return np.asarray(hosts.whole(array))


def _copy_companions(decoder: Decoder, source: str | Path | None, to: Path) -> dict[str, Any]:
    """Copies tokeniser and chat template; returns the configuration to write, without what is not
    true of the export: the place of the model's own code, and a base model's class."""
    if source is None:
        return architectures.to_hf(decoder.architecture) | decoder.own_keys()
    source = hub.local(source, hub.CONFIG)
    read = architectures.read(source)
    if read.model_copy(update={'tied': decoder.architecture.tied}) != decoder.architecture:
        raise ValueError(f'the model is not of the architecture of {source}')
    companions.copy(source, to)
    config = files.read_json(source / 'config.json')
    for key in ('auto_map', 'quantization_config', 'compression_config'):
        config.pop(key, None)
    return config | decoder.own_keys()
