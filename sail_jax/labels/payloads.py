"""What a question compares, as bytes, and as the page gets it.

Two kinds: `segments`, two pieces of behaviour, safetensors; `responses`, two texts after a prompt,
JSON. Axes: T env steps, L links, O observation, A action.
"""

import base64
import json
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from sail_jax.errors import UserError

KINDS = 'segments', 'responses'


class SegmentPair(NamedTuple):
    """Two segments, float32; from one state, but for those of soft actor-critic."""

    obs: np.ndarray
    """Before each step, [2, T, O]."""
    action: np.ndarray
    """What the environment was given, [2, T, A]."""
    mask: np.ndarray
    """1 for steps that happened, [2, T]."""
    pose: np.ndarray
    """Positions and rotations (w, x, y, z) of the links, [2, T + 1, L, 7]."""


def pack_segments(pair: SegmentPair) -> bytes:
    """The same bytes for the same numbers."""
    arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in pair._asdict().items()}
    return safetensors.numpy.save(arrays)


def unpack_segments(payload: bytes) -> SegmentPair:
    """Raises:
    UserError: it is none; its arrays do not fit each other.
    """
    try:
        arrays = safetensors.numpy.load(payload)
    except safetensors.SafetensorError as error:
        raise UserError(f'no segments: {error}') from None
    if set(arrays) != set(SegmentPair._fields):
        raise UserError(f'no segments: arrays {", ".join(sorted(arrays))!r:.80}')
    pair = SegmentPair(**arrays)
    if pair.mask.ndim != 2 or pair.mask.shape[0] != 2:
        raise UserError(f'segments: mask of shape {pair.mask.shape}; expected (2, T)')
    T = pair.mask.shape[1]
    lead = {'obs': (2, T), 'action': (2, T), 'mask': (2, T), 'pose': (2, T + 1)}
    for name, array in arrays.items():
        rank = {'pose': 4, 'mask': 2}.get(name, 3)
        if array.shape[:2] != lead[name] or array.ndim != rank or array.dtype != np.float32:
            raise UserError(f'segments: {name} is {array.dtype} of shape {array.shape}, T is {T}')
    if pair.pose.shape[3] != 7:
        raise UserError(f'segments: pose of shape {pair.pose.shape}; expected (..., 7)')
    return pair


class ResponsePair(NamedTuple):
    """Two responses to one prompt."""

    prompt: str
    """As people read it."""
    responses: tuple[str, str]
    turns: tuple[tuple[str, str], ...] | None = None
    """Of a prompt that is a conversation, role and content of each; None of plain text."""


def pack_responses(pair: ResponsePair) -> bytes:
    """The texts as they are."""
    return json.dumps(pair._asdict()).encode()


def unpack_responses(payload: bytes) -> ResponsePair:
    """Raises:
    UserError: it is none.
    """
    try:
        data = json.loads(payload)
        prompt, (first, second), turns = data['prompt'], data['responses'], data.get('turns')
        turns = turns if turns is None else tuple((role, content) for role, content in turns)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f'no responses: {type(error).__name__}') from None
    texts = (prompt, first, second, *(text for turn in turns or () for text in turn))
    if not all(isinstance(text, str) for text in texts):
        raise UserError('no responses: expected texts')
    return ResponsePair(prompt, (first, second), turns)


def for_page(kind: str, payload: bytes, turned: bool) -> dict[str, Any]:
    """What the page draws or writes, as JSON has it.

    Raises:
      UserError: it is no payload of that kind.
    """
    if kind == 'responses':
        prompt, sides, _ = unpack_responses(payload)
        return {'prompt': prompt, 'sides': sides[::-1] if turned else sides}
    pair = unpack_segments(payload)
    sides = [_moving(pair.pose[i], pair.mask[i]) for i in (0, 1)]
    return {'sides': sides[::-1] if turned else sides}


def _moving(pose_TxLx7: np.ndarray, mask_T: np.ndarray) -> dict[str, Any]:
    """A segment up to its end, its start included."""
    steps = int(mask_T.sum())
    frames = np.asarray(pose_TxLx7[: steps + 1], '<f4').tobytes()
    return {'steps': steps, 'poses': base64.b64encode(frames).decode('ascii')}
