"""Tensors in safetensors files: opened, and held against the names and shapes they should have."""

import re
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from safetensors import SafetensorError, safe_open

from sail_jax import files
from sail_jax.errors import UserError, one_line
from sail_jax.terminal import shown

DTYPES = {'F32': jnp.float32, 'BF16': jnp.bfloat16, 'F16': jnp.float16, 'F64': jnp.float32}
"""What tensors of these types are read as."""
SCORE = 'score.weight'
"""The head of a reward model."""
# How libraries of quantisation name what stands beside or in the place of a weight.
QUANTISED = re.compile(
    r'\.(qweight|qzeros|scales|g_idx|SCB|weight_(scale|packed|shape|zero_point)\w*'
    r'|input_scale|weight\.(absmax|quant_|nested_)[\w.]*)$'
)
SMALL = ('F8_', 'F6_', 'F4', 'I8', 'U8')


class Source(NamedTuple):
    """A tensor in a mapped file."""

    file: Path
    view: Any
    """Reads what it is indexed with."""


def check_tensors(
    expected: dict[str, tuple[int, ...]], sources: dict[str, Source], path: Path
) -> None:
    """Holds tensors against the names and shapes that they should have.

    Raises:
      UserError: naming the first few that are missing or left over, or the first of another shape
        or of no floating-point type.
    """
    missing, extra = expected.keys() - sources.keys(), sources.keys() - expected.keys()
    if quantised := sorted(name for name in extra if QUANTISED.search(name)):
        raise UserError(
            f'{path}: {shown(quantised[0])}: quantised weights are not read; save the dequantised '
            'model (in transformers, model.dequantize())'
        )
    if SCORE in extra:
        raise UserError(
            f'{path}: a reward model, not a language model: it has {SCORE}; reward.path takes it, '
            'and what writes text is the model that it was made from'
        )
    if missing:
        instead = f'; there is {_some(extra)}' if extra else ''
        raise UserError(
            f'{path}: tensors missing: {_some(missing)} ({len(missing)} in all){instead}'
        )
    if extra:
        raise UserError(
            f'{path}: tensors that the model does not have: {_some(extra)} ({len(extra)} in all)'
        )
    for name, shape in expected.items():
        file, view = sources[name]
        if (actual := tuple(view.get_shape())) != shape:
            raise UserError(f'{file}: {name}: shape {actual}; the configuration needs {shape}')
        if (dtype := view.get_dtype()) not in DTYPES:
            why = '; quantised weights are not read' if dtype.startswith(SMALL) else ''
            raise UserError(f'{file}: {name}: type {dtype}; expected {", ".join(DTYPES)}{why}')


def require_labels(score: Source, heads: int) -> None:
    """Refuses a classifier of other labels, which are no rewards.

    Raises:
      UserError: naming its labels and how many there should be.
    """
    shape = tuple(score.view.get_shape())
    if len(shape) == 2 and shape[0] != heads:
        raise UserError(
            f'{score.file}: {SCORE}: {shape[0]} labels; expected {heads}: a reward model has one '
            '(num_labels=1), an ensemble trained here those that config.json names reward_0, '
            'reward_1, ...'
        )


def _some(names: Collection[str]) -> str:
    return ', '.join(map(shown, sorted(names)[:3])) + (', ...' if len(names) > 3 else '')


def open_safetensors(file: Path, stack: ExitStack) -> dict[str, Source]:
    """A mapped file's tensors by name; closed with the stack.

    Raises:
      UserError: if it cannot be opened or is no regular file, or its header is damaged.
    """
    files.check(file)
    try:
        handle = stack.enter_context(safe_open(file, framework='numpy'))
        return {name: Source(file, handle.get_slice(name)) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f'{file}: not a readable safetensors file ({shown(one_line(error), 200)})'
        ) from None
