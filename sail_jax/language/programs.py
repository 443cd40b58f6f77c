"""What is compiled for a language run, from shapes alone: neither data, tokeniser nor weights are
read, and of a model its `config.json`, or what is published of it."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from sail_jax.core import update
from sail_jax.core.types import Hyper, Policies, State
from sail_jax.language import evaluate, task, workload
from sail_jax.language.abstract import SPLIT, abstract, by_rows, forward_flops, laid_out, prompts_of
from sail_jax.language.config import LanguageRun, check_lengths
from sail_jax.language.data import reader
from sail_jax.language.model import policy, published, sharding
from sail_jax.language.model.logprobs import Prompts
from sail_jax.language.model.policy import Decoders
from sail_jax.language.model.sampler import bucket
from sail_jax.language.reward.reward_model import RewardModel
from sail_jax.training import devices
from sail_jax.training.checkpoint import abstract_like
from sail_jax.training.program import Program, Programs, kept_weights

EOS = (0,)
"""Stands in for the tokeniser's, which no shape depends on."""


def programs(run: LanguageRun, chips: devices.Chips = None) -> Programs:
    """What is compiled for a run; see `Kind.programs`. Prompts and responses are as long as the
    configuration lets them be.

    Raises:
      UserError: the devices do not divide the run; nothing is known of a model.
    """
    mesh = devices.make_mesh(run.prompts_per_update, run.devices, 'prompts_per_update', chips)
    architecture = published.architecture(Path(run.model.path))
    check_lengths(run, architecture.longest)
    moves = run.refresh_updates is not None
    decoders = policy.read(run.model, mesh, architecture, length=run.longest, reference_moves=moves)
    state = state_layout(run, decoders, mesh)
    scoring = [
        _reward(run, key, path, mesh)
        for key, source in run.sources.items()
        for path in source.paths
    ]
    B, K = run.prompts_per_update, run.group_size
    pairs = B * K * (K - 1) // 2
    return Programs(
        programs=(
            *_update(run, decoders, state, mesh),
            *(program for program, _ in scoring),
            *_evaluate(run, decoders, state, mesh),
        ),
        mesh=mesh,
        resident={
            'weights': (*kept_weights(state, not moves), *(x for _, x in scoring)),
            'optimizer': state.optimizer,
            'others': (),
        },
        per_update={'prompts': B, 'pairs': pairs, 'tokens': B * K * run.max_response_tokens},
        smaller=task.SMALLER,
        split=SPLIT,
    )


def state_layout(run: LanguageRun, decoders: Decoders, mesh: Mesh) -> State:
    """The training state, abstract and laid out."""
    functions = workload.make(run, decoders, EOS)

    def init(policy: Any, seed: jax.Array, hyper: Hyper) -> State:
        return update.init(functions, run, Policies(policy, policy), seed=seed, hyper=hyper)

    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    state = jax.eval_shape(init, decoders.abstract, seed, Hyper.of(run))
    state = state._replace(shared=decoders.abstract_shared)
    return abstract_like(state, devices.state_sharding(mesh, state, sharding.RULES))


def _update(run: LanguageRun, decoders: Decoders, state: State, mesh: Mesh) -> tuple[Program, ...]:
    compiled = task.make_programs(run, workload.make(run, decoders, EOS), mesh)
    B, K, T = run.prompts_per_update, run.group_size, run.max_response_tokens
    rows = by_rows(mesh, _rows(run, B))
    sampled, _ = jax.eval_shape(compiled.draw, state, rows)
    sampled = by_rows(mesh, sampled, B)
    scores = None
    if run.objective.mixture.dpr > 0:
        replicated = devices.replicated(mesh)
        scores = jax.ShapeDtypeStruct((B, K), jnp.float32, sharding=replicated)
    a, prompt = decoders.architecture, bucket(run.data.max_prompt_tokens)
    lanes = K + run.draws_reference
    forward = forward_flops(a, B, prompt, lanes, T)
    # Backward for what flows through, and for the weights where they are trained.
    backward = forward * (2 if run.model.train == 'full' else 1)
    return (
        Program(
            name='draw',
            function=compiled.draw,
            arguments=(state, rows),
            batch=rows,
            per_update=1,
            steps=run.sampling.max_tokens if run.samples_policy else 0,
            model_flops=forward if run.samples_policy else 0,
            longest=run.sampling.max_tokens,
        ),
        Program(
            name='learn',
            function=compiled.learn,
            arguments=(state, sampled, scores),
            batch=(sampled, scores),
            per_update=1,
            model_flops=forward + run.optimizer.epochs * (forward + backward),
        ),
    )


