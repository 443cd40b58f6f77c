"""An ensemble of rewards, fitted by Bradley-Terry on pairs of segments (arXiv 1706.03741).

Pure functions of arrays, for any algorithm: `ensemble = make(settings, obs_shape, action_size)`,
then `ensemble.init(key)`, `ensemble.predict(params, obs, action)` and `ensemble.fit(fitted, pairs,
key)`. The defaults are PEBBLE's (arXiv 2106.05091, `reward_model.py`).

Axes: M members, N pairs, T env steps, A the action's entries.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
import optax
from brax.training import networks as brax_networks

from sail_jax.control.policy import observed
from sail_jax.control.reward.config import RewardEnsemble
from sail_jax.core import bradley_terry
from sail_jax.core.types import Metrics


class Comparisons(NamedTuple):
    """Pairs of segments, and what was said of them; every array leads with [N].

    Arrays of a fixed size can have empty places: their weight is 0.
    """

    obs: Any
    """Before each step, [N, 2, T, O]; as `observed` gives them."""
    action: jax.Array
    """What the environment was given, [N, 2, T, A]."""
    mask: jax.Array
    """1 for steps that happened, [N, 2, T]."""
    prob: jax.Array
    """Probability that the first is better, [N]; 1/2 is "the same"."""
    weight: jax.Array
    """1 where there is an answer, [N]; 0 where it was skipped, or none has come yet."""


class Fitted(NamedTuple):
    """What a fit goes on from."""

    params: Any
    """Leaves lead with [M]."""
    optimizer: Any


class Fit(NamedTuple):
    """What a fit came to."""

    fitted: Fitted
    accuracy: jax.Array
    """`bradley_terry.accuracy` of the last pass, each minibatch before its gradient step; the mean
    of the members. 0 where there was none."""
    passes: jax.Array
    """How many there were, int32."""


class Ensemble(NamedTuple):
    """The functions of an ensemble; all pure, all jittable, under `vmap` too."""

    init: Callable[[jax.Array], Fitted]
    """`key -> Fitted`: new members."""
    predict: Callable[[Any, Any, jax.Array], jax.Array]
    """`(params, obs [..., O], action [..., A]) -> [M, ...]`: each member's reward of a step."""
    fit: Callable[..., Fit]
    """`(fitted, pairs, key, passes=settings.passes) -> Fit`: see `fit`."""


def make(settings: RewardEnsemble, obs_shape: Any, action_size: int) -> Ensemble:
    """An ensemble's functions.

    Args:
      obs_shape: of an observation, or a dict of those, as of `policy.observation_shape`.
    """
    network = brax_networks.MLP(
        layer_sizes=(*settings.hidden, 1), activation=brax_networks.ACTIVATION['leaky_relu']
    )
    rule = optax.adam(settings.learning_rate)
    (width,) = observed(obs_shape)

    def predict_one(params: Any, obs: Any, action: jax.Array) -> jax.Array:
        out: Any = network.apply(params, jnp.concatenate([observed(obs), action], -1))
        return jnp.tanh(out[..., 0])

    def init(key: jax.Array) -> Fitted:
        nothing = jnp.zeros((1, width + action_size))
        params = jax.vmap(network.init, (0, None))(jax.random.split(key, settings.members), nothing)
        return Fitted(params=params, optimizer=jax.vmap(rule.init)(params))

    return Ensemble(
        init=init,
        predict=jax.vmap(predict_one, (0, None, None)),
        fit=partial(fit, settings, predict_one, rule),
    )


def margins(ensemble: Ensemble, params: Any, pairs: Comparisons) -> jax.Array:
    """By how much each member's return of the first is larger, [M, N]."""
    reward_MxNx2xT = ensemble.predict(params, pairs.obs, pairs.action)
    return_MxNx2 = (reward_MxNx2xT * pairs.mask).sum(-1)
    return return_MxNx2[..., 0] - return_MxNx2[..., 1]


OF_ANSWERS = ('answer_accuracy', 'answer_loss', 'answer_confidence', 'answer_calibration_error')


