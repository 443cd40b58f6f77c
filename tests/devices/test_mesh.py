"""The mesh of a configuration, and layouts by name."""

import os
import subprocess
import sys

import jax
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

from sail_jax.errors import UserError
from sail_jax.language.model import lora, sharding
from sail_jax.training import devices
from sail_jax.training.devices import Devices
from tests.support import tiny


def sizes(count, **settings):
    return tuple(devices._sizes(Devices(**settings), count).values())


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        ({}, (8, 1, 1)),
        ({'fsdp': 4}, (2, 4, 1)),
        ({'data': 1, 'fsdp': 'auto', 'tensor': 2}, (1, 4, 2)),
        ({'data': 2, 'fsdp': 2, 'tensor': 'auto'}, (2, 2, 2)),
        ({'data': 8}, (8, 1, 1)),
    ],
)
def test_auto_takes_what_the_other_axes_leave(settings, expected):
    assert sizes(8, **settings) == expected


@pytest.mark.parametrize(
    ('settings', 'said'),
    [
        ({'data': 4}, 'devices: data: 4, fsdp: 1, tensor: 1; 8 devices do not make .* multiply'),
        ({'fsdp': 3}, 'devices: data: auto, fsdp: 3, tensor: 1; 8 devices do not make .* divide'),
        ({'fsdp': 'auto'}, 'only one axis can be auto'),
    ],
)
def test_sizes_that_make_no_mesh_are_refused_in_one_line(settings, said):
    with pytest.raises(UserError, match=said) as caught:
        sizes(8, **settings)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('size', [0, -1, 'all'])
def test_a_size_is_a_positive_number_or_auto(size):
    with pytest.raises(ValueError, match='fsdp'):
        Devices(fsdp=size)


def test_members_of_a_sweep_that_do_not_divide_are_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(jax, 'devices', lambda: [None] * 4)
    with pytest.raises(UserError, match=r'^6 members of a sweep .* by 4 devices; use a multiple'):
        devices.make_sweep_mesh(6)
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(UserError, match=r'^seeds, sweep: on one process only; start the seeds'):
        devices.make_sweep_mesh(8)


MESH = AbstractMesh((2, 2, 2), devices.AXES)


@pytest.mark.parametrize('name', tiny.FAMILIES)
def test_every_matrix_of_every_family_has_a_layout_and_is_split_over_fsdp_and_tensor(name):
    settings = lora.Lora(rank=2, targets=('qkv_proj' if name == 'phi3' else 'q_proj', 'down_proj'))
    adapted = nnx.eval_shape(lambda: lora.add(tiny.decoder(name), settings, jax.random.key(0)))
    layouts = devices.tree_by_rules(MESH, sharding.RULES, nnx.state(adapted))
    for path, layout in jax.tree_util.tree_leaves_with_path(layouts):
        parameter = jax.tree_util.keystr(path)
        used = {axis for axis in layout.spec if axis}
        if 'embed' in parameter or 'lm_head' in parameter:  # 61 words do not divide by 2.
            assert used == {'fsdp'}, parameter
        elif 'kernel' in parameter or 'lora' in parameter:
            assert used == {'fsdp', 'tensor'}, parameter
        elif 'norm' in parameter:
            assert not used, parameter


def test_moments_lie_as_their_parameters():
    params = nnx.state(nnx.eval_shape(tiny.decoder))
    layouts = devices.tree_by_rules(MESH, sharding.RULES, params)
    adam = jax.eval_shape(optax.adam(1e-3).init, params)
    moments = devices.tree_by_rules(MESH, sharding.RULES, adam)[0]
    assert moments.mu == moments.nu == layouts
    assert moments.count.spec == PartitionSpec()


@pytest.mark.parametrize('said', [None, '3'])
def test_every_core_becomes_a_device_unless_the_environment_says_otherwise(said):
    script = (
        'import jax, os; from sail_jax.training import devices; '
        'os.sched_getaffinity = lambda _: range(6); '
        'devices.use_cores(32); print(jax.device_count()); '
        'devices.use_cores(1); print(jax.device_count())'
    )
    environment = {**os.environ, **({'JAX_NUM_CPU_DEVICES': said} if said else {})}
    shown = subprocess.run(
        [sys.executable, '-c', script], env=environment, check=True, capture_output=True, text=True
    )
    # Of 6 cores as many as divide 32 rows; afterwards JAX has begun.
    assert shown.stdout.split() == [said or '4'] * 2
