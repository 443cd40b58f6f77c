"""Training on several (fake) devices is the same training."""

import os
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import sys
import jax, numpy as np
import sail_jax
from benchmarks.control_communication import collectives
from sail_jax import runs, trainer, update
from sail_jax.control.config import ControlRun
from tests.control.toy import SETTINGS, Point

run = ControlRun.model_validate({**SETTINGS, 'divergence': {'coefficient': 0.1}})
task = runs.TASKS[ControlRun](run, env=Point())
state = trainer.initial_state(run, task, task.start(run.seed))
sampled = jax.jit(task.workload.sample)(
    state.policy, state.reference, state.sampler, jax.random.key(3), state.labels
)
layout = trainer.Layout.of(run, task)
dispatch = update.make_dispatch(task.workload, run, 1, layout.shardings)
found = collectives(dispatch.lower(layout.state).compile().as_text())
result = sail_jax.train(run, sys.argv[1], env=Point(), quiet=True)
np.savez(
    sys.argv[2],
    devices=jax.device_count(),
    kinds=[one.kind for one in found],
    gradient_bytes=sum(one.bytes for one in found if one.in_gradient_step),
    parameter_bytes=sum(x.nbytes for x in jax.tree.leaves(result.policy.params)),
    raw_action=sampled.batch.inputs.raw_action,
    label=sampled.batch.labels.prob_BxKxK,
    born=sampled.sampler.env_state.info['born'],
    episode_return=result.after['eval/return'],
    **{str(i): leaf for i, leaf in enumerate(jax.tree.leaves(result.policy.params))},
)
"""


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory):
    path = tmp_path_factory.mktemp('devices')
    found = []
    for count in (1, 4):
        flags = f'--xla_force_host_platform_device_count={count}'
        out = path / f'{count}.npz'
        subprocess.run(
            [sys.executable, '-c', SCRIPT, path / f'run{count}', out],
            env={**os.environ, 'XLA_FLAGS': flags},
            check=True,
            timeout=400,
        )
        found.append(dict(np.load(out)))
    return found


def test_the_devices_were_there(outcomes):
    assert [int(outcome['devices']) for outcome in outcomes] == [1, 4]


def test_one_and_four_devices_draw_the_same_samples(outcomes):
    for name in ('raw_action', 'label', 'born'):
        np.testing.assert_array_equal(outcomes[0][name], outcomes[1][name])


def test_parameters_agree_to_the_order_of_reduction(outcomes):
    for name in outcomes[0]:
        if name.isdigit():
            np.testing.assert_allclose(outcomes[0][name], outcomes[1][name], atol=1e-5)


def test_devices_tell_each_other_gradients_and_no_samples(outcomes):
    alone, four = outcomes
    assert list(alone['kinds']) == []
    assert set(four['kinds']) == {'all-reduce'}
    # The gradient once, and a few numbers: the loss, its metrics, the labels' count.
    assert 0 <= four['gradient_bytes'] - four['parameter_bytes'] <= 128
