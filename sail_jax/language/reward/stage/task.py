"""A reward model's training as the trainer takes it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from sail_jax.core import precision
from sail_jax.core.types import Policy
from sail_jax.language import evaluate, export
from sail_jax.language.data import reader, tokens
from sail_jax.language.data.dataset import Example
from sail_jax.language.model.policy import Decoders
from sail_jax.language.reward import reward_model
from sail_jax.language.reward.stage import learn
from sail_jax.language.reward.stage.config import RewardRun, check, check_lengths
from sail_jax.language.supervised import task
from sail_jax.language.supervised.task import Stage
from sail_jax.training import devices
from sail_jax.training.task import Evaluate, Task

WATCH = {'eval/loss': 'held-out loss', 'eval/pair_accuracy': 'accuracy'}


def make(run: RewardRun) -> Task:
    """Builds what the trainer needs.

    Raises:
      UserError: settings that do not go together; a checkpoint, data or a tokeniser that cannot be
        used.
    """
    check(run)
    mesh = devices.make_mesh(run.prompts_per_update, run.devices, 'prompts_per_update')
    decoders = export.decoders_of(run, mesh)
    check_lengths(run, decoders.architecture.max_positions)
    tokenizer = tokens.load(run.model.path, **run.model.template)
    data = reader.prepare(run, tokenizer, row_type='comparison')
    padding = reward_model.padding(run.model.path, tokenizer)
    collate = partial(learn.collate, heads=run.model.heads, seed=run.seed, pad_id=padding)
    stage = Stage(
        decoders=decoders,
        data=data,
        loss=learn.make_loss(decoders.policy, run.loss),
        lanes=2,
        length=learn.length,
        collate=collate,
        evaluate=make_evaluate(run, decoders, data.held_out, collate),
        watch=WATCH,
    )
    return task.make(run, stage, mesh)


def make_rewards(run: RewardRun, decoders: Decoders) -> Callable[..., jax.Array]:
    """The compiled program of an evaluation: `(policy, shared, rows) -> [B, 2, heads]`."""

    @jax.jit
    @precision.traced_at(precision.resolved(run))
    def rewards(policy: Policy, shared: Any, rows: learn.ComparedRows) -> jax.Array:
        model: Any = decoders.policy(policy, shared)
        return learn.rewards_of(model, rows)

    return rewards


def make_evaluate(
    run: RewardRun,
    decoders: Decoders,
    held_out: Sequence[Example],
    collate: Callable[..., learn.ComparedRows],
) -> Evaluate:
    """`learn.numbers` of the held-out pairs."""
    rewards, rows = make_rewards(run, decoders), collate(held_out)
    size = min(len(held_out), run.prompts_per_update)

    def evaluate_pairs(
        policy: Policy, start: Policy, shared: Any, seed: jax.Array, hyper: tuple
    ) -> dict[str, Any]:
        return learn.numbers(evaluate.by_rows(partial(rewards, policy, shared), size, rows))

    return evaluate_pairs
