"""How fast are language models sampled and trained, and what is the limit?

In one process, of random weights, compilation apart:

* `copy`, `matmul`: what this machine moves and multiplies, measured;
* `prefill`, `decode`: tokens/s. The limit of decoding is the bandwidth over the bytes that a step
  has to read: all matrices, and the keys and values so far; or what it has to multiply, where that
  takes longer. Products of few rows do not reach the large one's speed: `logits` is a step's last;
* `update`: pairs/s of a whole update, drawing included, for four methods; labels are random, as a
  labeller's time is its own. Rounds go through all four in turn; figures are medians over rounds,
  ratios medians of the ratios within a round;
* `peak_MiB`: what the larger of an update's programs works on and needs besides, by the compiler;
* `utilisation`: of an update's learning program, the model's operations (2 for each parameter and
  token, three times that for a token that is learned from, and attention) by the matmul's speed.
  Recomputed ones do not count. The compiler's own count takes the body of a loop once, however
  often it runs, so it is of no use for layers and chunks that are scanned.

    python -m benchmarks.language_throughput --out benchmarks/results/language_throughput_cpu.json

On a GPU: `--sizes qwen2.5-0.5b --prompts 32 --prompt-tokens 256 --new-tokens 256 --dtype bfloat16`.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.language_models import SMALL, parameter_count
from benchmarks.machine import machine, make_parser, write
from benchmarks.rounds import row, stopwatch, take_turns_here
from sail_jax.core import update
from sail_jax.core.types import Policies, Policy, State
from sail_jax.language import task, workload
from sail_jax.language.config import LanguageRun
from sail_jax.language.model import architecture as architectures
from sail_jax.language.model import policy, published, sampler, sharding
from sail_jax.language.model.architecture import Architecture
from sail_jax.language.model.attention import prompt_positions
from sail_jax.language.model.logprobs import Prompts
from sail_jax.language.model.transformer import Decoder
from sail_jax.training import devices

QWEN = 'qwen2.5-0.5b'
SIZES = SMALL | {QWEN: architectures.from_hf(published.PUBLISHED[QWEN], QWEN)}
METHODS: dict[str, dict[str, Any]] = {
    'offline DPO': {
        'objective': {'response_grad': 0.0, 'mixture': {'dpr': 0.0}},
        'divergence': {'coefficient': 0.0},
    },
    'online DPO': {'objective': {'response_grad': 0.0}, 'divergence': {'coefficient': 0.0}},
    'SAIL': {'objective': {'response_grad': 0.3}, 'divergence': {'coefficient': 0.0}},
    'SAIL-RevKL': {'objective': {'response_grad': 0.3}, 'divergence': {'coefficient': 1e-3}},
}
BASELINE = 'online DPO'


class Limits(NamedTuple):
    """What the device does at best."""

    bytes_per_s: float
    flops_per_s: float


def seconds(run: Callable[[], Any], times: int = 5) -> float:
    """The median of some runs after the first."""

    def call() -> dict[str, Any]:
        jax.block_until_ready(run())
        return {}

    calls = take_turns_here({'run': call}, times)['run']['calls']
    return float(np.median([call['seconds'] for call in calls]))


def limits(dtype: str) -> Limits:
    """Bandwidth of a copy that no cache holds, and the speed of a large product."""
    big = jnp.ones(2**28 if jax.default_backend() == 'cpu' else 2**30, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    size = 2048 if jax.default_backend() == 'cpu' else 8192
    bytes_per_s = 2 * big.nbytes / seconds(lambda: copy(big))
    return Limits(bytes_per_s, product_speed(size, size, size, dtype))


def product_speed(rows: int, inner: int, columns: int, dtype: str) -> float:
    """Operations per second of `[rows, inner]` by the transpose of `[columns, inner]`."""
    left, right = jnp.ones((rows, inner), dtype), jnp.ones((columns, inner), dtype)
    times = jax.jit(lambda x, y: x @ y.T)
    return 2 * rows * inner * columns / seconds(lambda: times(left, right), 50)


def prompts_of(a: Architecture, B: int, P: int) -> Prompts:
    tokens = np.random.default_rng(0).integers(0, a.vocab_size, (B, P))
    return Prompts(jnp.asarray(tokens, jnp.int32), jnp.full(B, P, jnp.int32))


def decoding(a: Architecture, options: argparse.Namespace, best: Limits) -> dict[str, Any]:
    """Prefill and decode tokens/s, and decode's share of the limit."""
    B, K, P, R = options.prompts, 2, options.prompt_tokens, options.new_tokens
    decoder = jax.jit(
        lambda: Decoder(a, rngs=nnx.Rngs(0), dtype=options.dtype, param_dtype=options.dtype)
    )()
    graphdef, state = nnx.split(decoder)
    prompts = prompts_of(a, B, P)

    def prefill(state: nnx.State) -> jax.Array:
        positions = prompt_positions(prompts.lengths_B, P)
        return nnx.merge(graphdef, state)(prompts.tokens_BxP[:, None], positions)[0]

    def draw(state: nnx.State, key: jax.Array, places: int) -> sampler.Responses:
        return sampler.generate(
            nnx.merge(graphdef, state),
            prompts,
            jax.random.split(key, B),
            group_size=K,
            settings=sampler.Sampling(max_tokens=places),
            eos_E=jnp.zeros(0, jnp.int32),
        )

    taken = stopwatch()
    long = jax.jit(draw, static_argnums=2).lower(state, jax.random.key(0), R).compile()
    compile_s = taken()
    prefill = jax.jit(prefill)
    prefill_s = seconds(lambda: prefill(state))
    decode_s = seconds(lambda: long(state, jax.random.key(1))) - prefill_s
    lanes, width = B * K, jnp.dtype(options.dtype).itemsize
    weights = width * parameter_count(a)
    kv = width * 2 * a.layers * a.kv_heads * a.head_dim * (B * P + lanes * R / 2)
    matrix = a.hidden_size, a.vocab_size
    step_s = max((weights + kv) / best.bytes_per_s, operations(a, lanes, lanes) / best.flops_per_s)
    return {
        'prefill_tokens_per_s': round(B * P / prefill_s),
        'decode_tokens_per_s': round(lanes * R / decode_s, 1),
        'decode_lanes': lanes,
        'decode_step_bytes': round(weights + kv),
        'logits_GFLOP_per_s': round(product_speed(lanes, *matrix, options.dtype) / 1e9, 1),
        'share_of_bandwidth_limit': round((weights + kv) / best.bytes_per_s * R / decode_s, 3),
        'share_of_limit': round(step_s * R / decode_s, 3),
        'compile_s': round(compile_s, 2),
        'temp_MiB': round(long.memory_analysis().temp_size_in_bytes / 2**20),
    }


