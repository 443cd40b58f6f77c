"""An episode as a film: MuJoCo draws it on the CPU or the GPU, without a screen.

MuJoCo's own renderer, since it is there wherever there are Brax and Playground, and knows shapes,
meshes and shadows; PyAV writes `.mp4`, which brings its codecs along, Pillow `.gif`.
"""

import contextlib
import importlib
import io
import os
import platform
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import mujoco
import numpy as np

from sail_jax import files
from sail_jax.errors import UserError, one_line

mj: Any = mujoco  # Whose names are not in its Python files.

WIDTH, HEIGHT = 640, 480
"""Pixels: MuJoCo's buffer, if a model does not ask for a larger one."""
MOST_PER_S = {'.mp4': 50, '.gif': 20}
"""Frames of a second; of more env steps some are left out."""
TURN, LIFT = 111.2, -18.3
"""Degrees: the way the camera looks at first on the page too."""
EASE = 0.12
"""How far it goes after what moves, each frame."""
SKY = (0.957, 0.973, 0.984), (0.827, 0.871, 0.91)
FLOOR = (0.725, 0.78, 0.831), (0.788, 0.835, 0.875)
"""The page's colours, up and down, and by turns."""


def write(shown: Mapping[str, Any], pose_TxLx7: np.ndarray, path: Path) -> None:
    """Writes a film, `.mp4` or `.gif`, in real time.

    Args:
      shown: as of `render.world`.
      pose_TxLx7: of the links, as of `render.pose`.

    Raises:
      UserError: nothing here can draw it; it cannot be written, and no part of it stays.
    """
    suffix = path.suffix.lower()
    every = max(1, round(1 / (shown['dt'] * MOST_PER_S[suffix])))
    frames, per_s = draw(shown, pose_TxLx7[::every]), 1 / (every * shown['dt'])
    content = io.BytesIO()
    (_write_gif if suffix == '.gif' else _write_mp4)(content, frames, per_s)
    files.write(path, content.getvalue())


def draw(shown: Mapping[str, Any], pose_TxLx7: np.ndarray) -> Iterator[np.ndarray]:
    """The frames, [HEIGHT, WIDTH, 3], bytes; arguments and errors as of `write`."""
    model = scene_of(shown)
    data, scene = mj.MjData(model), mj.MjvScene(model, maxgeom=10_000)
    option, camera = mj.MjvOption(), mj.MjvCamera()
    far, height = shown['view']
    camera.distance, camera.azimuth, camera.elevation = far, TURN, LIFT
    aim = np.array([0, 0, height]) if not shown['links'] else [*pose_TxLx7[0, 0, :2], height]
    camera.lookat[:] = aim
    place = mj.MjrRect(0, 0, WIDTH, HEIGHT)
    pixels = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    with _context():
        target = mj.MjrContext(model, mj.mjtFontScale.mjFONTSCALE_100.value)
        mj.mjr_setBuffer(mj.mjtFramebuffer.mjFB_OFFSCREEN.value, target)
        for pose_Lx7 in pose_TxLx7:
            if shown['links']:
                camera.lookat[:2] += EASE * (pose_Lx7[0, :2] - camera.lookat[:2])
            data.mocap_pos[:] = [camera.lookat, *pose_Lx7[:, :3]]
            data.mocap_quat[1:] = pose_Lx7[:, 3:]
            mj.mj_kinematics(model, data)
            mj.mj_camlight(model, data)
            every = mj.mjtCatBit.mjCAT_ALL.value
            mj.mjv_updateScene(model, data, option, None, camera, every, scene)
            mj.mjr_render(place, scene, target)
            mj.mjr_readPixels(pixels, None, place, target)
            yield pixels[::-1].copy()  # OpenGL's first row is the lowest.
        target.free()