def _rows(run: LanguageRun, B: int) -> workload.PromptBatch:
    prompts = prompts_of(B, bucket(run.data.max_prompt_tokens))
    if not run.reads_pairs:
        return workload.PromptBatch(prompts, None)
    R = reader.places(run.data.max_response_tokens, run.data.max_response_tokens)
    pairs = workload.Pairs(
        tokens_Bx2xR=abstract((B, 2, R), jnp.int32),
        lengths_Bx2=abstract((B, 2), jnp.int32),
    )
    return workload.PromptBatch(prompts, pairs)


def _reward(run: LanguageRun, key: str, path: Path, mesh: Mesh) -> tuple[Program, Any]:
    """A reward model's program, and its weights; the key is that of its source."""
    source = run.sources[key]
    architecture = published.architecture(path)
    dtype = jnp.dtype(run.model.dtype)

    def build() -> RewardModel:
        # A checkpoint keeps the type that its file has.
        types = {'dtype': dtype, 'param_dtype': jnp.bfloat16}
        return RewardModel(architecture, rngs=nnx.Rngs(0), mesh=mesh, **types)

    graphdef, weights = nnx.split(nnx.eval_shape(build))
    weights = abstract_like(weights, devices.tree_by_rules(mesh, sharding.RULES, weights))

    @jax.jit
    def rewards(weights: nnx.State, sequences: Prompts) -> jax.Array:
        return nnx.merge(graphdef, weights).rewards(sequences)

    count = run.prompts_per_update * run.group_size
    size, tokens = min(source.batch_size, count), bucket(source.max_tokens)
    # Padded on the host, and put nowhere in particular.
    sequences = laid_out(prompts_of(size, tokens), devices.replicated(mesh))
    number = f' {source.paths.index(path)}' if len(source.paths) > 1 else ''
    score = Program(
        name=f'score{key.removeprefix("reward").replace("s.", " ", 1)}{number}',
        function=rewards,
        arguments=(weights, sequences),
        batch=sequences,
        per_update=-(-count // size),
        model_flops=forward_flops(architecture, size, tokens, 0, 0),
    )
    return score, weights


def _evaluate(
    run: LanguageRun, decoders: Decoders, state: State, mesh: Mesh
) -> tuple[Program, ...]:
    """Of an evaluation the part that draws; its other part compares as `learn` does."""
    settings = run.evaluation
    compiled = evaluate.make_programs(run, decoders, EOS)
    rows = evaluate.rows_at_once(run, settings.prompts, mesh.size)
    prompts = laid_out(
        prompts_of(rows, bucket(run.data.max_prompt_tokens)), devices.replicated(mesh)
    )
    seed, numbers = laid_out(
        (abstract((), jnp.uint32), abstract((rows,), jnp.uint32)), devices.replicated(mesh)
    )
    tokens = run.sampling.max_tokens
    drawn = abstract((rows, settings.samples, tokens), jnp.int32)
    lengths = abstract((rows, settings.samples), jnp.int32)
    answers = laid_out((drawn, lengths), devices.replicated(mesh))
    # The start policy answers once.
    calls = -(-settings.prompts // rows) / settings.every_updates
    return (
        Program(
            name='evaluate',
            function=compiled.generate,
            arguments=(state.policy, state.shared, seed, prompts, numbers),
            batch=(prompts, numbers),
            per_update=calls,
            evaluation=True,
            steps=tokens,
            longest=tokens,
        ),
        Program(
            name='weigh',
            function=compiled.weigh,
            arguments=(
                Policies(state.policy, state.policy, state.shared),
                prompts,
                *answers,
            ),
            batch=(prompts, answers),
            per_update=2 * calls,
            evaluation=True,
        ),
    )
