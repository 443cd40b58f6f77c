"""One episode as a web page that needs nothing else, or as a film."""

import base64
import json
from collections.abc import Callable
from functools import partial
from importlib import resources
from typing import Any, NamedTuple

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs.base import Env, PipelineEnv, State

from sail_jax.control import envs, film
from sail_jax.control import policy as control_policy
from sail_jax.control.policy import ActorNetworks
from sail_jax.core import precision
from sail_jax.core.types import Policy
from sail_jax.episode import Episode
from sail_jax.errors import UserError

SHAPES = {
    0: 'plane',
    2: 'sphere',
    3: 'capsule',
    4: 'ellipsoid',
    5: 'cylinder',
    6: 'box',
    7: 'mesh',
}
"""MuJoCo's kinds of geom that are drawn."""
VISUAL = (0, 1, 2)
"""Groups of geoms that are there to be seen; MuJoCo's viewer hides the others too."""
GREY, WHITE, BROWN = (0.5, 0.5, 0.5, 1.0), (1.0, 1.0, 1.0, 1.0), (0.62, 0.47, 0.35, 1.0)


class Drive(NamedTuple):
    """What an episode of T steps was: poses of L links, as position and rotation (w, x, y, z)."""

    pose_TxLx7: np.ndarray
    """The first is that of the start, T + 1 in all."""
    reward_T: np.ndarray


# parameters: those of the command, and what the page says of the policy
def render(
    run: Any,
    policy: Policy,
    seed: int,
    stochastic: bool,
    *,
    name: str = 'episode',
    whose: str = 'policy',
    env: Env | None = None,
    make_networks: Callable[[Env, Any], ActorNetworks] = control_policy.make_networks,
) -> Episode:
    """An episode as a web page, and its return under the true reward.

    Args:
      run: says the environment and the networks.
      seed: of the start state and the noise.
      name: of the run, for the page.
      whose: which policy that is, for the page.
      env: the environment that `train` was given, if it was.
      make_networks: of the environment and the run.

    Raises:
      UserError: the environment cannot be drawn.
    """
    env = envs.make(run.env, env)
    if model(env) is None:
        raise UserError(
            'render: only environments of Brax and MuJoCo Playground have this viewer, not '
            f'{run.env.backend}'
        )
    networks = make_networks(env, run)
    record = precision.traced_at(precision.resolved(run))(_drive)
    drive = record(env, networks, run.env.episode_length, policy, seed, stochastic)
    shown = {
        'run': name,
        'env': run.env.subject,
        'policy': f'{whose}, {"sampled actions" if stochastic else "mode"}, seed {seed}',
        **world(env, drive.pose_TxLx7[0]),
        'poses': _base64(drive.pose_TxLx7),
        'rewards': _base64(drive.reward_T),
    }
    return Episode(
        page=page(shown),
        episode_return=float(drive.reward_T.sum()),
        length=len(drive.reward_T),
        film=partial(film.write, shown, drive.pose_TxLx7),
    )


def model(env: Any) -> Any:
    """MuJoCo's model of what is drawn of an environment; None where there is nothing to draw."""
    env = envs.given(env)
    if isinstance(env, PipelineEnv):
        return env.sys.mj_model
    return getattr(env, 'mj_model', None)


def _drive(
    env: Env,
    networks: ActorNetworks,
    episode_length: int,
    policy: Policy,
    seed: int,
    stochastic: bool,
) -> Drive:
    """One episode, up to its end."""
    reset_key, noise_key = jax.random.split(jax.random.key(seed))

    def step(carry, t):
        state, done = carry
        dist = control_policy.actions(networks, policy, state.obs)
        noise = jax.random.normal(jax.random.fold_in(noise_key, t), dist.loc.shape)
        raw_action = dist.loc + dist.scale * noise * stochastic
        new = env.step(state, networks.parametric_action_distribution.postprocess(raw_action))
        return (new, done | (new.done > 0)), (pose(new), new.reward, done)

    @jax.jit
    def episode(key):
        state = env.reset(jax.random.key_data(key))
        steps = jnp.arange(episode_length)
        return pose(state), jax.lax.scan(step, (state, jnp.zeros((), bool)), steps)[1]

    first, (poses, reward, done) = jax.device_get(episode(reset_key))
    length = int((~done).sum())
    return Drive(np.concatenate([first[None], poses[:length]]), reward_T=reward[:length])


