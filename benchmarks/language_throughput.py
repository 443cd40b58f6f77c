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

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import language_model
from sail_jax.language import sampler
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


PRESETS = {
    'cpu': Shape('10M', 'float32', (8, 64), 64, 64, 8, 64, 64),
    'gpu': Shape('qwen2.5-0.5b', 'bfloat16', (64, 256), 448, 128, 64, 256, 256),
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
