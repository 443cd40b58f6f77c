"""Loads a checkpoint onto the devices of several processes, and says what this one read of it.

python -m tests.support.reads CHECKPOINT
    --coordinator HOST:PORT --num-processes N --process-id I
"""

import json
import math
import sys
from pathlib import Path

import jax

from sail_jax.config import Devices
from sail_jax.language.model import sharding, weights
from sail_jax.training import devices, hosts
from tests.support.counted import copied
from tests.support.resident import peak

checkpoint, _, coordinator, _, count, _, index = sys.argv[1:]
hosts.start(coordinator, int(count), int(index))
read = copied()
mesh = devices.make_mesh(8, Devices(data=1, fsdp=4, tensor=2))
with peak() as most:
    model = weights.load(checkpoint, sharding=sharding.of_parameter(mesh))
    jax.block_until_ready(model)
distinct, largest = 0, 0
for parameter in weights.parameters(model).values():
    array: jax.Array = parameter[...]
    shards = {str(shard.index): shard.data.nbytes for shard in array.addressable_shards}
    distinct += sum(shards.values())
    largest = max(largest, math.prod(array.shape[-2:]) * array.dtype.itemsize)
size = (Path(checkpoint) / weights.SINGLE).stat().st_size
found = {'read': sum(read), 'distinct': distinct, 'largest_tensor': largest, 'file': size}
print(json.dumps(found | {'held': most[0]}))
