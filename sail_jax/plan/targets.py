"""Accelerators that a run can be planned for: what is published of a chip, and what `h100:16x8` and
`v5e:4x4` mean. Imports nothing large: `--on` is refused, and listed, at once."""

from __future__ import annotations

import difflib
import math
import re
from typing import Literal, NamedTuple

from sail_jax.errors import UserError

GB, GIB, TERA = 10**9, 2**30, 10**12
NVIDIA = 'https://www.nvidia.com/en-us/data-center/'
GOOGLE = 'https://docs.cloud.google.com/tpu/docs/'
MAX_CHIPS = 2**14


class Chip(NamedTuple):
    """What its maker says of an accelerator."""

    name: str
    title: str
    platform: Literal['cuda', 'tpu']
    memory: int
    """Bytes."""
    bandwidth: float
    """Of the memory, bytes/s."""
    flops: float
    """Dense matrix products of bfloat16, FLOP/s."""
    float32: float
    """Matrix products in full float32, FLOP/s; of a TPU six passes of bfloat16."""
    link: float
    """To other chips of the host (NVLink), or of the slice (ICI), all links together, bytes/s each
    way."""
    network: float
    """To other hosts, a chip's share, bytes/s each way; a slice has but its links."""
    source: str

    def flops_of(self, precision: str) -> float:
        """FLOP/s of a product as a program asks for it: `bf16`, `f32`, `f32 highest`. What float32
        is rounded to unless more is asked for: TF32 on a GPU, bfloat16 on a TPU."""
        dtype, _, said = precision.partition(' ')
        if dtype not in ('f32', 'f64'):
            return self.flops
        if said in ('', 'default') and dtype == 'f32':
            return self.flops / 2 if self.platform == 'cuda' else self.flops
        if said == 'high' and dtype == 'f32':
            return self.flops / (2 if self.platform == 'cuda' else 3)
        return self.float32


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name='a100',
            title='NVIDIA A100-SXM4-80GB',
            platform='cuda',
            memory=85_097_971_712,
            bandwidth=2039 * GB,
            flops=312 * TERA,
            float32=19.5 * TERA,
            link=300 * GB,
            network=25 * GB,
            source=f'{NVIDIA}a100/',
        ),
        Chip(
            name='h100',
            title='NVIDIA H100 80GB HBM3',
            platform='cuda',
            memory=84_942_979_072,
            bandwidth=3350 * GB,
            flops=989.4 * TERA,
            float32=67 * TERA,
            link=450 * GB,
            network=50 * GB,
            source=f'{NVIDIA}h100/',
        ),
        Chip(
            name='h200',
            title='NVIDIA H200',
            platform='cuda',
            memory=150_109_880_320,
            bandwidth=4800 * GB,
            flops=989.4 * TERA,
            float32=67 * TERA,
            link=450 * GB,
            network=50 * GB,
            source=f'{NVIDIA}h200/',
        ),
        Chip(
            name='v5e',
            title='TPU v5e',
            platform='tpu',
            memory=16 * GIB,
            bandwidth=819 * GB,
            flops=197 * TERA,
            float32=197 * TERA / 6,
            link=200 * GB,
            network=200 * GB,
            source=f'{GOOGLE}v5e',
        ),
        Chip(
            name='v5p',
            title='TPU v5p',
            platform='tpu',
            memory=95 * GIB,
            bandwidth=2765 * GB,
            flops=459 * TERA,
            float32=459 * TERA / 6,
            link=600 * GB,
            network=600 * GB,
            source=f'{GOOGLE}v5p',
        ),
        Chip(
            name='v6e',
            title='TPU v6e (Trillium)',
            platform='tpu',
            memory=32 * GIB,
            bandwidth=1640 * GB,
            flops=918 * TERA,
            float32=918 * TERA / 6,
            link=400 * GB,
            network=400 * GB,
            source=f'{GOOGLE}v6e',
        ),
    )
}
THREE = ('v5p',)
"""Whose slices have three dimensions."""


class Target(NamedTuple):
    """Chips that a run would have."""

    chip: Chip
    shape: tuple[int, ...]
    """Of GPUs hosts and GPUs a host; of a TPU the slice."""

    @property
    def count(self) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Chips in all."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        shape = self.shape
        if self.chip.platform == 'cuda' and shape[0] == 1:
            shape = shape[1:]
        return f'{self.chip.name}:{"x".join(map(str, shape))}'


def parse(text: str) -> Target:
    """Reads `h100:8` (GPUs of one host), `h100:16x8` (hosts x GPUs), `v5e:4x4` (a slice).

    Raises:
      UserError: no such chip, or no such shape of it.
    """
    name, _, said = text.strip().lower().partition(':')
    chip = CHIPS.get(name)
    if chip is None:
        close = difflib.get_close_matches(name, CHIPS, 1, 0.5)
        hint = f'did you mean {close[0]}?' if close else f'known: {", ".join(CHIPS)}'
        raise UserError(f'--on {text:.80}: no chip {name!r:.40}; {hint} (--on list has them all)')
    numbers = re.fullmatch(r'\d{1,5}(x\d{1,5})*', said, re.ASCII)
    shape = tuple(map(int, said.split('x'))) if numbers else ()
    gpu, dimensions = chip.platform == 'cuda', 3 if name in THREE else 2
    if gpu and len(shape) == 1:
        shape = (1, *shape)
    if len(shape) != (2 if gpu else dimensions) or not 1 <= math.prod(shape) <= MAX_CHIPS:
        raise UserError(f'--on {text:.80}: {_forms(name, gpu, dimensions)}')
    return Target(chip, shape)


def _forms(name: str, gpu: bool, dimensions: int) -> str:
    if gpu:
        return f'expected GPUs, or hosts x GPUs, up to {MAX_CHIPS:,}: {name}:8, {name}:16x8'
    shapes = ('2x2x1', '2x2x4') if dimensions == 3 else ('2x4', '16x16')
    return f'expected a slice, up to {MAX_CHIPS:,} chips: {name}:{shapes[0]}, {name}:{shapes[1]}'


def table() -> list[list[str]]:
    """What `--on list` shows: a heading, then a line a chip."""
    lines = [['chip', 'is', 'memory', 'bandwidth', 'bfloat16', 'for example']]
    for chip in CHIPS.values():
        shapes = ('8', '16x8') if chip.platform == 'cuda' else ('2x4', '16x16')
        if chip.name in THREE:
            shapes = ('2x2x1', '2x2x4')
        lines.append(
            [
                chip.name,
                chip.title,
                f'{chip.memory / GIB:.0f} GiB',
                f'{chip.bandwidth / TERA:.2f} TB/s',
                f'{chip.flops / TERA:.0f} TFLOP/s',
                ', '.join(f'{chip.name}:{shape}' for shape in shapes),
            ]
        )
    return lines
