"""How parameters follow the gradient: an optimizer of Optax, clipped, and kept in a ball."""

import functools
import inspect
from collections.abc import Collection
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from sail_jax import config
from sail_jax.core import registry
from sail_jax.core.trial import tried
from sail_jax.errors import UserError


def make(
    settings: config.OptaxRule,
    learning_rate: jax.typing.ArrayLike | optax.Schedule,
    stacked: str | None = None,
    **arguments: Any,
) -> optax.GradientTransformation:
    """The optimizer behind a clip of the global norm.

    Args:
      stacked: the entry of the parameters whose arrays are stacks: an optimizer that goes by whole
        arrays (`OF_ARRAYS`) takes each layer of a stack for one. None is none.
      **arguments: of the optimizer, besides those of the settings.

    Raises:
      UserError: Optax has none of that name, or it does not take these arguments.
    """
    clip = optax.clip_by_global_norm(settings.max_grad_norm or jnp.inf)
    build = _named(settings.rule)
    registry.require_switches(f'optimizer.arguments: {settings.rule}', build, settings.arguments)
    try:
        rule = build(learning_rate, **settings.arguments, **arguments)
    except TypeError as error:
        raise UserError(f'optimizer.arguments: {settings.rule}: {error}') from error
    if stacked is not None and settings.rule in OF_ARRAYS:
        rule = _by_layer(rule, stacked)
    return optax.chain(clip, rule)


def check(settings: config.OptaxRule, rule: optax.GradientTransformation | None = None) -> None:
    """Tries the optimizer on a gradient.

    Args:
      rule: what was made of the settings, where that is more than `make` makes of them alone.

    Raises:
      UserError: as of `make`; it needs more than gradients and parameters; its step is not finite.
    """
    rule = rule or make(settings, settings.learning_rate)
    params = {'kernel': jnp.zeros((4, 4)), 'bias': jnp.zeros(4)}

    def step(params: Any) -> Any:
        return rule.update(params, rule.init(params), params)[0]

    what = f'optimizer.rule: {settings.rule}'
    tried(what, step, params)
    for leaf in jax.tree.leaves(step(jax.tree.map(jnp.ones_like, params))):
        if not jnp.isfinite(leaf).all():
            raise UserError(f'{what}, optimizer.arguments: {settings.arguments}: no finite step')


OF_ARRAYS = ('adafactor', 'fromage', 'galore', 'lamb', 'lars', 'muon', 'novograd', 'sm3')
"""Optimizers for which an array is more than its numbers: a matrix, or something with a norm."""


def _by_layer(
    rule: optax.GradientTransformation, stacked: str
) -> optax.GradientTransformationExtraArgs:
    """The optimizer for which each layer's arrays are arrays by themselves."""

    # Of a model may also be trained what is in no layer.
    def init(params: Any) -> Any:
        return jax.vmap(rule.init)(params) if jax.tree.leaves(params) else ()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if not jax.tree.leaves(updates):
            return updates, state
        return jax.vmap(rule.update)(updates, state, params)

    def labels(params: Any) -> Any:
        def label(path: Any, _: Any) -> str:
            name = jax.tree_util.keystr(path, simple=True, separator='.')
            return 'layers' if name.startswith(f'{stacked}.') else 'others'

        return jax.tree.map_with_path(label, params)

    layers = optax.GradientTransformation(init, update)
    return optax.multi_transform({'layers': layers, 'others': rule}, labels)


def parameters(rule: str) -> Collection[str]:
    """What an optimizer takes, by the names of its arguments.

    Raises:
      UserError: Optax has none of that name.
    """
    return inspect.signature(_named(rule)).parameters.keys()


def _named(rule: str) -> Any:
    """The function of Optax that makes an optimizer of a learning rate."""
    rules = _rules()
    if rule not in rules:
        known = registry.there_are(sorted(rules), rule)
        raise UserError(f'optimizer.rule: {rule!r:.80}; {known} in Optax')
    return rules[rule]


OTHERWISE = ('_', 'scale_by_', 'schedule_free_', 'dpsgd', 'noisy_sgd')
"""How functions begin that are no optimizers; or whose policy is not their parameters; or that take
each row's gradient; or whose noise is the same for every seed."""


@functools.cache
def _rules() -> dict[str, Any]:
    """Optax's optimizers: functions whose first parameter is a learning rate."""
    functions = {
        name: value
        for name, value in {**vars(optax.contrib), **vars(optax)}.items()
        if isinstance(value, FunctionType | functools.partial) and not name.startswith(OTHERWISE)
    }
    return {
        name: function
        for name, function in functions.items()
        if next(iter(inspect.signature(function).parameters), None) == 'learning_rate'
    }


def project(params: Any, radius: float | None, bounded: str | None = None) -> Any:
    """Projects the parameters, taken as one vector, on the L2 ball around the origin.

    Args:
      radius: of the ball; None leaves the parameters free.
      bounded: the one entry that is projected; None is all of them. See `Workload.bounded`.
    """
    if radius is None:
        return params
    if bounded is not None:
        return {**params, bounded: project(params[bounded], radius)}
    return optax.projections.projection_l2_ball(params, radius)
