"""How a decoder's parameters lie on a (data, fsdp, tensor) mesh.

Tensor parallelism is Megatron's (arXiv 1909.08053): the maps into heads and into the MLP's width
are split by their outputs, the maps out of them by their inputs, so that a layer needs two
reductions. FSDP splits the other axis. Adapters are split likewise, by their rank too, so that no
device holds more than its share. Layers are stacked along the first.

A family's own maps follow the names that these have, `out_proj` included; any other map of a layer
is split as one into heads.
"""

from collections.abc import Callable
from functools import partial

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sail_jax.training import devices

OUT_OF, INTO = r'layers\.(.+\.)?(o|out|down)_proj', r'layers\.(.+\.)?\w+'
MAP = '(kernel|lora_a|lora_b)'
RULES: devices.Rules = (
    (rf'{OUT_OF}\.{MAP}', P(None, 'tensor', 'fsdp')),
    (rf'{OUT_OF}\.bias', P()),
    (rf'{INTO}\.{MAP}', P(None, 'fsdp', 'tensor')),
    (r'layers\.(.+\.)?\w+_proj\.bias', P(None, 'tensor')),
    (r'embed_tokens\.embedding', P('tensor', 'fsdp')),
    (r'lm_head\.kernel', P('fsdp', 'tensor')),
)

WIDTH = ('fsdp', 'tensor')
"""The axes that matrices are split over by their width while tokens are decoded."""
DECODING: devices.Rules = (
    (rf'{OUT_OF}\.(kernel|lora_a)', P(WIDTH)),
    (rf'{OUT_OF}\.(lora_b|bias)', P()),
    (rf'{INTO}\.(kernel|lora_b)', P(None, WIDTH)),
    (r'layers\.(.+\.)?\w+_proj\.bias', P(WIDTH)),
)
"""Of one layer, for decoding: a token has so few numbers that these are exchanged, and not the
weights. `tensor` and `fsdp` are both Megatron's."""


def of_parameter(mesh: Mesh) -> Callable[[str, tuple[int, ...]], jax.sharding.NamedSharding]:
    """`(name, shape) -> layout`, as `weights.load` takes it."""
    return partial(devices.by_rules, mesh, RULES)
