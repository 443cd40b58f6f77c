"""Whether this process was forked from one in which JAX had begun: JAX's threads are not in it, and
what waits for them waits for ever."""

import os
import sys

without_threads = False


def _look() -> None:
    global without_threads
    bridge = sys.modules.get('jax._src.xla_bridge')
    without_threads = bridge is not None and bridge.backends_are_initialized()


os.register_at_fork(after_in_child=_look)
