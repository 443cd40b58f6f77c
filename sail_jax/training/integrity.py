"""Whether what is read is what was saved: fingerprints of arrays, a checksum of the JSON.

They find every single flipped bit, and most other damage: two flipped signs of one array they do
not see. They are no protection against an attacker.
"""

import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp


@jax.jit
def _fingerprint(tree: Any) -> jax.Array:
    def one(x: jax.Array) -> jax.Array:
        kind = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
        bits = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, kind)
        if bits.ndim > x.ndim:  # The two halves of 64 bits.
            bits = bits.sum(-1, dtype=kind)
        # Each entry's number in the whole array, without laying that out in a row: where it is
        # split, every device would need all of it.
        number = jnp.uint32(0)
        for axis, size in enumerate(x.shape):
            number = number * size + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        # Odd weights: no flip of a single bit goes unseen.
        return (bits.astype(jnp.uint32) * (2 * number + 1)).sum(dtype=jnp.uint32)

    parts = [one(x) for x in jax.tree.leaves(tree)]
    return (jnp.stack(parts) * (2 * jnp.arange(len(parts), dtype=jnp.uint32) + 1)).sum(
        dtype=jnp.uint32
    )


def fingerprint(tree: Any) -> int:
    """32 bits that depend on every bit of the arrays; computed where they lie.

    The files have checksums of their own for their structure, but not for all of their content.
    """
    return int(_fingerprint(tree))


def checksum(meta: dict[str, Any]) -> int:
    """Of the JSON of a checkpoint."""
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def verify(meta: dict[str, Any], item: str, tree: Any) -> None:
    """Raises ValueError where the arrays of an item are not those that were saved."""
    if fingerprint(tree) != meta['fingerprints'][item]:
        raise ValueError(f'{item} is not what was saved: a flipped bit on the disk, or another one')


def verify_score(metrics: dict[str, Any]) -> dict[str, float]:
    """The score of a checkpoint; those of before have no checksum of it.

    Raises:
      ValueError, TypeError, LookupError: it is not what was saved.
    """
    content = {'score': metrics['score']}
    if metrics.get('checksum', checksum(content)) != checksum(content):
        raise ValueError('the score is not what was saved')
    return {'score': float(content['score'])}


def verify_meta(meta: dict[str, Any], schema: int) -> dict[str, Any]:
    """The same, if it is what was saved.

    Args:
      schema: the present one; checkpoints of older ones may have no checksum.

    Raises:
      ValueError: it is not.
    """
    content = {key: value for key, value in meta.items() if key != 'checksum'}
    has_one = 'checksum' in meta or meta['schema'] == schema
    if has_one and checksum(content) != meta.get('checksum'):
        raise ValueError('meta is not what was saved: a bit was flipped on the disk')
    return meta
