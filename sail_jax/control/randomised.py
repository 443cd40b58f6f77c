"""Physics that are drawn anew for every episode (domain randomisation)."""

import contextlib
import copy
import io
from collections.abc import Callable
from typing import Any

import sail_jax.control.compat  # noqa: F401

import jax
from brax.envs.base import Env, Wrapper

from sail_jax.errors import UserError

DRAWN = 'randomised'
"""In `State.info`: the arrays of the physics' model that are the episode's own."""

Randomiser = Callable[[Any, jax.Array], tuple[Any, Any]]
"""`(model, key_N) -> model, axes` of MuJoCo Playground: arrays whose axis is 0 lead with [N]."""


class Randomised(Wrapper):
    """A Playground environment each of whose episodes has a model of its own.

    What of it was drawn goes with the state, so that states that are copied, as those of a group's
    segments, have the same physics.
    """

    def __init__(self, env: Env, randomiser: Randomiser):
        super().__init__(env)
        self._randomiser = randomiser

    def reset(self, rng: jax.Array) -> Any:
        model_key, reset_key = jax.random.split(rng)
        own = self._drawn(model_key)
        return _with(self._of(own).reset(reset_key), own)

    def step(self, state: Any, action: jax.Array) -> Any:
        info = dict(state.info)
        own = info.pop(DRAWN)
        return _with(self._of(own).step(state.replace(info=info), action), own)

    def _drawn(self, key: jax.Array) -> dict[str, jax.Array]:
        """Of one episode, by their places among the model's leaves."""
        bare: Any = self.env
        model, axes = self._randomiser(bare.mjx_model, key[None])
        leaves, structure = jax.tree.flatten(model)
        axes = structure.flatten_up_to(axes)
        pairs = enumerate(zip(leaves, axes, strict=True))
        return {str(place): x[0] for place, (x, axis) in pairs if axis is not None}

    def _of(self, own: dict[str, jax.Array]) -> Any:
        """The environment with a model of its own."""
        env: Any = copy.copy(self.env)
        leaves, structure = jax.tree.flatten(env.mjx_model)
        # Named as by Playground's own wrapper, which puts models there.
        env._mjx_model = jax.tree.unflatten(
            structure, [own.get(str(i), x) for i, x in enumerate(leaves)]
        )
        return env


def _with(state: Any, own: dict[str, jax.Array]) -> Any:
    return state.replace(info={**state.info, DRAWN: own})


def of_playground(name: str) -> Randomiser:
    """The randomiser that Playground has for an environment.

    Raises:
      UserError: it has none.
    """
    from mujoco_playground import registry

    with contextlib.redirect_stdout(io.StringIO()):  # It prints where there is none.
        found = registry.get_domain_randomizer(name)
        if found is not None:
            return found
        others = [x for x in registry.ALL_ENVS if registry.get_domain_randomizer(x) is not None]
    raise UserError(
        f'env.randomised: Playground has no randomiser for {name}; it has for {", ".join(others)}'
    )