def operations(a: Architecture, tokens: int, scored: int, context: float = 0) -> float:
    """Floating-point operations of a forward pass.

    Args:
      scored: tokens whose logits are formed.
      context: what a token attends to.
    """
    head = a.vocab_size * a.hidden_size
    layers = parameter_count(a) - head * (1 if a.tied else 2)
    attention = 4 * a.layers * a.heads * a.head_dim * context
    return tokens * (2 * layers + attention) + scored * 2 * head


@dataclass
class Updates:
    """A method's compiled programs with what they work on."""

    draw: jax.stages.Compiled
    learn: jax.stages.Compiled
    rows: workload.PromptBatch
    scores: jax.Array | None
    state: State

    def __call__(self) -> dict[str, float]:
        """An update."""
        taken = stopwatch()
        sampled, _ = jax.block_until_ready(self.draw(self.state, self.rows))
        draw_s = taken()
        self.state = self.learn(self.state, sampled, self.scores)[0]
        jax.block_until_ready(self.state)
        return {'draw_s': draw_s}


def prepare(name: str, a: Architecture, options: argparse.Namespace) -> Updates:
    """Compiles an update of a method; its state is random."""
    B, P, R = options.prompts, options.prompt_tokens, options.new_tokens
    run = LanguageRun.model_validate(
        {
            'workload': 'language',
            'prompts_per_update': B,
            'model': {'path': 'random', 'dtype': options.dtype, 'remat': options.remat},
            'data': {'path': 'random', 'max_prompt_tokens': P, 'max_response_tokens': R},
            'sampling': {'max_tokens': R},
            **METHODS[name],
        }
    )
    mesh = devices.make_mesh(B, run.devices)
    decoders = policy.read(run.model, mesh, a)
    parts = workload.make(run, decoders, ())
    programs = task.make_programs(run, parts, mesh)

    def start() -> State:
        decoder = Decoder(a, rngs=nnx.Rngs(0), dtype=options.dtype, remat=options.remat)
        new = Policy(nnx.state(decoder), jnp.zeros((), jnp.int32))
        return update.init(parts, run, Policies(new, new))

    layout = devices.state_sharding(mesh, jax.eval_shape(start), sharding.RULES)
    state = jax.jit(start, out_shardings=layout)()
    rng = np.random.default_rng(0)
    pairs, scores = None, jnp.asarray(rng.standard_normal((B, 2)), jnp.float32)
    if run.reads_pairs:
        tokens = rng.integers(0, a.vocab_size, (B, 2, R)).astype(np.int32)
        pairs, scores = workload.Pairs(tokens, np.full((B, 2), R, np.int32)), None
    rows = jax.device_put(workload.PromptBatch(prompts_of(a, B, P), pairs), devices.by_rows(mesh))
    draw = programs.draw.lower(state, rows).compile()
    sampled, _ = draw(state, rows)
    learn = programs.learn.lower(state, sampled, scores).compile()
    return Updates(draw, learn, rows, scores, state)


