"""Rotary position embedding, computed; `rope` has what configurations say of it.

`transformers` chooses the frequencies of `dynamic` and `longrope` by the longest sequence of each
batch. Here `length` chooses them, the longest sequence that a run may have: responses are drawn and
scored with the same ones, whatever batch they are in.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sail_jax.language.model.architecture import Architecture
from sail_jax.language.model.rope import Rope


class Rotation(NamedTuple):
    """How queries and keys of tokens [B, L, T] are turned."""

    angle: jax.Array
    """[B, L, T, pairs], radians."""
    scale: jax.Array | float = 1.0
    """What sines and cosines are multiplied by; a number that is 1 is not."""


def frequencies(rope: Rope, head_dim: int, length: int | None = None) -> jax.Array:
    """Radians per position of each pair of entries, float32 [pairs].

    `llama3` (Llama 3.1, section 3.2 of arXiv 2407.21783, as its configuration parametrises it):
    wavelengths above `original / low_freq_factor` are stretched by `factor`, those below
    `original / high_freq_factor` kept, and those between interpolated. `yarn`: section 3.2 of arXiv
    2309.00071, by the number of a frequency instead of its wavelength.

    Args:
      length: of the longest sequence; None is within the original length.
    """
    width, theta = rope.width(head_dim), rope.theta
    long = rope.depends_on(length)
    if rope.kind == 'dynamic' and length is not None and long:
        excess = rope.factor * length / rope.original_max_position_embeddings - (rope.factor - 1)
        theta *= excess ** (width / (width - 2))
    frequency = 1 / theta ** (jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    match rope.kind:
        case 'default' | 'dynamic':
            return frequency
        case 'linear':
            return frequency / rope.factor
        case 'longrope':
            return frequency / jnp.asarray(rope.long_factor if long else rope.short_factor)
        case 'yarn':
            keep = _kept_by_yarn(rope, width)
        case 'llama3':
            turns = rope.original_max_position_embeddings * frequency / (2 * jnp.pi)
            low, high = rope.low_freq_factor, rope.high_freq_factor
            keep = jnp.clip((turns - low) / (high - low), 0, 1)
    return frequency * (keep + (1 - keep) / rope.factor)


def _kept_by_yarn(rope: Rope, width: int) -> jax.Array:
    """How much of each frequency is as it was: 1 for the first, 0 for the last."""

    def number(turns: float) -> float:
        """Of the frequency that turns so often within the original length."""
        wavelength = rope.original_max_position_embeddings / turns
        return width * math.log(wavelength / (2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = number(rope.beta_fast), number(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    return 1 - jnp.clip((jnp.arange(width // 2, dtype=jnp.float32) - low) / (high - low), 0, 1)


class Rotary(NamedTuple):
    """The rotations of a model's layers."""

    kinds: tuple[Rope | None, ...]
    """The different ones; None does not rotate."""
    of_layers: tuple[int, ...]
    """Which of them each layer has."""
    head_dim: int
    length: int | None

    @staticmethod
    def of(architecture: Architecture, length: int | None) -> 'Rotary':
        """As of `frequencies`."""
        ropes = architecture.ropes
        kinds = tuple(dict.fromkeys(ropes))
        of_layers = tuple(map(kinds.index, ropes))
        return Rotary(kinds, of_layers, architecture.head_dim, length)

    @property
    def layers(self) -> jax.Array | None:
        """`of_layers` where there is more than one kind."""
        return jnp.asarray(self.of_layers) if len(self.kinds) > 1 else None

    def rotation(self, kind: int | jax.Array | None, positions_BxLxT: jax.Array) -> Rotation:
        """Of tokens in a layer of this kind, where there is more than one."""
        rows = [
            None if r is None else frequencies(r, self.head_dim, self.length) for r in self.kinds
        ]
        scales = [1.0 if rope is None else rope.scale for rope in self.kinds]
        some = next((row for row in rows if row is not None), jnp.zeros(self.head_dim // 2))
        rows = [jnp.zeros_like(some) if row is None else row for row in rows]
        if kind is None or isinstance(kind, int):
            return Rotation(positions_BxLxT[..., None] * rows[kind or 0], scales[kind or 0])
        scale = scales[0] if len(set(scales)) == 1 else jnp.asarray(scales, jnp.float32)[kind]
        return Rotation(positions_BxLxT[..., None] * jnp.stack(rows)[kind], scale)


def rotate(x_BxLxTxNxH: jax.Array, rotation: Rotation) -> jax.Array:
    """Of the entries that are rotated, the first half is paired with the second; in float32."""
    angle, scale = rotation
    cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
    if not (isinstance(scale, float) and scale == 1):
        cos, sin = cos * scale, sin * scale
    pairs = angle.shape[-1]
    a, b, rest = jnp.split(x_BxLxTxNxH.astype(jnp.float32), [pairs, 2 * pairs], axis=-1)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)
    return rotated.astype(x_BxLxTxNxH.dtype)
