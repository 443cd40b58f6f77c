"""Hugging Face checkpoint directories: read into (sharded) arrays, and written back.

Parameters keep their names there: `layers.self_attn.q_proj.kernel` [layers, in, out] is the stack
of the transposed `model.layers.{i}.self_attn.q_proj.weight` [out, in].
"""

import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sail_jax import files
from sail_jax.errors import UserError
from sail_jax.language import architecture as architectures
from sail_jax.language.model import Decoder
from sail_jax.language.tokens import MAX_TOKENIZER

DTYPES = {'F32': jnp.float32, 'BF16': jnp.bfloat16, 'F16': jnp.float16}
SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
MAX_COMPANIONS = 2**30
"""Bytes that are copied beside configuration and weights."""

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


class Source(NamedTuple):
    """A tensor in a mapped file."""

    file: Path
    view: Any
    """Reads what it is indexed with."""


def parameters(decoder: Decoder) -> dict[str, nnx.Param]:
    """The decoder's own parameters (no adapter) by dotted name."""
    state = nnx.state(decoder, nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam)))
    return {'.'.join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def places(decoder: Decoder) -> dict[str, Place]:
    """All tensors of the checkpoint by Hugging Face's names."""
    found = {}
    for parameter in parameters(decoder):
        module, _, kind = parameter.rpartition('.')
        tail = 'bias' if kind == 'bias' else 'weight'
        transposed = kind == 'kernel'
        if module.startswith('layers.'):
            for layer in range(decoder.architecture.layers):
                name = f'model.layers.{layer}.{module.removeprefix("layers.")}.{tail}'
                found[name] = Place(parameter, layer, transposed)
        else:
            prefix = '' if module in ('lm_head', 'score') else 'model.'
            found[f'{prefix}{module}.{tail}'] = Place(parameter, None, transposed)
    return found


def load(
    path: str | Path,
    model: type[DecoderT] = Decoder,
    *,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype | None = None,
    remat: bool = False,
    sharding: ShardingOf | None = None,
    mesh: Mesh | None = None,
) -> DecoderT:
    """Reads `config.json` and one or several `.safetensors` files.

    The files are mapped, not read: each device's part of each parameter is copied out of them by
    itself, so the host holds one parameter at a time beside the model.

    Args:
      path: the directory.
      model: what is in it; see `rewards.RewardModel`.
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
    architecture = architectures.read(path)
    decoder = nnx.eval_shape(
        lambda: model(architecture, rngs=nnx.Rngs(0), dtype=dtype, remat=remat, mesh=mesh)
    )
    if sharding is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        sharding = lambda name, shape: device  # noqa: E731
    with ExitStack() as stack:
        sources = _open(path, stack)
        _check(decoder, sources, path)
        of_parameter: dict[str, list[Source]] = {}
        for name, place in places(decoder).items():
            of_parameter.setdefault(place.parameter, []).append(sources[name])
        flat = []
        for keys, variable in nnx.to_flat_state(nnx.state(decoder, nnx.Param)):
            name = '.'.join(map(str, keys))
            where = sharding(name, variable.shape)
            value = _read(name, variable.shape, of_parameter[name], param_dtype, where)
            flat.append((keys, variable.replace(value)))
    nnx.update(decoder, nnx.from_flat_state(flat))
    return decoder


def save(
    decoder: Decoder,
    path: str | Path,
    *,
    source: str | Path | None = None,
    dtype: jnp.dtype | None = None,
    shard_bytes: int = 5 * 10**9,
) -> Path:
    """Writes a directory that `transformers` loads.

    Args:
      decoder: without an adapter; see `lora.merge`.
      path: a new directory.
      source: the checkpoint that the model came from: its configuration, tokeniser and chat
        template are copied. None writes a configuration alone.
      dtype: of the tensors; None keeps the parameters'.
      shard_bytes: the largest file; the host holds one file's tensors at a time.

    Raises:
      UserError: `path` exists or cannot be made; as of `copy_tokenizer`.
    """
    path = Path(path)
    if nnx.to_flat_state(nnx.state(decoder, nnx.LoRAParam)):
        raise ValueError('the model has an adapter; save lora.merge(model)')
    with files.new_directory(path) as partial:
        _save(decoder, partial, source, dtype, shard_bytes)
    return path


def _save(
    decoder: Decoder,
    to: Path,
    source: str | Path | None,
    dtype: jnp.dtype | None,
    shard_bytes: int,
) -> None:
    """Fills a directory; arguments as of `save`."""
    config = _copy_companions(decoder, source, to)
    values = parameters(decoder)
    kept = jnp.result_type(*values.values()) if dtype is None else jnp.dtype(dtype)
    config['torch_dtype' if 'torch_dtype' in config else 'dtype'] = kept.name
    write_json(to / 'config.json', config)

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
        save_file(tensors, to / file, metadata={'format': 'pt'})
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        index = {'metadata': {'total_size': sum(sizes)}, 'weight_map': weight_map}
        write_json(to / INDEX, index)


def check_tensors(
    expected: dict[str, tuple[int, ...]], sources: dict[str, Source], path: Path
) -> None:
    """Holds tensors against the names and shapes that they should have.

    Raises:
      UserError: naming the first few that are missing or left over, or the first of another shape
        or of no floating-point type.
    """
    missing, extra = expected.keys() - sources.keys(), sources.keys() - expected.keys()
    for what, names in (('missing', missing), ('that the model does not have', extra)):
        if names:
            some = ', '.join(sorted(names)[:3]) + (', ...' if len(names) > 3 else '')
            raise UserError(f'{path}: tensors {what}: {some} ({len(names)} in all)')
    for name, shape in expected.items():
        file, view = sources[name]
        if (theirs := tuple(view.get_shape())) != shape:
            raise UserError(f'{file}: {name}: shape {theirs}; the configuration needs {shape}')
        if (dtype := view.get_dtype()) not in DTYPES:
            raise UserError(f'{file}: {name}: type {dtype}; expected {", ".join(DTYPES)}')


def open_safetensors(file: Path, stack: ExitStack) -> dict[str, Source]:
    """A mapped file's tensors by name; closed with the stack.

    Raises:
      UserError: if it cannot be opened, or its header is damaged.
    """
    try:
        handle = stack.enter_context(safe_open(file, framework='numpy'))
        return {name: Source(file, handle.get_slice(name)) for name in handle.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f'{file}: No such file or directory') from None
    except (SafetensorError, OSError) as error:
        raise UserError(f'{file}: not a readable safetensors file ({error})') from None


def _open(path: Path, stack: ExitStack) -> dict[str, Source]:
    """Every tensor of a checkpoint by name."""
    if (path / SINGLE).exists():
        return open_safetensors(path / SINGLE, stack)
    index = path / INDEX
    if not index.exists():
        raise UserError(f'{path}: neither {SINGLE} nor {INDEX}; other formats are not read')
    weight_map = architectures.read_json(index).get('weight_map')
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f'{index}: weight_map: expected an object of tensor names and files')
    opened, sources = {}, {}
    for name, file in weight_map.items():
        # A name alone: an index must not reach outside its directory.
        if not isinstance(file, str) or not re.fullmatch(r'[\w.-]+\.safetensors', file):
            raise UserError(
                f'{index}: {name}: {file!r:.80}: expected a .safetensors file of this directory'
            )
        if file not in opened:
            opened[file] = open_safetensors(path / file, stack)
        if name not in opened[file]:
            raise UserError(f'{index}: {name}: not in {file}')
        sources[name] = opened[file][name]
    return sources


def _check(decoder: Decoder, sources: dict[str, Source], path: Path) -> None:
    """Removes what is superfluous by design, and refuses a checkpoint that does not fit."""
    expected, values = places(decoder), parameters(decoder)
    extra = [name for name in sources if name not in expected]
    for name in extra:
        # Constants that old Llama checkpoints carry, and a tied matrix that was written twice.
        twice = name == 'lm_head.weight' and _equal(name, 'model.embed_tokens.weight', sources)
        if twice or name.endswith('.rotary_emb.inv_freq'):
            del sources[name]
    shapes = {name: place.shape(values[place.parameter].shape) for name, place in expected.items()}
    check_tensors(shapes, sources, path)


def _equal(name: str, other: str, sources: dict[str, Source]) -> bool:
    if other not in sources:
        return False
    a, b = sources[name].view, sources[other].view
    same = a.get_shape() == b.get_shape() and a.get_dtype() == b.get_dtype()
    return same and np.array_equal(a[:], b[:])


def _read(
    name: str,
    shape: tuple[int, ...],
    sources: list[Source],
    param_dtype: jnp.dtype | None,
    sharding: jax.sharding.Sharding,
) -> jax.Array:
    """One parameter, each device's part straight from the file."""
    stacked, transposed = name.startswith('layers.'), name.endswith('.kernel')
    dtype = jnp.result_type(*[DTYPES[source.view.get_dtype()] for source in sources])
    dtype = param_dtype or dtype

    def part(index: tuple[slice, ...]) -> np.ndarray:
        ranges = [slice(*s.indices(size)[:2]) for s, size in zip(index, shape, strict=True)]
        layers, inner = (ranges[0], ranges[1:]) if stacked else (slice(0, 1), ranges)
        size = [r.stop - r.start for r in inner]
        out = np.empty((layers.stop - layers.start, *size), dtype)
        for row, source in zip(out, sources[layers], strict=True):
            tensor = source.view[tuple(inner[::-1] if transposed else inner)]
            row[...] = tensor.T if transposed else tensor
        return out if stacked else out[0]

    return jax.make_array_from_callback(shape, sharding, part)


def _tensor(value: nnx.Param, place: Place, dtype: jnp.dtype | None) -> np.ndarray:
    array = value[...]
    if place.layer is not None:
        array = jax.lax.dynamic_index_in_dim(array, place.layer, keepdims=False)
    array = np.asarray(array)
    array = array.T if place.transposed else array
    return np.ascontiguousarray(array, dtype=dtype or array.dtype)


def _copy_companions(decoder: Decoder, source: str | Path | None, to: Path) -> dict[str, Any]:
    """Copies tokeniser and chat template; returns the configuration to write."""
    if source is None:
        return architectures.to_hf(decoder.architecture)
    source = Path(source)
    if architectures.read(source) != decoder.architecture:
        raise ValueError(f'the model is not of the architecture of {source}')
    copy_tokenizer(source, to)
    return architectures.read_json(source / 'config.json')


def copy_tokenizer(source: Path, to: Path) -> None:
    """Copies the files that lie in a checkpoint beside its configuration and weights.

    Raises:
      UserError: they are absurdly large, or cannot be read.
    """
    companions = [file for file in sorted(source.iterdir()) if _is_companion(file)]
    if (size := sum(file.stat().st_size for file in companions)) > MAX_COMPANIONS:
        raise UserError(
            f'{source}: {size} bytes in files beside the weights ({companions[0].name}, ...); '
            f'at most {MAX_COMPANIONS}'
        )
    for file in companions:
        (to / file.name).write_bytes(files.read(file, MAX_TOKENIZER))


def _is_companion(file: Path) -> bool:
    apart = file.name == 'config.json' or file.name.endswith('.index.json')
    known = file.suffix in ('.json', '.jinja', '.model', '.txt')
    return known and not apart and file.is_file()  # Neither devices nor pipes, by link or itself.


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Indented, as these files are."""
    path.write_text(json.dumps(data, indent=2) + '\n')
