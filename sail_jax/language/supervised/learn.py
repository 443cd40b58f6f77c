"""One update of a supervised stage, pure: a loss, its gradient in parts, an optimizer's step."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sail_jax.core import keys, optimizer, update
from sail_jax.core.schedule import step_size
from sail_jax.core.types import Metrics, Policy, State
from sail_jax.errors import UserError
from sail_jax.language.model import lora
from sail_jax.language.model.layers import STACKED
from sail_jax.language.supervised.config import SupervisedOptimizer


class LossSums(NamedTuple):
    """What a loss is a mean over, and numbers that are reported as such means."""

    terms: jax.Array
    sums: Metrics


Drop = Callable[[Any], Any]
"""Of a model, the same with its adapter's dropout."""


class StageLoss(NamedTuple):
    """What a stage brings down."""

    counts: str
    """What it is a mean over: `tokens`, `pairs`."""
    total: Callable[[Policy, Any, Any, Drop], tuple[jax.Array, LossSums]]
    """`(policy, State.shared, rows, drop)` gives its sum over them; pure."""


def make_optimizer(settings: SupervisedOptimizer, updates: int) -> optax.GradientTransformation:
    """The optimizer behind a clip of the global norm; matrices decay, norms and biases do not.

    Args:
      updates: length of the run, over which the step size rises and falls.

    Raises:
      UserError: as of `core.optimizer.make` and `schedule.step_size`; a decay of matrices that the
        optimizer does not have.
    """
    share = step_size(settings, updates)

    def rate(step: Any) -> Any:
        return settings.learning_rate * share(step)

    return optimizer.make(settings, rate, STACKED, **_decay(settings))


def check_optimizer(settings: SupervisedOptimizer, updates: int) -> None:
    """Tries the optimizer on a gradient.

    Raises:
      UserError: as of `make_optimizer` and `core.optimizer.check`.
    """
    optimizer.check(settings, make_optimizer(settings, updates))


MASKS = ('mask', 'weight_decay_mask')
"""What Optax calls the argument that says which parameters decay."""


def _decay(settings: SupervisedOptimizer) -> dict[str, Any]:
    """The arguments of an optimizer that lets some parameters decay."""
    taken = optimizer.parameters(settings.rule)
    masks = [name for name in MASKS if name in taken and 'weight_decay' in taken]
    if masks:
        for name in settings.arguments.keys() & {'weight_decay', *masks}:
            raise UserError(f'optimizer.arguments: {name}: use optimizer.weight_decay, of matrices')
        return {'weight_decay': settings.weight_decay, masks[0]: _matrices}
    if settings.weight_decay > 0:
        raise UserError(
            f'optimizer.weight_decay: of matrices alone, which optimizer.rule: {settings.rule} '
            'does not tell apart'
        )
    return {}


def _matrices(params: Any) -> Any:
    """Which parameters decay. Layers are stacked, so the number of axes does not tell."""

    def is_matrix(path: Any, _: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator='.')
        return re.search(r'(kernel|embedding|lora_[ab])', name) is not None

    return jax.tree.map_with_path(is_matrix, params)


def init(policy: Policy, seed: jax.Array, rule: optax.GradientTransformation) -> State:
    """The state before the first update. There is no reference, and the cursor is the step."""

    def zero() -> jax.Array:  # Donated: no two may share a buffer.
        return jnp.zeros((), jnp.int32)

    nothing: Any = ()
    return State(
        policy=policy,
        reference=Policy((), ()),
        reference_step=zero(),
        shared=(),
        optimizer=rule.init(policy.params),
        sampler=(),
        seed=seed,
        hyper=nothing,
        step=zero(),
        labels=zero(),
        skipped=zero(),
        skipped_in_a_row=zero(),
    )


def make_learn(
    loss: StageLoss, parts: int, rule: optax.GradientTransformation, dropout: float = 0.0
) -> Callable[[State, Any], tuple[State, Metrics]]:
    """The pure function from a state and a batch to the next state.

    The loss is the mean over what the batch has of `StageLoss.counts`, whatever parts it is
    computed in. An update that is not finite is skipped and counted.

    Args:
      parts: `SupervisedOptimizer.accumulation`.
      dropout: `Lora.dropout`.
    """

    def learn(state: State, rows: Any) -> tuple[State, Metrics]:
        def of_params(params: Any, part: Any) -> tuple[jax.Array, LossSums]:
            rows, key_B = part
            drop = partial(lora.drop, key_B=key_B, rate=dropout) if dropout > 0 else _as_it_is
            return loss.total(state.policy._replace(params=params), state.shared, rows, drop)

        graded = jax.value_and_grad(of_params, has_aux=True)

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, graded(state.policy.params, part)), None

        whole = rows, _drop_keys(state, rows) if dropout > 0 else None
        split = jax.tree.map(lambda x: update.split_rows(x, parts), whole)
        shapes = jax.eval_shape(graded, state.policy.params, whole)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        ((total, counted), grads), _ = jax.lax.scan(add, zeros, split)
        count = jnp.maximum(counted.terms, 1)
        grads = jax.tree.map(lambda g: g / count.astype(g.dtype), grads)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(total)
        updates, optimizer_state = rule.update(grads, state.optimizer, state.policy.params)
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
            loss.counts: counted.terms,
            **{name: value / count for name, value in counted.sums.items()},
            'grad_norm': norm,
            'skipped': state.skipped,
            **update.counters(state),
        }

    return learn


def _as_it_is(model: Any) -> Any:
    return model


def _drop_keys(state: State, rows: Any) -> jax.Array:
    """One for each row of the update's batch."""
    key = keys.update_key(state.seed, state.step + 1)
    return keys.row_keys(key, len(jax.tree.leaves(rows)[0]))
