"""Which GPUs of its host a process sees, and which of them are its own."""

import os
import re
from collections.abc import Mapping


def visible(environment: Mapping[str, str] = os.environ) -> int:
    """How many the process sees: those that CUDA_VISIBLE_DEVICES lists, or all that the NVIDIA
    driver has."""
    listed = environment.get('CUDA_VISIBLE_DEVICES')
    if listed is not None:
        return sum(name.strip() not in ('', '-1', 'NoDevFiles') for name in listed.split(','))
    try:
        return sum(re.fullmatch(r'nvidia\d+', name) is not None for name in os.listdir('/dev'))
    except OSError:
        return 0


def of_task(environment: Mapping[str, str], count: int) -> list[int] | None:
    """The GPUs of one of the tasks that SLURM or Open MPI began on this host: an equal part, all of
    them where it is the only one. By itself JAX takes one GPU a task, the one of the task's number.

    Args:
      environment: variables of the launcher.
      count: how many GPUs the task sees.

    Returns:
      Numbers among those; None where JAX is to decide.
    """
    place = _place(environment)
    if place is None or count == 0 or 'JAX_LOCAL_DEVICE_IDS' in environment:
        return None
    number, tasks = place
    on_host = int(environment.get('SLURM_GPUS_ON_NODE') or count)
    if count < max(on_host, tasks):  # Each task sees its own alone, as with --gpus-per-task.
        return list(range(count))
    each = count // tasks
    return list(range(number * each, (number + 1) * each))


def _place(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """The task's number on its host, and how many there are."""
    try:
        if 'SLURM_LOCALID' in environment:
            tasks = _of_each_node(environment['SLURM_STEP_TASKS_PER_NODE'])
            return int(environment['SLURM_LOCALID']), tasks[int(environment['SLURM_NODEID'])]
        local = (environment[f'OMPI_COMM_WORLD_LOCAL_{what}'] for what in ('RANK', 'SIZE'))
        number, tasks = map(int, local)
        return number, tasks
    except (LookupError, ValueError):
        return None


def _of_each_node(text: str) -> list[int]:
    """`8(x3),2` is 8, 8, 8, 2."""
    counts = []
    for part in text.split(','):
        match = re.fullmatch(r'(\d+)(?:\(x(\d+)\))?', part)
        if match is None:
            raise ValueError(part)
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
