"""Learning chosen responses, as the trainer takes it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sail_jax.core import precision
from sail_jax.core.types import Policy
from sail_jax.errors import UserError
from sail_jax.language.data import reader, tokens
from sail_jax.language.data.dataset import Example
from sail_jax.language.data.tokens import Tokenizer
from sail_jax.language.model import policy
from sail_jax.language.model.policy import Decoders
from sail_jax.language.sft import learn
from sail_jax.language.sft.config import SftRun, check
from sail_jax.language.supervised import task
from sail_jax.language.supervised.task import Stage
from sail_jax.training import devices, hosts
from sail_jax.training.task import Evaluate, Task

WATCH = {'eval/loss': 'held-out loss', 'eval/perplexity': 'perplexity'}


def load_tokenizer(run: SftRun) -> Tokenizer:
    """The checkpoint's, or that of the new network.

    Raises:
      UserError: as of `tokens.load`; the new network has not the tokens.
    """
    if run.model.path is not None:
        return tokens.load(run.model.path, **run.model.template)
    assert run.model.tokenizer is not None  # Or the configuration is refused.
    assert run.model.architecture is not None
    tokenizer = tokens.load(run.model.tokenizer, **run.model.template)
    size = run.model.architecture.vocab_size
    if tokenizer.vocab_size > size:
        raise UserError(
            f'model.architecture.vocab_size: {size}; '
            f'{run.model.tokenizer} has {tokenizer.vocab_size} tokens'
        )
    return tokenizer


def make(run: SftRun) -> Task:
    """Builds what the trainer needs.

    Raises:
      UserError: settings that do not go together; a checkpoint, data or a tokeniser that cannot be
        used.
    """
    check(run)
    mesh = devices.make_mesh(run.prompts_per_update, run.devices, 'prompts_per_update')
    decoders = policy.read(run.model, mesh, run.model.architecture, length=run.longest)
    data = reader.prepare(run, load_tokenizer(run), row_type='completion')
    stage = Stage(
        decoders=decoders,
        data=data,
        loss=learn.make_loss(decoders.policy, run.loss_on),
        lanes=1,
        length=lambda example: len(learn.sequence(example)),
        collate=learn.collate,
        evaluate=make_evaluate(run, decoders, data.held_out),
        watch=WATCH,
    )
    return task.make(run, stage, mesh)


def make_nats(run: SftRun, decoders: Decoders) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The compiled program of an evaluation: `(policy, shared, rows)`, as of `learn.nats`."""

    @jax.jit
    @precision.traced_at(precision.resolved(run))
    def nats(policy: Policy, shared: Any, rows: learn.Completions) -> tuple[jax.Array, jax.Array]:
        return learn.nats(decoders.policy(policy, shared), rows, 'response')

    return nats


def make_evaluate(run: SftRun, decoders: Decoders, held_out: Sequence[Example]) -> Evaluate:
    """Loss and perplexity of the held-out responses, whatever is trained on: per token, and summed
    over each response."""
    size = min(len(held_out), run.prompts_per_update)
    batches = [held_out[first : first + size] for first in range(0, len(held_out), size)]
    nats = make_nats(run, decoders)

    def evaluate(
        policy: Policy, start: Policy, shared: Any, seed: jax.Array, hyper: tuple
    ) -> dict[str, float]:
        parts = [nats(policy, shared, learn.collate(batch)) for batch in batches]
        total, tokens = np.sum(hosts.whole(parts), axis=0)
        return {
            'loss': total / tokens,
            'perplexity': np.exp(total / tokens),
            'response_loss': total / len(held_out),
        }

    return evaluate
