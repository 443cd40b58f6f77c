"""Which rows and which GPUs are whose, where several processes train one run."""

import jax
import numpy as np
import pytest

from sail_jax import doctor
from sail_jax.training import gpus, shares
from sail_jax.training.shares import SplitRows

HALVES, QUARTERS = [slice(0, 4), slice(4, 8)], [slice(2 * i, 2 * i + 2) for i in range(4)]


@pytest.mark.parametrize(
    ('parts', 'here', 'process_B'),
    [
        # Two processes; each device a part of its own.
        (list(zip([0, 0, 1, 1], QUARTERS, strict=True)), [4, 5, 6, 7], [0] * 4 + [1] * 4),
        # Devices of each process share a part.
        (list(zip([0, 0, 1, 1], sorted(HALVES * 2, key=str), strict=True)), range(4, 8), None),
        # A process has parts that lie apart.
        (list(zip([0, 1, 0, 1], QUARTERS, strict=True)), [2, 3, 6, 7], [0, 0, 1, 1] * 2),
        # All processes hold all rows: the first answers for them.
        ([(0, slice(None)), (1, slice(None))], range(8), [0] * 8),
        # Two of them share each half.
        (list(zip([0, 1, 2, 3], sorted(HALVES * 2, key=str), strict=True)), range(4), [0, 2]),
    ],
)
def test_each_row_is_that_of_one_process_which_holds_it(parts, here, process_B):
    np.testing.assert_array_equal(shares.rows_of(1, parts, 8), here)
    owners = shares.first_to_hold(parts, 8).process_B
    if process_B is not None:
        np.testing.assert_array_equal(owners, np.repeat(process_B, 8 // len(process_B)))
    for row, process in enumerate(owners):
        assert row in shares.rows_of(process, parts, 8)


def test_rows_come_back_from_the_devices_that_they_were_put_on():
    mesh = jax.make_mesh((1, 1, 1), ('data', 'fsdp', 'tensor'), devices=jax.devices()[:1])
    split = SplitRows.of(mesh, 6)
    rows = {'a': np.arange(12.0, dtype=np.float32).reshape(6, 2), 'b': np.arange(6)}
    placed = split.place({name: x[split.here] for name, x in rows.items()})
    for name, x in rows.items():
        assert placed[name].shape == x.shape
        np.testing.assert_array_equal(split.take(placed[name]), x)
        np.testing.assert_array_equal(split.shares.gather(x[split.shares.rows]), x)


SLURM = {'SLURM_LOCALID': '0', 'SLURM_NODEID': '1', 'SLURM_STEP_TASKS_PER_NODE': '8,1(x3)'}


@pytest.mark.parametrize(
    ('environment', 'count', 'expected'),
    [
        (SLURM, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (SLURM | {'SLURM_NODEID': '0', 'SLURM_LOCALID': '5'}, 8, [5]),
        (SLURM | {'SLURM_STEP_TASKS_PER_NODE': '2(x4)', 'SLURM_LOCALID': '1'}, 8, [4, 5, 6, 7]),
        # Each task sees its own.
        (SLURM | {'SLURM_STEP_TASKS_PER_NODE': '8(x2)', 'SLURM_LOCALID': '7'}, 1, [0]),
        (
            SLURM
            | {
                'SLURM_STEP_TASKS_PER_NODE': '2(x2)',
                'SLURM_LOCALID': '1',
                'SLURM_GPUS_ON_NODE': '8',
            },
            4,
            [0, 1, 2, 3],
        ),
        ({'OMPI_COMM_WORLD_LOCAL_RANK': '0', 'OMPI_COMM_WORLD_LOCAL_SIZE': '1'}, 4, [0, 1, 2, 3]),
        # JAX decides: no GPU, told which, no launcher, a launcher that says too little.
        (SLURM, 0, None),
        (SLURM | {'JAX_LOCAL_DEVICE_IDS': '3'}, 8, None),
        ({}, 8, None),
        ({'SLURM_LOCALID': '0'}, 8, None),
        (SLURM | {'SLURM_STEP_TASKS_PER_NODE': 'many'}, 8, None),
    ],
)
def test_a_task_has_its_part_of_the_gpus_that_it_sees(environment, count, expected):
    assert gpus.of_task(environment, count) == expected


@pytest.mark.parametrize(('listed', 'count'), [('0,1,2,3', 4), ('', 0), ('GPU-1f', 1), ('-1', 0)])
def test_gpus_that_the_environment_lists(listed, count):
    assert gpus.visible({'CUDA_VISIBLE_DEVICES': listed}) == count


def test_doctor_says_that_gpus_are_left_over():
    assert doctor.of_gpus(8, 8) == ('GPUs of this host', '8 of 8', True)
    one = doctor.of_gpus(1, 8)
    assert not one.well
    assert one.answer.startswith('1 of 8 ')
    assert doctor.of_gpus(8, 1).well  # Eight processes, each of which sees its own.
