"""What the compilers make of a shipped file stays within what was reached once."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from sail_jax import runs, workloads
from sail_jax.language.model import decode_kernel, published
from sail_jax.language.model.fused import Score
from tests.support.paths import ROOT

NAME = 'qwen2.5-0.5b'


@pytest.fixture(
    scope='module',
    params=[('h100:8', 'jax_cuda12_plugin'), ('v5e:2x4', 'libtpu')],
    ids=lambda x: x[0],
)
def planned(request):
    """Of drawing and learning, counted and timed."""
    named, compiler = request.param
    pytest.importorskip(compiler)
    from sail_jax.plan import report, targets, topology

    target = targets.parse(named)
    run = runs.load(ROOT / 'configs' / 'language' / f'{NAME}-ultrafeedback.yaml')
    programs = workloads.of(run).programs(run, topology.devices(target))
    programs = programs._replace(programs=programs.programs[:2])
    return run, report.make(programs, target)


@pytest.mark.slow
def test_a_step_of_decoding_reads_weights_and_cache_once(planned):
    run, report = planned
    draw = report.programs[0]
    rows, tokens = run.prompts_per_update // 8, run.sampling.max_tokens
    step = [x for x in draw.counted.operations if x.times == tokens - 1]
    a = published.architecture(Path(NAME))
    places = rows * (run.data.max_prompt_tokens + run.group_size * tokens)
    cache = 2 * 2 * a.layers * a.kv_heads * a.head_dim * places
    read = 2 * 494_032_768 + cache
    assert sum(x.traffic_bytes for x in step) < 1.15 * read
    if report.target.chip.platform == 'cuda':  # A TPU's program is launched as one.
        # Of a layer 12, and 601 in all where attention and norms are written out.
        assert sum(x.kernel for x in step) <= 310
    assert draw.times.bound_by == 'memory'


@pytest.mark.slow
def test_learning_is_not_far_from_its_products(planned):
    _, report = planned
    learn = report.programs[1]
    assert learn.counted.traffic_bytes < 300e9
    assert learn.times.roofline_s < 1.5 * learn.times.matmul_s
    assert report.fits


@pytest.mark.slow
@pytest.mark.parametrize(
    ('target', 'dtype', 'head_dim', 'cap', 'served'),
    [
        ('h100:1', jnp.bfloat16, 64, None, True),
        ('a100:1', jnp.float16, 256, None, True),
        ('h100:1', jnp.float32, 64, None, False),
        ('h100:1', jnp.bfloat16, 96, None, False),
        ('h100:1', jnp.bfloat16, 64, 50.0, False),
    ],
)
def test_which_decoding_has_a_kernel(target, dtype, head_dim, cap, served):
    pytest.importorskip('jax_cuda12_plugin')
    from sail_jax.plan import targets, topology
    from sail_jax.training import devices

    mesh = devices.make_mesh(1, devices=topology.devices(targets.parse(target)))
    query = jax.ShapeDtypeStruct((2, 2, 1, 4, head_dim), dtype)
    kernel = decode_kernel.kernel(Score(scale=1.0, cap=cap, window=0), query, mesh)
    assert (kernel is not None) is served
