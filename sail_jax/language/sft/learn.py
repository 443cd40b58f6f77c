"""Maximum likelihood of the chosen responses: one update, pure, and the loss of held-out rows."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sail_jax.core import update
from sail_jax.core.types import Metrics, Policy, State
from sail_jax.language.data.dataset import Example
from sail_jax.language.model.attention import prompt_positions
from sail_jax.language.model.logprobs import Predictions, log_probs
from sail_jax.language.model.sampler import bucket, pad_prompts
from sail_jax.language.model.transformer import Decoder
from sail_jax.language.schedule import step_size
from sail_jax.language.sft.config import SftOptimizer, SftRun


class Completions(NamedTuple):
    """Prompts with their responses, padded on the right."""

    tokens_BxS: jax.Array
    lengths_B: jax.Array
    """Of prompt and response together."""
    prompt_lengths_B: jax.Array


def sequences(examples: Sequence[Example]) -> list[list[int]]:
    """Each prompt with its response."""
    return [example.prompt + (example.chosen or []) for example in examples]


def collate(examples: Sequence[Example], places: int = 1) -> Completions:
    """Pads rows to the bucket of the longest; on the host.

    Args:
      places: of each row at the least.
    """
    whole = pad_prompts(sequences(examples), bucket(places))
    prompt_lengths: Any = np.asarray([len(example.prompt) for example in examples], np.int32)
    return Completions(
        tokens_BxS=whole.tokens_BxP,
        lengths_B=whole.lengths_B,
        prompt_lengths_B=prompt_lengths,
    )


def nats(decoder: Decoder, rows: Completions, loss_on: str) -> tuple[jax.Array, jax.Array]:
    """Minus the log-probability of the rows' tokens, summed, and how many tokens these are.

    Args:
      loss_on: `SftRun.loss_on`.
    """
    S = rows.tokens_BxS.shape[1]
    positions = prompt_positions(rows.lengths_B, S)
    hidden_Bx1xSxD, _ = decoder(rows.tokens_BxS[:, None], positions)
    predicted = Predictions(hidden_Bx1xSxD[:, 0, :-1], decoder.head())
    logp = log_probs(predicted, rows.tokens_BxS[:, 1:])
    place = jnp.arange(1, S)
    mask = place < rows.lengths_B[:, None]
    if loss_on == 'response':
        mask &= place >= rows.prompt_lengths_B[:, None]
    return -jnp.where(mask, logp, 0).sum(), mask.sum()


def make_optimizer(settings: SftOptimizer, updates: int) -> optax.GradientTransformation:
    """AdamW behind a clip of the global norm; matrices decay, norms and biases do not.

    Args:
      updates: length of the run, over which the step size rises and falls.
    """
    share = step_size(settings, updates)

    def rate(step: Any) -> Any:
        return settings.learning_rate * share(step)

    return optax.chain(
        optax.clip_by_global_norm(settings.max_grad_norm or jnp.inf),
        optax.adamw(
            rate,
            weight_decay=settings.weight_decay,
            mask=_matrices,
        ),
    )


def _matrices(params: Any) -> Any:
    """Which parameters decay. Layers are stacked, so the number of axes does not tell."""

    def is_matrix(path: Any, _: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator='.')
        return re.search(r'(kernel|embedding|lora_[ab])', name) is not None

    return jax.tree.map_with_path(is_matrix, params)


def init(policy: Policy, seed: jax.Array, optimizer: optax.GradientTransformation) -> State:
    """The state before the first update. There is no reference, and the cursor is the step."""

    def zero() -> jax.Array:  # Donated: no two may share a buffer.
        return jnp.zeros((), jnp.int32)

    nothing: Any = ()
    return State(
        policy=policy,
        reference=Policy((), ()),
        reference_step=zero(),
        shared=(),
        optimizer=optimizer.init(policy.params),
        sampler=(),
        seed=seed,
        hyper=nothing,
        step=zero(),
        labels=zero(),
        skipped=zero(),
        skipped_in_a_row=zero(),
    )


def make_learn(
    model: Callable[[Policy, Any], Decoder], run: SftRun, optimizer: optax.GradientTransformation
) -> Callable[[State, Completions], tuple[State, Metrics]]:
    """The pure function from a state and a batch to the next state.

    The loss is the mean over the batch's tokens, whatever parts it is computed in. An update that
    is not finite is skipped and counted.

    Args:
      model: the decoder of a policy, on `State.shared`.
    """
    parts = run.optimizer.accumulation

    def learn(state: State, rows: Completions) -> tuple[State, Metrics]:
        def loss(params: Any, rows: Completions) -> tuple[jax.Array, jax.Array]:
            decoder = model(state.policy._replace(params=params), state.shared)
            return nats(decoder, rows, run.loss_on)

        def add(total: Any, rows: Completions) -> tuple[Any, None]:
            part = jax.value_and_grad(loss, has_aux=True)(state.policy.params, rows)
            return jax.tree.map(jnp.add, total, part), None

        split = jax.tree.map(lambda x: update.split_rows(x, parts), rows)
        shapes = jax.eval_shape(jax.value_and_grad(loss, has_aux=True), state.policy.params, rows)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        ((total, tokens), grads), _ = jax.lax.scan(add, zeros, split)
        count = jnp.maximum(tokens, 1)
        grads = jax.tree.map(lambda g: g / count.astype(g.dtype), grads)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(total)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.policy.params)
        params = optax.apply_updates(state.policy.params, updates)
        keep = lambda new, old: jnp.where(finite, new, old)
        state = state._replace(
            policy=state.policy._replace(
                params=jax.tree.map(keep, params, state.policy.params),
                statistics=state.policy.statistics + 1,
            ),
            optimizer=jax.tree.map(keep, optimizer_state, state.optimizer),
            step=state.step + 1,
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        return state, {
            'loss': total / count,
            'tokens': tokens,
            'grad_norm': norm,
            'skipped': state.skipped,
            **update.counters(state),
        }

    return learn