def updating(a: Architecture, options: argparse.Namespace, best: Limits) -> dict[str, Any]:
    """Pairs/s of the four methods, and how well the learning program uses the device."""
    B, P, R = options.prompts, options.prompt_tokens, options.new_tokens
    parts = {name: prepare(name, a, options) for name in options.methods}
    results = take_turns_here(parts, options.rounds)
    # A prompt is computed once for both of its responses; the reference runs forward only.
    context = (P + R) / 2
    useful = (3 + 1) * operations(a, B * (P + 2 * R), B * 2 * R, context)
    totals = {
        name: np.asarray([call['seconds'] for call in result['calls']])
        for name, result in results.items()
    }
    out = {}
    for name, result in results.items():
        draws = np.asarray([call['draw_s'] for call in result['calls']])
        draw_s, learn_s = np.median(draws), np.median(totals[name] - draws)
        sizes = [
            memory.argument_size_in_bytes + memory.temp_size_in_bytes
            for memory in (parts[name].draw.memory_analysis(), parts[name].learn.memory_analysis())
        ]
        out[name] = {
            'pairs_per_s': round(float(B / np.median(totals[name])), 2),
            'time_over_online_dpo': round(float(np.median(totals[name] / totals[BASELINE])), 3),
            'draw_s': round(float(draw_s), 4),
            'learn_s': round(float(learn_s), 4),
            'learn_utilisation': round(useful / learn_s / best.flops_per_s, 3),
            'peak_MiB': round(max(sizes) / 2**20),
            'rounds_s': np.round(totals[name], 4).tolist(),
        }
    return out


def rows(sizes: dict[str, Any]) -> list[dict[str, Any]]:
    """What SAIL-RevKL costs against online DPO, and decoding against the machine's limit."""
    outcome = []
    for size, numbers in sizes.items():
        decode, share = (
            numbers['sampling'][key] for key in ('decode_tokens_per_s', 'share_of_limit')
        )
        name = f'{size}: decode / limit of bandwidth and arithmetic'
        outcome.append(row(name, 'tokens/s', decode, decode / share, share, 0.6))
        if 'SAIL-RevKL' not in numbers['update']:
            continue
        ours, theirs = (numbers['update'][method] for method in ('SAIL-RevKL', BASELINE))
        speeds = ours['pairs_per_s'], theirs['pairs_per_s']
        name = f'{size}: SAIL-RevKL / online DPO'
        outcome.append(row(name, 'pairs/s', *speeds, 1 / ours['time_over_online_dpo'], 0.91))
    return outcome


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('--sizes', nargs='+', default=list(SMALL), choices=list(SIZES))
    parser.add_argument(
        '--methods',
        nargs='+',
        default=list(METHODS),
        choices=list(METHODS),
        help='besides online DPO, which all are compared with',
    )
    parser.add_argument('--prompts', type=int, default=32, help='two responses each')
    parser.add_argument('--prompt-tokens', type=int, default=64)
    parser.add_argument('--new-tokens', type=int, default=64)
    parser.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32')
    parser.add_argument('--remat', action='store_true', help='recompute activations')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--quick', action='store_true', help='the smallest size, 1 round')
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.rounds = options.sizes[:1], 1
    options.methods = [name for name in METHODS if name in {BASELINE, *options.methods}]
    best = limits(options.dtype)
    results: dict[str, Any] = {
        'machine': machine('benchmarks.language_throughput'),
        'copy_GB_per_s': round(best.bytes_per_s / 1e9, 2),
        'matmul_GFLOP_per_s': round(best.flops_per_s / 1e9, 1),
        'sizes': {},
    }
    for size in options.sizes:
        outcome = {
            'parameters': parameter_count(SIZES[size]),
            'sampling': decoding(SIZES[size], options, best),
            'update': updating(SIZES[size], options, best),
        }
        if stats := jax.local_devices()[0].memory_stats():
            outcome['measured_peak_MiB'] = round(stats['peak_bytes_in_use'] / 2**20)
        results['sizes'][size] = outcome
        results['rows'] = rows(results['sizes'])
        if options.out:
            write(results, options.out)
        print(size, json.dumps(outcome['sampling']), file=sys.stderr)
        for name, numbers in outcome['update'].items():
            print(
                f'{size} {name:11} {numbers["pairs_per_s"]:9.2f} pairs/s, '
                f'{numbers["time_over_online_dpo"]:.2f} of online DPO, '
                f'utilisation {numbers["learn_utilisation"]:.2f}',
                file=sys.stderr,
            )
    if not options.out:
        write(results, None)


if __name__ == '__main__':
    main()
