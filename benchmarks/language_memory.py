"""What does training a model of full size need of each of eight devices?

The two programs of an update, sampling and learning, are lowered and compiled for eight fake
devices with abstract weights: nothing is allocated, and no checkpoint is needed. Bytes per device
are the compiler's own: `state` is what is held between updates, `temporary` what a program needs
besides. The CPU's compiler widens bfloat16 products to float32, so an accelerator needs less.

    python -m benchmarks.language_memory --out benchmarks/results/language_memory_8.json
"""

import argparse
import json
import math
import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

DEVICES = 8
if __name__ == '__main__':
    os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={DEVICES}'
    os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402

from benchmarks import language_model, language_programs  # noqa: E402
from benchmarks.machine import machine  # noqa: E402
from sail_jax import devices  # noqa: E402
from sail_jax.language import architecture as architectures  # noqa: E402
from sail_jax.language import policy, weights  # noqa: E402
from sail_jax.language.architecture import Architecture  # noqa: E402
from sail_jax.language.config import LanguageRun  # noqa: E402

MODELS = {
    'tiny': language_model.SIZES['1M'],
    'qwen2.5-0.5b': language_model.QWEN_05B,
    'llama-3-8b': language_model.LLAMA_8B,
}
MESHES = {
    'tiny': {'data': 2, 'fsdp': 2, 'tensor': 2},
    'qwen2.5-0.5b': {'data': 4, 'fsdp': 1, 'tensor': 2},
    'llama-3-8b': {'data': 1, 'fsdp': 8, 'tensor': 1},
}
COLLECTIVE = r' (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\('


def settings(path: Path, train: str, mesh: dict[str, int], prompts: int) -> LanguageRun:
    """SAIL-RevKL in bfloat16 on float32 parameters; beside an adapter, on bfloat16 ones."""
    return LanguageRun.model_validate(
        {
            'workload': 'language',
            'prompts_per_update': prompts,
            'model': {
                'path': str(path),
                'dtype': 'bfloat16',
                'param_dtype': 'float32' if train == 'full' else 'bfloat16',
                'remat': True,
                'train': train,
            },
            'devices': mesh,
            'data': {'path': 'none.jsonl', 'max_prompt_tokens': 256, 'max_response_tokens': 256},
            'sampling': {'max_tokens': 256},
        }
    )


def compile_update(
    architecture: Architecture, train: str, mesh_sizes: dict[str, int], prompts: int = 32
) -> dict[str, Any]:
    """Bytes per device and seconds to compile of the programs of an update."""
    with tempfile.TemporaryDirectory() as folder:
        weights.write_json(Path(folder) / 'config.json', architectures.to_hf(architecture))
        run = settings(Path(folder), train, mesh_sizes, prompts)
        mesh = devices.make_mesh(prompts, run.devices, 'prompts_per_update')
        models = policy.read(run.model, mesh)
    found = language_programs.of_run(run, models, mesh)
    state = found.state
    state_bytes = {
        name: sum(map(of_device, jax.tree.leaves(tree)))
        for name, tree in {
            'params': state.policy.params,
            'frozen': state.policy.frozen,
            'reference': state.reference,
            'optimizer': state.optimizer,
        }.items()
    }
    return {
        'mesh': mesh_sizes,
        'prompts': prompts,
        'state_bytes': state_bytes | {'all': sum(map(of_device, jax.tree.leaves(state)))},
        'sample': compiled(jax.jit(found.draw), state, found.rows),
        'learn': compiled(
            jax.jit(found.learn, donate_argnums=0), state, found.sampled, found.scores
        ),
    }


def of_device(x: jax.ShapeDtypeStruct) -> int:
    """Bytes of an array on each device."""
    return x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))


def compiled(program: Any, *args: Any) -> dict[str, Any]:
    began = time.perf_counter()
    done = program.lower(*args).compile()
    seconds = time.perf_counter() - began
    memory = done.memory_analysis()
    return {
        'argument_bytes': memory.argument_size_in_bytes,
        'temporary_bytes': memory.temp_size_in_bytes,
        'collectives': dict(Counter(re.findall(COLLECTIVE, done.as_text()))),
        'compile_s': round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--models', nargs='+', choices=MODELS, default=['qwen2.5-0.5b', 'llama-3-8b']
    )
    parser.add_argument('--train', nargs='+', choices=('full', 'lora'), default=['full', 'lora'])
    parser.add_argument('--out', type=Path, help='JSON file; default: standard output')
    options = parser.parse_args()
    results: dict[str, Any] = {'machine': machine('benchmarks.language_memory'), 'programs': {}}
    for name in options.models:
        for train in options.train:
            found = compile_update(MODELS[name], train, MESHES[name])
            results['programs'][f'{name} {train}'] = found
            gib = [
                number / 2**30
                for number in (
                    found['state_bytes']['all'],
                    found['sample']['temporary_bytes'],
                    found['learn']['temporary_bytes'],
                )
            ]
            print(
                '{:13} {:5} GiB a device: state {:.2f}, sampling +{:.2f}, learning +{:.2f}'.format(
                    name, train, *gib
                ),
                file=sys.stderr,
            )
    text = json.dumps(results, indent=2)
    if options.out:
        options.out.write_text(text + '\n')
    else:
        print(text)


if __name__ == '__main__':
    main()