def of_answers(margin_N: jax.Array, prob_N: jax.Array, weight_N: jax.Array) -> Metrics:
    """How right and how sure margins are about answers: `OF_ANSWERS`, NaN of none.

    Args:
      margin_N: the members' mean.
      prob_N, weight_N: as of `Comparisons`.
    """
    loss_N = bradley_terry.cross_entropy(margin_N, prob_N)
    numbers = {
        'accuracy': bradley_terry.accuracy(margin_N, prob_N, weight_N),
        'loss': (weight_N * loss_N).sum() / jnp.maximum(weight_N.sum(), 1),
        **bradley_terry.calibration(margin_N, prob_N, weight_N),
    }
    decided_N = weight_N * (prob_N != 0.5)
    counted = {'accuracy': decided_N.any()}
    there = lambda name: counted.get(name, weight_N.any())
    return {f'answer_{name}': jnp.where(there(name), x, jnp.nan) for name, x in numbers.items()}


# parameters: the first three are those that `make` sets.
def fit(
    settings: RewardEnsemble,
    predict_one: Callable[[Any, Any, jax.Array], jax.Array],
    rule: optax.GradientTransformation,
    fitted: Fitted,
    pairs: Comparisons,
    key: jax.Array,
    passes: jax.typing.ArrayLike | None = None,
) -> Fit:
    """Goes through all answers again and again, each member in an order of its own.

    It ends after `passes`, or after a pass that had more than `settings.stop_accuracy` right.

    Args:
      pairs: of any size; empty places cost nothing but memory.
      passes: 0 leaves all as it is, also under `vmap`, where a `cond` would compute both ways.
    """
    passes = jnp.asarray(settings.passes if passes is None else passes, jnp.int32)
    one = partial(_pass, min(settings.minibatch, len(pairs.weight)), predict_one, rule, pairs)
    passes = jnp.where(pairs.weight.any(), passes, 0)

    def going_on(now: Fit) -> jax.Array:
        return (now.passes < passes) & (now.accuracy <= settings.stop_accuracy)

    def body(now: Fit) -> Fit:
        keys = jax.random.split(jax.random.fold_in(key, now.passes), settings.members)
        fitted, accuracy = jax.vmap(one)(now.fitted, keys)
        return Fit(fitted=fitted, accuracy=accuracy.mean(), passes=now.passes + 1)

    start = Fit(fitted=fitted, accuracy=jnp.zeros(()), passes=jnp.zeros((), jnp.int32))
    if len(pairs.weight) == 0:
        return start
    return jax.lax.while_loop(going_on, body, start)


# parameters: those of `fit`, for one member.
def _pass(
    size: int,
    predict_one: Callable[[Any, Any, jax.Array], jax.Array],
    rule: optax.GradientTransformation,
    pairs: Comparisons,
    fitted: Fitted,
    key: jax.Array,
) -> tuple[Fitted, jax.Array]:
    """One member's pass over all answers, `size` at a time, and how many of them it had right."""
    N = len(pairs.weight)
    answered = (pairs.weight > 0).sum()
    # Answers first, in a random order; then the empty places, which no step comes to.
    order_N = jnp.argsort(jnp.where(pairs.weight > 0, jax.random.uniform(key, (N,)), 2.0))
    order = jnp.pad(order_N, (0, -N % size))

    def loss(params: Any, part: Comparisons, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        reward = predict_one(params, part.obs, part.action)
        returns = (reward * part.mask).sum(-1)
        margin = returns[:, 0] - returns[:, 1]
        total = (weight * bradley_terry.cross_entropy(margin, part.prob)).sum()
        hits = bradley_terry.accuracy(margin, part.prob, weight)
        decided = (weight * jnp.abs(2 * part.prob - 1)).sum()
        return total / jnp.maximum(weight.sum(), 1), jnp.stack([hits * decided, decided])

    def step(i: jax.Array, now: tuple[Fitted, jax.Array]) -> tuple[Fitted, jax.Array]:
        fitted, right = now
        rows = jax.lax.dynamic_slice(order, (i * size,), (size,))
        part = jax.tree.map(lambda x: x[rows], pairs)
        weight = part.weight * (i * size + jnp.arange(size) < answered)
        grads, hits = jax.grad(loss, has_aux=True)(fitted.params, part, weight)
        updates, optimizer = rule.update(grads, fitted.optimizer, fitted.params)
        return Fitted(optax.apply_updates(fitted.params, updates), optimizer), right + hits

    steps = -(-answered // size)
    fitted, (hits, decided) = jax.lax.fori_loop(0, steps, step, (fitted, jnp.zeros(2)))
    return fitted, hits / jnp.maximum(decided, 1e-6)
