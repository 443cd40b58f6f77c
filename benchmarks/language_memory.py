"""What do the language configurations need of each device?

Lowers and compiles the two programs of an update, which draws and then learns, for 8 (fake) devices
with the largest batch that the configuration may meet and with abstract weights: nothing is
allocated, nothing downloaded. A compiler for CPUs computes bfloat16 in float32 and lays out
buffers in its own way, so temporaries are an upper estimate for accelerators.

    python -m benchmarks.language_memory --out benchmarks/results/language_memory.json
"""

import os
import re
import sys
from functools import partial
from typing import Any, NamedTuple

if __name__ == '__main__':  # Before the first import of JAX.
    os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import sail_jax
from benchmarks.machine import machine, make_parser, write
from benchmarks.rounds import stopwatch
from sail_jax.core.types import State
from sail_jax.language import task, workload
from sail_jax.language.config import LanguageRun
from sail_jax.language.model import policy, published
from sail_jax.language.model.architecture import Architecture
from sail_jax.language.model.logprobs import Prompts
from sail_jax.language.model.sampler import bucket
from sail_jax.language.programs import EOS, state_layout
from sail_jax.training import checkpoint, devices
from sail_jax.training.devices import Devices

CONFIGS = (
    'configs/language/qwen2.5-0.5b-ultrafeedback.yaml',
    'configs/language/qwen2.5-0.5b-saferlhf-lora.yaml',
    'configs/language/llama-3-8b-saferlhf.yaml',
    'configs/language/llama-3-8b-ultrafeedback-lora.yaml',
)
GIB = 2**30


class Program(NamedTuple):
    """A compiled program's needs, bytes per device, and what there is of the vocabulary at once."""

    argument_bytes: int
    output_bytes: int
    """Those that are no arguments' buffers."""
    temp_bytes: int
    compile_s: float
    vocabulary_tokens: int
    """Of the widest array of scores over the vocabulary: for how many tokens, per device."""


def longest_rows(run: LanguageRun, mesh: Mesh) -> workload.PromptBatch:
    """Prompts of an update, as long as they may be."""
    B = run.prompts_per_update
    shape = partial(jax.ShapeDtypeStruct, dtype=jnp.int32, sharding=devices.by_rows(mesh))
    return workload.PromptBatch(
        Prompts(shape((B, bucket(run.data.max_prompt_tokens))), shape((B,))), None
    )


def needs(
    compiled: jax.stages.Compiled, seconds: float, architecture: Architecture, mesh: Mesh
) -> Program:
    memory = compiled.memory_analysis()
    return Program(
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        round(seconds, 1),
        vocabulary_tokens(compiled.as_text(), architecture, mesh),
    )


def vocabulary_tokens(hlo: str, architecture: Architecture, mesh: Mesh) -> int:
    """Tokens of the largest array [tokens..., vocabulary or a device's part of it] in a program.

    Arrays that are as wide as the model too are the embedding, the output matrix, their gradients.
    """
    V, D = architecture.vocab_size, architecture.hidden_size
    fsdp, tensor = mesh.shape['fsdp'], mesh.shape['tensor']
    splits = {1, fsdp, tensor, fsdp * tensor}
    parts, widths = ({size // n for n in splits} for size in (V, D))
    shapes = {
        tuple(map(int, dims.split(','))) for dims in re.findall(r'(?:f32|bf16)\[([\d,]+)\]', hlo)
    }
    outcome = [
        int(np.prod(shape)) // V if len(shape) > 1 else 0
        for shape in shapes
        if any(size in parts for size in shape) and not any(size in widths for size in shape)
    ]
    return max(outcome, default=0)


class Lowered(NamedTuple):
    """An update's programs before they are compiled."""

    mesh: Mesh
    architecture: Architecture
    state: State
    programs: task.UpdatePrograms
    draw: jax.stages.Lowered

    @property
    def state_bytes(self) -> int:
        """Parameters, reference, moments and the weights under an adapter, per device."""
        return devices.size(self.state) // self.mesh.size


def lower_update(run: LanguageRun, mesh_sizes: Devices | None = None) -> Lowered:
    """Traces a configuration's update with abstract weights.

    Args:
      mesh_sizes: instead of the configuration's.
    """
    mesh = devices.make_mesh(
        run.prompts_per_update, mesh_sizes or run.devices, 'prompts_per_update'
    )
    architecture = published.architecture(run.model.path)
    decoders = policy.read(run.model, mesh, architecture)
    state = state_layout(run, decoders, mesh)
    programs = task.make_programs(run, workload.make(run, decoders, EOS), mesh)
    draw = programs.draw.lower(state, longest_rows(run, mesh))
    return Lowered(mesh, architecture, state, programs, draw)


def compile_update(run: LanguageRun, lowered: Lowered) -> dict[str, Any]:
    """Compiles what an update of the configuration runs, and says what it needs.

    Returns:
      `{'mesh': ..., 'state_bytes': ..., 'draw': Program, 'learn': Program, ...}`; bytes per device.
    """
    mesh, architecture = lowered.mesh, lowered.architecture
    taken = stopwatch()
    draw = lowered.draw.compile()
    drawing = needs(draw, taken(), architecture, mesh)
    sampled, _ = checkpoint.abstract_like(draw.out_info, draw.output_shardings)
    scores = jax.ShapeDtypeStruct((run.prompts_per_update, run.group_size), jnp.float32)
    taken = stopwatch()
    learn = lowered.programs.learn.lower(lowered.state, sampled, scores).compile()
    responses = run.prompts_per_update * run.group_size * run.max_response_tokens
    rows = mesh.shape['data'] * mesh.shape['fsdp']
    return {
        'mesh': dict(mesh.shape),
        'state_bytes': lowered.state_bytes,
        'draw': drawing._asdict(),
        'learn': needs(learn, taken(), architecture, mesh)._asdict(),
        'response_tokens': responses // rows,
        'logits_of_the_batch_bytes': 4 * responses * architecture.vocab_size // rows,
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('config', nargs='*', default=CONFIGS, help='default: those in configs/')
    parser.add_argument('--mesh', type=int, nargs=3, metavar=('DATA', 'FSDP', 'TENSOR'))
    options = parser.parse_args()
    sizes = options.mesh and Devices(**dict(zip(devices.AXES, options.mesh, strict=True)))
    results: dict[str, Any] = {'machine': machine('benchmarks.language_memory'), 'configs': {}}
    for path in options.config:
        run = sail_jax.load(path)
        outcome = compile_update(run, lower_update(run, sizes))
        results['configs'][path] = outcome
        if options.out:
            write(results, options.out)
        for name in ('draw', 'learn'):
            program = outcome[name]
            print(
                f'{path} {name:5} arguments {program["argument_bytes"] / GIB:6.2f} GiB, '
                f'temporary {program["temp_bytes"] / GIB:6.2f} GiB, scores over the vocabulary of '
                f'{program["vocabulary_tokens"]} of {outcome["response_tokens"]} tokens at once '
                f'({program["compile_s"]} s)',
                file=sys.stderr,
            )
    if not options.out:
        write(results, None)


if __name__ == '__main__':
    main()
