"""How exactly float32 matrices are multiplied, as lowered and compiled programs say it."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from sail_jax import runs, workloads
from sail_jax.control import task as control_task
from sail_jax.control.config import ControlRun
from sail_jax.core import precision, update
from sail_jax.language import programs
from sail_jax.sweep import Members
from sail_jax.training import setup
from tests.support import small
from tests.support.paths import ROOT
from tests.support.toy import SETTINGS, Point


def stated(text: str) -> set[str]:
    """The precisions of a program's products; those without a statement are `DEFAULT`."""
    products = [line for line in text.splitlines() if 'stablehlo.dot_general' in line]
    assert products
    said = [re.search(r'precision = \[(\w+), \1\]', line) for line in products]
    return {match[1] if match else 'DEFAULT' for match in said}


def control(settings) -> str:
    run = ControlRun.model_validate({**SETTINGS, **settings})
    task = control_task.make(run, env=Point())
    assert task.workload is not None
    state = setup.Layout.of(Members.of(run), task).state
    return update.make_dispatch(task.workload, run, 1).lower(state).as_text()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    base = tmp_path_factory.mktemp('precision')
    return small.checkpoint(base / 'model'), small.data(base / 'prompts.jsonl')


def language(files, dtype: str, **settings) -> str:
    """Of both programs of an update."""
    run = small.run(*files, **settings, model={'dtype': dtype})
    plan = {program.name: program for program in programs.programs(run).programs}
    both = plan['draw'], plan['learn']
    return ''.join(program.function.lower(*program.arguments).as_text() for program in both)


@pytest.mark.parametrize(
    ('setting', 'expected'),
    [('auto', 'HIGHEST'), ('highest', 'HIGHEST'), ('high', 'HIGH'), ('default', 'DEFAULT')],
)
def test_a_simulator_and_its_policy_multiply_as_the_setting_says(setting, expected):
    assert stated(control({'matmul_precision': setting})) == {expected}


@pytest.mark.parametrize(
    ('dtype', 'setting', 'expected'),
    [
        ('float32', 'auto', 'HIGHEST'),
        ('bfloat16', 'auto', 'DEFAULT'),
        pytest.param('float32', 'high', 'HIGH', marks=pytest.mark.slow),
        pytest.param('bfloat16', 'highest', 'HIGHEST', marks=pytest.mark.slow),
    ],
)
def test_language_models_multiply_as_their_type_or_the_setting_says(
    files, dtype, setting, expected
):
    assert stated(language(files, dtype, matmul_precision=setting)) == {expected}


def test_a_study_draws_in_float32():
    run = runs.load(ROOT / 'configs' / 'bandit' / 'sample_complexity.yaml')
    (ascend,) = workloads.of(run).programs(run, jax.devices()).programs
    assert stated(ascend.function.lower(*ascend.arguments).as_text()) == {'HIGHEST'}


def test_a_program_is_the_same_whoever_calls_it():
    """The user's own default neither loosens what is stated nor is changed by it."""
    with jax.default_matmul_precision('bfloat16'):
        assert stated(control({})) == {'HIGHEST'}
        square = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((2, 2), 'float32'))
        assert stated(square.as_text()) == {'DEFAULT'}
    assert precision.traced_at(None)(len) is len


@pytest.mark.slow
@pytest.mark.parametrize(
    ('library', 'target', 'platform'),
    [('jax_cuda12_plugin', 'h100:1', 'cuda'), ('libtpu', 'v5e:2x2', 'tpu')],
)
@pytest.mark.parametrize(('setting', 'expected'), [('auto', {'f32 highest'}), ('default', {'f32'})])
def test_the_accelerators_compilers_make_it_so(library, target, platform, setting, expected):
    """The products of a Gaussian policy's log-probabilities, forward and backward."""
    pytest.importorskip(library)
    from sail_jax.plan import count, targets, topology

    run = ControlRun.model_validate({**SETTINGS, 'matmul_precision': setting})
    device = SingleDeviceSharding(topology.devices(targets.parse(target))[0])

    @jax.jit
    @precision.traced_at(precision.resolved(run))
    def slopes(weights, obs, actions):
        def score(weights):
            hidden = jax.nn.swish(obs @ weights[0])
            return (-((actions - hidden @ weights[1]) ** 2)).sum()

        return jax.grad(score)(weights)

    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, np.float32, sharding=device)
    arguments = (shape(256, 256), shape(256, 128)), shape(4096, 256), shape(4096, 128)
    text = slopes.lower(*arguments).compile().as_text()
    counted = count.count(text, platform)
    assert counted.flops_by_precision.keys() == expected
    # Two products forward, the weights' two gradients, and the hidden states'.
    products = 2 * 4096 * 256 * (2 * 256 + 3 * 128)
    assert sum(counted.flops_by_precision.values()) == products
