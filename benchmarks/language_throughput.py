"""How fast are sampling and learning of language models, and what of the device's limit is that?

Compile time apart, random weights, in rounds that go through all programs in turn, so that a slow
moment of the machine hits all; figures are medians over rounds, ratios medians of the ratios
within a round.

* `copy`: bytes per second of a copy, the limit of decoding, which reads the weights and the
  keys and values seen so far for every token; `matmul`: operations per second of a large product.
* `prefill`, `decode`: tokens per second through the sampler; decoding's share of the limit.
* `updates`: preference pairs per second of whole updates (reading, sampling, the reward function
  on the host, learning) for the members of the family; learning's share of `matmul`.
* `memory`: bytes that the compiled learning step needs beside its arguments, with log-probabilities
  a few tokens at a time and at once.

    python -m benchmarks.language_throughput --out benchmarks/results/language_throughput_cpu.json
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import language_model, language_programs, limits
from benchmarks.machine import machine
from sail_jax import devices, trainer
from sail_jax.language import policy, sampler, task, workload
from sail_jax.language.config import LanguageRun
from sail_jax.language.logprobs import Prompts
from sail_jax.language.model import Decoder, prompt_positions
from sail_jax.language.sampler import Sampling


class Shape(NamedTuple):
    """What is measured on a kind of device."""

    model: str
    """Of `language_model.SIZES`."""
    dtype: str
    decode_batches: tuple[int, ...]
    """Prompts, one response each."""
    prompt_tokens: int
    response_tokens: int
    update_prompts: int
    update_prompt_tokens: int
    update_response_tokens: int
    remat: bool


PRESETS = {
    'cpu': Shape('10M', 'float32', (8, 64), 64, 64, 8, 64, 64, False),
    'gpu': Shape('qwen2.5-0.5b', 'bfloat16', (64, 256), 448, 128, 64, 256, 256, True),
}


class Program(NamedTuple):
    """A function without arguments that returns when the device is done."""

    run: Callable[[], Any]
    compile_s: float


def compile_program(fn: Callable[..., Any], *args: Any) -> Program:
    began = time.perf_counter()
    compiled = jax.jit(fn).lower(*args).compile()
    seconds = time.perf_counter() - began
    return Program(lambda: jax.block_until_ready(compiled(*args)), seconds)


def in_rounds(programs: dict[str, Program], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of every program in every round; an earlier round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name, program in programs.items():
            began = time.perf_counter()
            program.run()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: np.asarray(values) for name, values in seconds.items()}


def generation(shape: Shape, batch: int) -> dict[str, Program]:
    """Prefill, and sampling of responses that never end."""
    architecture = language_model.SIZES[shape.model]
    dtype = jnp.dtype(shape.dtype)
    build = partial(Decoder, architecture, dtype=dtype, param_dtype=dtype)
    graphdef, params = nnx.split(nnx.jit(lambda: build(rngs=nnx.Rngs(0)))())
    tokens = np.random.default_rng(0).integers(
        2, architecture.vocab_size, (batch, shape.prompt_tokens), np.int32
    )
    prompts = Prompts(jnp.asarray(tokens), jnp.full(batch, shape.prompt_tokens))
    key_B = jax.random.split(jax.random.key(0), batch)

    def prefill(params, prompts):
        positions = prompt_positions(prompts.lengths_B, shape.prompt_tokens)
        return nnx.merge(graphdef, params)(prompts.tokens_BxP[:, None], positions)

    def generate(params, prompts, key_B):
        return sampler.generate(
            nnx.merge(graphdef, params),
            prompts,
            key_B,
            group_size=1,
            settings=Sampling(max_tokens=shape.response_tokens),
            eos_E=jnp.asarray([-1]),
        )

    return {
        f'prefill_{batch}': compile_program(prefill, params, prompts),
        f'generate_{batch}': compile_program(generate, params, prompts, key_B),
    }


MEMBERS = {
    'offline_dpo': {
        'objective': {'response_grad': 0.0, 'mixture': {'dpr': 0.0}},
        'divergence': {'coefficient': 0.0},
    },
    'online_dpo': {'objective': {'response_grad': 0.0}, 'divergence': {'coefficient': 0.0}},
    'sail': {'divergence': {'coefficient': 0.0}},
    'sail_revkl': {},
}


def configuration(shape: Shape, folder: Path, member: str) -> LanguageRun:
    """A run of a member of the family on the checkpoint in a folder."""
    return LanguageRun.model_validate(
        MEMBERS[member]
        | {
            'workload': 'language',
            'prompts_per_update': shape.update_prompts,
            'model': {
                'path': str(folder / 'model'),
                'dtype': shape.dtype,
                'remat': shape.remat,
            },
            'data': {
                'path': str(folder / 'pairs.jsonl'),
                'max_prompt_tokens': shape.update_prompt_tokens,
                'max_response_tokens': shape.update_response_tokens,
            },
            'sampling': {'max_tokens': shape.update_response_tokens},
            'evaluation': {'prompts': 2},
            'logging': {'tensorboard': False},
        }
    )


def reward(prompts: list, responses: list[str]) -> list[float]:
    """How many words are even."""
    return [float(sum(word[-1] in '02468' for word in text.split())) for text in responses]


def training(run: LanguageRun) -> Program:
    """Whole updates, host part included."""
    made = task.make(run, reward=None if run.objective.mixture.dpr == 0 else reward)
    held = [trainer.initial_state(run, made, made.start(run.seed))]

    def one() -> None:
        held[0] = jax.block_until_ready(made.dispatch(held[0])[0])

    began = time.perf_counter()
    one()
    return Program(one, time.perf_counter() - began)


def learning(run: LanguageRun, chunked: bool) -> dict[str, int]:
    """Bytes and operations of the learning step."""
    mesh = devices.make_mesh(run.prompts_per_update, run.devices, 'prompts_per_update')
    models = policy.read(run.model, mesh)
    made = workload.make(run, models, eos_ids=(0,))
    made = made if chunked else language_programs.unchunked(made, models)
    found = language_programs.of_run(run, models, mesh, made)
    arguments = found.state, found.sampled, found.scores
    compiled = jax.jit(found.learn, donate_argnums=0).lower(*arguments).compile()
    return {
        'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
        'matmul_flops': limits.matmul_flops(found.learn, *arguments),
        'compiler_flops_loops_once': int(compiled.cost_analysis()['flops']),
    }


def decoding_bytes(shape: Shape, batch: int) -> float:
    """Read for one token of every row: the weights, and the keys and values seen so far."""
    a = language_model.SIZES[shape.model]
    abstract = nnx.eval_shape(lambda: Decoder(a, rngs=nnx.Rngs(0)))
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(abstract)))
    seen = shape.prompt_tokens + shape.response_tokens / 2
    cache = 2 * a.layers * a.kv_heads * a.head_dim * seen * batch
    return (parameters + cache) * jnp.dtype(shape.dtype).itemsize


def measure_generation(shape: Shape, rounds: int, copy: float) -> dict[str, Any]:
    """Prefill and decoding at every batch size."""
    programs = {}
    for batch in shape.decode_batches:
        programs |= generation(shape, batch)
    seconds, found = in_rounds(programs, rounds), {}
    for batch in shape.decode_batches:
        prefill = seconds[f'prefill_{batch}']
        # The sampler's first token comes with the prompt.
        step = (seconds[f'generate_{batch}'] - prefill) / (shape.response_tokens - 1)
        limit = decoding_bytes(shape, batch) / copy
        found[str(batch)] = {
            'prefill_tokens_per_s': round(float(np.median(batch * shape.prompt_tokens / prefill))),
            'decode_tokens_per_s': round(float(np.median(batch / step))),
            'bytes_per_token_of_every_row': round(decoding_bytes(shape, batch)),
            'share_of_bandwidth': round(float(np.median(limit / step)), 3),
            'compile_s': round(programs[f'generate_{batch}'].compile_s, 2),
        }
    return found


def measure_updates(shape: Shape, rounds: int, rate: float) -> dict[str, Any]:
    """Every member's whole update, and what its learning step needs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ['XDG_CACHE_HOME'] = name
        architecture = language_model.SIZES[shape.model]
        language_model.write_checkpoint(folder / 'model', architecture)
        language_model.write_pairs(
            folder / 'pairs.jsonl',
            4 * shape.update_prompts,
            shape.update_prompt_tokens,
            shape.update_response_tokens,
            architecture.vocab_size,
        )
        runs = {member: configuration(shape, folder, member) for member in MEMBERS}
        programs = {member: training(run) for member, run in runs.items()}
        seconds = in_rounds(programs, rounds)
        needs = {member: learning(run, chunked=True) for member, run in runs.items()}
        at_once = learning(runs['sail_revkl'], chunked=False)['temporary_bytes']
    updates = {
        member: {
            'pairs_per_s': round(float(np.median(shape.update_prompts / values)), 3),
            'seconds_over_online_dpo': round(float(np.median(values / seconds['online_dpo'])), 3),
            'first_update_s': round(programs[member].compile_s, 2),
            'learning': needs[member],
        }
        for member, values in seconds.items()
    }
    # Its update is learning and little else.
    work = needs['offline_dpo']['matmul_flops'] / seconds['offline_dpo']
    return {
        'updates': updates,
        'learning_share_of_matmul': round(float(np.median(work / rate)), 3),
        'temporary_bytes': {
            'chunked': needs['sail_revkl']['temporary_bytes'],
            'logits_at_once': at_once,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--preset', choices=PRESETS, default='cpu')
    parser.add_argument('--only', choices=('generation', 'updates'), help='measure one part')
    parser.add_argument('--rounds', type=int, default=5, help='timed calls of each program')
    parser.add_argument('--out', type=Path, help='JSON file; default: standard output')
    options = parser.parse_args()
    shape = PRESETS[options.preset]
    copy, rate = limits.bandwidth(), limits.matmul_rate(jnp.dtype(shape.dtype))
    results: dict[str, Any] = {
        'machine': machine('benchmarks.language_throughput'),
        'shape': shape._asdict(),
        'copy_bytes_per_s': round(copy),
        'matmul_flops_per_s': round(rate),
    }
    if options.only != 'updates':
        results['generation'] = measure_generation(shape, options.rounds, copy)
    if options.only != 'generation':
        results |= measure_updates(shape, options.rounds, rate)
    memory = jax.devices()[0].memory_stats() or {}
    results['peak_bytes'] = {
        'device': memory.get('peak_bytes_in_use'),
        'process': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    text = json.dumps(results, indent=2)
    if options.out:
        options.out.write_text(text + '\n')
    print(text)


if __name__ == '__main__':
    main()
