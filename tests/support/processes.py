"""Several real processes of one run, through the command line that a pod would use."""

import os
import socket
import subprocess
import sys


def start(command, processes, devices, slurm=False, last=()):
    """Starts the processes of a run on fake devices.

    Args:
      command: what `python` is called with, before the options that join the processes.
      devices: of each process.
      last: more of the command of the last process.
      slurm: tell them of each other by SLURM's environment, and not by address.
    """
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    started = []
    for index in range(processes):
        env = {**os.environ, 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
        joint, more = [], last if index == processes - 1 else ()
        if slurm:
            joint = ['--distributed']
            env |= {
                'SLURM_JOB_ID': str(port),
                'SLURM_STEP_NODELIST': 'localhost',
                'SLURM_NTASKS': str(processes),
                'SLURM_PROCID': str(index),
                'SLURM_LOCALID': str(index),
            }
        elif processes > 1:
            joint = ['--coordinator', f'localhost:{port}', '--num-processes', str(processes)]
            joint += ['--process-id', str(index)]
        started.append(
            subprocess.Popen(
                [sys.executable, *map(str, command), *joint, *more],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def finish(processes):
    """Exit statuses and what was printed."""
    printed = [process.communicate(timeout=1200)[0] for process in processes]
    return [process.returncode for process in processes], printed
