"""Programs whose operations, bytes and rounds one works out by hand, compiled for a target.

python -m tests.support.compiled    records tests/plan/texts anew, where the compilers are
"""

from typing import Any

from tests.support.paths import ROOT

TEXTS = ROOT / 'tests' / 'plan' / 'texts'
TARGETS = {'cuda': 'h100:2x4', 'tpu': 'v5e:2x4'}
AXES = {'data': 2, 'fsdp': 4, 'tensor': 1}
ROWS, WIDTH, LAYERS, SLOTS, MOST = 4096, 1024, 7, 16, 100
"""Of a batch, of a layer, layers, slots of a buffer, rounds of a loop that may end early."""


def programs(mesh: Any) -> dict[str, tuple[Any, tuple[Any, ...], tuple[int, ...]]]:
    """By name: function, abstract arguments, numbers of the arguments that are donated."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    def array(shape, *axes, dtype=jnp.bfloat16):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    rows = array((8 * ROWS, WIDTH), ('data', 'fsdp'))
    matrix, matrices = array((WIDTH, WIDTH)), array((LAYERS, WIDTH, WIDTH))
    split = array((LAYERS, WIDTH, WIDTH), None, 'fsdp')
    wide = array((8 * ROWS, WIDTH), ('data', 'fsdp'), dtype=jnp.float32)
    buffer = array((SLOTS, ROWS, WIDTH), dtype=jnp.float32)
    slot = array((ROWS, WIDTH), dtype=jnp.float32)

    def matmul(x, w):
        return x @ w

    def scan(x, ws):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

    def all_reduce(x):
        return x.sum(0)

    def in_place(buffer, x):
        def write(buffer, i):
            return jax.lax.dynamic_update_index_in_dim(buffer, x * i, i, 0), None

        return jax.lax.scan(write, buffer, jnp.arange(SLOTS))[0]

    def early(x, w):
        def going_on(carry):
            return (carry[0] < MOST) & (carry[1].sum() > 0)

        return jax.lax.while_loop(going_on, lambda c: (c[0] + 1, jnp.tanh(c[1] @ w)), (0, x))

    def handed_on(x, w):
        number, x = early(x, w)

        def going_on(carry):
            return (carry[0] < MOST) & (carry[1].max() > 0)

        half = x[: 4 * ROWS]
        return jax.lax.while_loop(going_on, lambda c: (c[0] + 1, jnp.sin(c[1] @ w)), (number, half))

    return {
        'matmul': (matmul, (rows, matrix), ()),
        'scan': (scan, (rows, matrices), ()),
        'gathered': (scan, (rows, split), ()),
        'all_reduce': (all_reduce, (wide,), ()),
        'in_place': (in_place, (buffer, slot), (0,)),
        'early': (early, (rows, matrix), ()),
        'handed_on': (handed_on, (rows, matrix), ()),
    }


def texts(platform: str) -> dict[str, str]:
    """What the platform's compiler makes of them."""
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from sail_jax.plan import targets, topology

    devices = topology.devices(targets.parse(TARGETS[platform]))
    mesh = Mesh(np.asarray(devices).reshape(tuple(AXES.values())), tuple(AXES))
    return {
        name: jax.jit(function, donate_argnums=donated).lower(*arguments).compile().as_text()
        for name, (function, arguments, donated) in programs(mesh).items()
    }


if __name__ == '__main__':
    for platform in TARGETS:
        for name, text in texts(platform).items():
            (TEXTS / f'{platform}-{name}.txt').write_text(text.replace(str(ROOT), ''))
