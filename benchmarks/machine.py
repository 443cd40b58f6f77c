"""What figures were measured on."""

import os
import platform
import shlex
import sys
import time
from typing import Any

import jax

from sail_jax import trainer


def machine(module: str) -> dict[str, Any]:
    """Device, versions, date, and the command line of the benchmark `module`."""
    device = jax.devices()[0]
    return {
        'device': f'{len(jax.devices())} x {device.device_kind}',
        'platform': device.platform,
        'cpu_cores': os.cpu_count(),
        'processor': platform.machine(),
        'versions': trainer.versions(),
        'date': time.strftime('%Y-%m-%d'),
        'command': shlex.join(['python', '-m', module, *sys.argv[1:]]),
    }
