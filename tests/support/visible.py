"""The point of `toy`, which can be drawn: one link, wherever it is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from brax.base import Transform
from brax.envs.base import State

from sail_jax.labels import payloads
from tests.support.toy import Point

BALL = '<mujoco><worldbody><body><geom size="0.1"/></body></worldbody></mujoco>'


class Physics(NamedTuple):
    """As much as is drawn."""

    x: Any


class Visible(Point):
    """The link's first two coordinates are what is observed."""

    dt = 0.1

    @property
    def mj_model(self) -> Any:
        return mujoco.MjModel.from_xml_string(BALL)

    def reset(self, rng: jax.Array) -> State:
        return self._drawn(super().reset(rng))

    def step(self, state: State, action: jax.Array) -> State:
        there: Any = state.pipeline_state
        return self._drawn(super().step(state.replace(pipeline_state=there.x.pos[0, :2]), action))

    def _drawn(self, state: State) -> State:
        position = jnp.pad(state.pipeline_state, (0, 1))[None]
        upright = jnp.asarray([[1.0, 0, 0, 0]])
        return state.replace(pipeline_state=Physics(Transform(pos=position, rot=upright)))


def oracle(_number: int, payload: bytes) -> str:
    """What the scripted teacher says of a question, by what the page shows of it."""
    pair = payloads.unpack_segments(payload)
    distance = np.linalg.norm(pair.pose[:, 1:, 0, :2], axis=-1)
    first, second = ((1 - distance) * pair.mask).sum(-1)
    return 'left' if first > second else 'right'