def scene_of(shown: Mapping[str, Any]) -> Any:
    """MuJoCo's model of what the page draws: a body for each link, which goes where it is put, and
    before them one with a light, which goes with the camera."""
    spec = mj.MjSpec()
    # What shadows and clipping are measured in; links all lie at the origin when it is compiled.
    spec.stat.extent, spec.stat.center = shown['view'][0], [0, 0, shown['view'][1]]
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = [0.5] * 3, [0.25] * 3
    spec.visual.headlight.specular = [0.1] * 3
    gradient, checks = mj.mjtBuiltin.mjBUILTIN_GRADIENT, mj.mjtBuiltin.mjBUILTIN_CHECKER
    sky, flat = mj.mjtTexture.mjTEXTURE_SKYBOX, mj.mjtTexture.mjTEXTURE_2D
    size = {'width': 256, 'height': 256}
    spec.add_texture(name='sky', type=sky, builtin=gradient, rgb1=SKY[0], rgb2=SKY[1], **size)
    spec.add_texture(name='floor', type=flat, builtin=checks, rgb1=FLOOR[0], rgb2=FLOOR[1], **size)
    floor = spec.add_material(name='floor', texrepeat=[0.5, 0.5], texuniform=True)
    floor.textures[mj.mjtTextureRole.mjTEXROLE_RGB] = 'floor'
    light = spec.worldbody.add_body(mocap=True)
    light.add_light(
        type=mj.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=[1.4, -1.8, 3.3],
        dir=[-0.35, 0.45, -0.82],
        diffuse=[0.45] * 3,
    )
    bodies = [spec.worldbody.add_body(mocap=True) for _ in range(shown['links'])]
    bodies.append(spec.worldbody)  # Link -1.
    planes = 0
    for geom in shown['geoms']:
        how = {'pos': geom['pos'], 'quat': geom['rot'], 'rgba': geom['color']}
        if geom['type'] == 'plane':
            planes += 1
            how |= {'rgba': [1, 1, 1, float(planes == 1)], 'material': 'floor'}
            how |= {'size': [0, 0, 1]}
        elif geom['type'] == 'mesh':
            mesh = spec.add_mesh(name=f'mesh {len(spec.meshes)}')
            mesh.uservert, mesh.userface = np.ravel(geom['vert']), np.ravel(geom['face'])
            mesh.inertia = mj.mjtMeshInertia.mjMESH_INERTIA_SHELL
            how |= {'meshname': mesh.name}
        else:
            how |= {'size': geom['size']}
        kind = getattr(mj.mjtGeom, f'mjGEOM_{geom["type"].upper()}')
        bodies[geom['link']].add_geom(type=kind, **how)
    return spec.compile()


@contextlib.contextmanager
def _context() -> Iterator[None]:
    """What OpenGL draws into without a screen: EGL, or as MUJOCO_GL says.

    Raises:
      UserError: there is none.
    """
    usual = 'cgl' if platform.system() == 'Darwin' else 'egl'
    name = os.environ.get('MUJOCO_GL', '').lower() or usual
    try:
        context = importlib.import_module(f'mujoco.{name}').GLContext(WIDTH, HEIGHT)
        context.make_current()
    except Exception as error:  # Of PyOpenGL, ctypes or the driver, whatever is missing.
        raise UserError(
            f'render: films are drawn with OpenGL ({name}), which does not work here: '
            f"{one_line(error)}; install it (Debian's libegl1 and libgl1-mesa-dri), or write the "
            'page, .html'
        ) from None
    try:
        yield
    finally:
        context.free()


def _write_mp4(to: BinaryIO, frames: Iterator[np.ndarray], per_s: float) -> None:
    import av

    with av.open(to, 'w', format='mp4') as film:
        stream = film.add_stream('libx264', rate=Fraction(per_s).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, 'yuv420p'
        stream.options = {'crf': '20', 'movflags': 'faststart'}
        for frame in frames:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(frame, 'rgb24')))
        film.mux(stream.encode())


def _write_gif(to: BinaryIO, frames: Iterator[np.ndarray], per_s: float) -> None:
    from PIL import Image

    images = [Image.fromarray(frame).quantize(64) for frame in frames]
    more, ms = images[1:], round(1000 / per_s)
    images[0].save(to, 'GIF', save_all=True, append_images=more, duration=ms, loop=0)
