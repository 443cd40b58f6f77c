"""The shipped configurations' programs fit together, and what they need of 8 devices.

Nothing is allocated: weights are shapes. In a process of its own, which has 8 fake devices.
"""

import json
import os
import subprocess
import sys

import pytest

from sail_jax.language.model import logprobs
from tests.support.paths import ROOT

SCRIPT = """
import json, re, sys
import jax, numpy as np
from sail_jax import runs
from sail_jax.language import programs
from sail_jax.language.model import published
from sail_jax.training import devices

def vocabulary_tokens(text, a, mesh):
    # Of the widest array [tokens..., vocabulary or a part of it]; those that are as wide as the
    # model too are the embedding, the output matrix, their gradients.
    fsdp, tensor = mesh.shape['fsdp'], mesh.shape['tensor']
    splits = {1, fsdp, tensor, fsdp * tensor}
    parts, widths = ({size // n for n in splits} for size in (a.vocab_size, a.hidden_size))
    found = set(re.findall(r'(?:f32|bf16)\\[([\\d,]+)\\]', text))
    shapes = [tuple(map(int, dims.split(','))) for dims in found]
    return max(
        int(np.prod(shape)) // a.vocab_size if len(shape) > 1 else 0
        for shape in shapes
        if any(size in parts for size in shape) and not any(size in widths for size in shape)
    )

names, compiled, sizes = map(json.loads, sys.argv[1:])
found = {}
for name in names:
    run = runs.load(f'configs/language/{name}.yaml', **({'devices': sizes} if sizes else {}))
    planned = programs.programs(run, jax.devices())
    draw, learn = planned.programs[:2]
    lowered = draw.function.lower(*draw.arguments)
    found[name] = {
        'state_bytes': devices.size_on_one(learn.arguments[0]),
        'text': len(lowered.as_text()),
        'rows': planned.mesh.shape['data'] * planned.mesh.shape['fsdp'],
    }
    if not compiled:
        continue
    a = published.architecture(run.model.path)
    for program in draw, learn:
        made = program.function.lower(*program.arguments).compile()
        found[name][program.name] = {
            'argument_bytes': made.memory_analysis().argument_size_in_bytes,
            'vocabulary_tokens': vocabulary_tokens(made.as_text(), a, planned.mesh),
        }
print(json.dumps(found))
"""
QWEN, LLAMA = 'qwen2.5-0.5b', 'llama-3-8b'
# Parameters in billions, from the published sizes; of adapters of rank 64 on queries to outputs.
WEIGHTS = {QWEN: 0.494, LLAMA: 8.03}
ADAPTER = {QWEN: 0.0087, LLAMA: 0.0545}
VOCABULARY = {QWEN: 151_936, LLAMA: 128_256}
CONFIGS = {
    f'{QWEN}-ultrafeedback': (QWEN, 'full', 1),
    f'{QWEN}-saferlhf-lora': (QWEN, 'lora', 1),
    f'{LLAMA}-saferlhf': (LLAMA, 'full', 8),
    f'{LLAMA}-ultrafeedback-lora': (LLAMA, 'lora', 8),
}


def ask(names: list[str], compiled: bool, mesh: dict | None = None) -> dict:
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT, *map(json.dumps, (names, compiled, mesh))],
        env={**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=8'},
        check=True,
        timeout=900,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return json.loads(done.stdout)


def ideal_bytes(name: str) -> float:
    """Of a device: policy, reference and two moments in float32; or an adapter's, and the weights
    in bfloat16."""
    model, trained, parts = CONFIGS[name]
    if trained == 'full':
        return 4 * 4 * WEIGHTS[model] * 1e9 / parts
    return (2 * WEIGHTS[model] + 4 * 4 * ADAPTER[model]) * 1e9 / parts


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    'names',
    [
        pytest.param(list(CONFIGS)[:3], marks=SLOW),
        list(CONFIGS)[3:],
    ],
)
def test_traced_for_8_devices_the_states_are_split_as_they_should_be(names):
    for name, found in ask(names, compiled=False).items():
        assert found['text'] > 10_000, name
        assert found['state_bytes'] == pytest.approx(ideal_bytes(name), rel=0.1), name


@pytest.mark.parametrize(
    ('name', 'mesh'),
    [
        pytest.param(f'{QWEN}-ultrafeedback', None, marks=SLOW),
        pytest.param(f'{QWEN}-ultrafeedback', {'data': 2, 'fsdp': 2, 'tensor': 2}, marks=SLOW),
        pytest.param(f'{QWEN}-saferlhf-lora', None, marks=SLOW),
        pytest.param(f'{LLAMA}-saferlhf', None, marks=SLOW),
        pytest.param(f'{LLAMA}-ultrafeedback-lora', None, marks=SLOW),
    ],
)
def test_compiled_for_8_devices_logits_of_a_batch_never_exist(name, mesh):
    found = ask([name], compiled=True, mesh=mesh)[name]
    assert found['draw']['argument_bytes'] < found['state_bytes'] * 1.02
    assert found['learn']['argument_bytes'] == pytest.approx(found['state_bytes'], rel=0.02)
    # At once a device has logits of the tokens that have room; of what is drawn, one of each lane.
    assert (
        0
        < found['learn']['vocabulary_tokens']
        <= logprobs.LOGITS_BYTES // (4 * VOCABULARY[CONFIGS[name][0]])
    )
    assert 0 < found['draw']['vocabulary_tokens'] <= 64 * 2 // found['rows']