def pose(state: State) -> jax.Array:
    """Position and rotation (w, x, y, z) of every link in the state of an environment of Brax or
    of MuJoCo Playground, [L, 7]."""
    where: Any = state
    while isinstance(where, State):  # One in another, where the environment was made right.
        where = where.pipeline_state
    if hasattr(where, 'data'):  # Of Playground; its first body is the world.
        return jnp.concatenate([where.data.xpos[1:], where.data.xquat[1:]], -1)
    return jnp.concatenate([where.x.pos, where.x.rot], -1)


def world(env: Env, pose_Lx7: np.ndarray) -> dict[str, Any]:
    """What `scene.js` draws of an environment, wherever its links are; seconds of an env step.

    Args:
      pose_Lx7: of a start, which the camera is set to.
    """
    return {
        'dt': float(env.dt),  # pyright: ignore[reportAttributeAccessIssue]
        'view': _view(pose_Lx7),
        'links': len(pose_Lx7),
        'geoms': geoms(model(env)),
    }


def page(shown: dict[str, Any]) -> str:
    """The web page of an episode, with all that it needs."""
    template = resources.files('sail_jax.control').joinpath('viewer.html').read_text('utf-8')
    scene = resources.files('sail_jax').joinpath('scene.js').read_text('utf-8')
    data = json.dumps(shown).replace('<', '\\u003c')  # No text ends the script that it is in.
    return template.replace('SCENE', scene, 1).replace('EPISODE', data, 1)


def geoms(model: Any) -> list[dict[str, Any]]:
    """What is drawn of MuJoCo's model: shapes, and the links that carry them (-1: the world).

    Lengths in metres, rotations as (w, x, y, z), colours as red, green, blue and opacity.
    """
    drawn = []
    for i, kind in enumerate(model.geom_type):
        if int(kind) not in SHAPES or model.geom_group[i] not in VISUAL:
            continue
        geom = {
            'type': SHAPES[int(kind)],
            'link': int(model.geom_bodyid[i]) - 1,
            'pos': model.geom_pos[i].tolist(),
            'rot': model.geom_quat[i].tolist(),
            'size': model.geom_size[i].tolist(),
            'color': _color(model, i),
        }
        if geom['type'] == 'mesh':
            geom |= _mesh(model, int(model.geom_dataid[i]))
        drawn.append(geom)
    return drawn


def _color(model: Any, i: int) -> list[float]:
    """Of a geom: its own, or its material's; brown where nobody chose one (a white material has a
    texture, which is not drawn)."""
    material = model.geom_matid[i]
    color = model.geom_rgba[i]
    if np.allclose(color, GREY) and material >= 0:
        color = model.mat_rgba[material]
    if np.allclose(color, GREY) or (material >= 0 and np.allclose(color, WHITE)):
        return list(BROWN)
    return color.tolist()


def _mesh(model: Any, i: int) -> dict[str, Any]:
    vert, face = model.mesh_vertadr[i], model.mesh_faceadr[i]
    return {
        'vert': model.mesh_vert[vert : vert + model.mesh_vertnum[i]].tolist(),
        'face': model.mesh_face[face : face + model.mesh_facenum[i]].tolist(),
    }


def _view(pose: np.ndarray) -> list[float]:
    """How far the camera is from what it looks at, and how high that is, in metres."""
    pos = pose[:, :3]
    size = float(np.linalg.norm(np.ptp(pos, axis=0))) if len(pos) else 0.0
    return [3 + 1.5 * size, float(pos[:, 2].mean()) if len(pos) else 0.0]


def _base64(x: np.ndarray) -> str:
    return base64.b64encode(np.asarray(x, '<f4').tobytes()).decode('ascii')
