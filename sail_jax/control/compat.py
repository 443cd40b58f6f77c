"""Mends what Brax 0.14.2 needs on today's JAX, and silences its known lines of noise.

Imported before any other use of Brax. Delete a part when its reason is gone:

* `jax.device_put_replicated` was removed in jax 0.10; `brax.training` calls it.
* `jnp.clip(a_min=...)` was removed in jax 0.10; `brax.fluid` (swimmer) calls it.
* `brax.training.checkpoint` cannot read back the `null` that it writes for an initialiser that was
  not given, so no PPO checkpoint made with the default networks loads.
* `mujoco.mjx` lays models on the first device of all processes, which the others cannot read.
* `mujoco.mjx` prints that the optional warp is missing.
* `brax.io.mjcf` warns that Brax's environments are not maintained, at every load.
"""

import contextlib
import io
import types
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_printed = io.StringIO()
with contextlib.redirect_stdout(_printed):
    import mujoco.mjx.warp  # noqa: F401
for _line in _printed.getvalue().splitlines():
    if not _line.startswith(('Failed to import warp', 'Failed to import mujoco_warp')):
        print(_line)

warnings.filterwarnings('ignore', message='Brax System, piplines and environments are not')

import brax.fluid  # noqa: E402
import brax.training.networks  # noqa: E402
import mujoco.mjx._src.io as mjx_io  # noqa: E402


def _device_put_replicated(x: Any, devices: Sequence[Any]) -> Any:
    sharding = NamedSharding(Mesh(list(devices), ('i',)), PartitionSpec('i'))
    stack = lambda leaf: jnp.broadcast_to(leaf, (len(devices), *jnp.shape(leaf)))
    return jax.device_put(jax.tree.map(stack, x), sharding)


if not hasattr(jax, 'device_put_replicated'):
    jax.device_put_replicated = _device_put_replicated


class _Numpy(types.ModuleType):
    """`jax.numpy` whose `clip` still takes `a_min`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(jnp, name)

    def clip(self, x: jax.Array, a_min: jax.typing.ArrayLike) -> jax.Array:
        return jnp.maximum(x, a_min)


brax.fluid.jp = _Numpy('jax.numpy')


class _Local(types.ModuleType):
    """`jax` in which `devices` are this process's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(jax, name)

    def devices(self, backend: str | None = None) -> list[Any]:
        return jax.local_devices(backend=backend)


mjx_io.jax = _Local('jax')

initializers: dict[Any, Any] = brax.training.networks.KERNEL_INITIALIZER
initializers.setdefault(None, None)
