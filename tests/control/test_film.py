"""An episode as a film: what is drawn, how long it takes, what is missing where it cannot be."""

import sys

import numpy as np
import pytest

from sail_jax import episode
from sail_jax.control import film
from sail_jax.errors import UserError
from tests.support.disk import disk_of
from tests.support.refused import message

RED, BLUE = (1.0, 0.0, 0.0, 1.0), (0.0, 0.0, 1.0, 1.0)
UPRIGHT = [1.0, 0.0, 0.0, 0.0]
TETRAHEDRON = {
    'vert': [[0, 0, 0], [0.4, 0, 0], [0, 0.4, 0], [0, 0, 0.4]],
    'face': [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]],
}


def geom(kind, link, color, size=(0.15, 0.15, 0.15), **more):
    where = {'pos': [0, 0, 0], 'rot': UPRIGHT}
    return {'type': kind, 'link': link, 'size': list(size), 'color': list(color), **where, **more}


SHOWN = {
    'dt': 0.025,
    'view': [4.0, 0.5],
    'links': 2,
    'geoms': [
        geom('plane', -1, (0.5, 0.5, 0.5, 1), (40, 40, 40)),
        geom('plane', -1, RED, (40, 40, 40)),
        geom('box', 0, BLUE),
        geom('mesh', 1, RED, **TETRAHEDRON),
    ],
}


def poses(T=9):
    """The first link stands still, the second goes from left to right before the camera."""
    pose = np.zeros((T, 2, 7), np.float32)
    pose[..., 2], pose[..., 3] = 0.5, 1
    pose[:, 1, 0], pose[:, 1, 1] = np.linspace(-1, 1, T), -0.5
    return pose


def drawn(shown, pose):
    """The frames, where there is OpenGL."""
    try:
        return np.stack(list(film.draw(shown, pose)))
    except UserError as error:
        pytest.skip(str(error))


def middle(frame, channel):
    """Where a colour is, and how much there is of it."""
    others = frame.astype(int).sum(-1) - frame[..., channel]
    here = frame[..., channel] > 40 + 1.2 * others
    return np.argwhere(here).mean(0), here.sum()


def test_links_are_where_they_are_put():
    frames = drawn(SHOWN, poses())
    assert frames.shape == (9, film.HEIGHT, film.WIDTH, 3)
    red, blue = (np.array([middle(f, channel)[0] for f in frames]) for channel in (0, 2))
    assert (np.diff(red[:, 1]) > 20).all()
    seen = [0, 1, 2, 7, 8]  # The red one goes by in front of it.
    np.testing.assert_allclose(blue[seen], blue[:1].repeat(5, 0), atol=1)
    # The box is what the camera looks at. The second plane is no floor, and not there.
    np.testing.assert_allclose(blue[0], [film.HEIGHT / 2, film.WIDTH / 2], atol=40)
    assert middle(frames[0], 0)[1] < 5000


def test_the_camera_goes_after_the_first_link():
    pose = poses()[:, ::-1]
    frames = drawn(SHOWN, pose)
    blue = np.array([middle(frame, 2)[0][1] for frame in frames])
    red = np.array([middle(frame, 0)[0][1] for frame in frames])
    # Half as much as if it stood still, and what stands goes the other way.
    assert 20 < blue[-1] - blue[0] < 250
    assert red[-1] < red[0] - 20


@pytest.mark.parametrize('kind', ['sphere', 'capsule', 'ellipsoid', 'cylinder'])
def test_every_shape_has_its_place(kind):
    shown = SHOWN | {'links': 1, 'geoms': [geom(kind, 0, RED)]}
    ((row, column), size), *_ = [middle(f, 0) for f in drawn(shown, poses(1)[:, :1])]
    assert abs(row - film.HEIGHT / 2) < 20
    assert abs(column - film.WIDTH / 2) < 20
    assert size > 300


def test_films_take_as_long_as_the_episode(tmp_path):
    drawn(SHOWN, poses(1))
    av = pytest.importorskip('av')
    from PIL import Image

    film.write(SHOWN, poses(41), tmp_path / 'a.mp4')
    with av.open(str(tmp_path / 'a.mp4')) as video:
        frames = list(video.decode(video=0))
        # 40 a second; its first and its last frame are a second apart.
        assert len(frames) == 41
        assert frames[-1].time - frames[0].time == pytest.approx(1.0, abs=1e-3)
        red = [middle(f.to_ndarray(format='rgb24'), 0)[0][1] for f in (frames[0], frames[-1])]
        assert red[1] > red[0] + 100
    film.write(SHOWN, poses(41), tmp_path / 'a.gif')
    with Image.open(tmp_path / 'a.gif') as gif:
        assert (gif.n_frames, gif.info['duration'], gif.info['loop']) == (21, 50, 0)


def test_of_a_film_that_a_full_disk_does_not_take_no_part_stays(tmp_path):
    drawn(SHOWN, poses(1))
    pytest.importorskip('av')
    for name in ('a.mp4', 'a.gif'):
        with disk_of(100):
            said = message(film.write, SHOWN, poses(1), tmp_path / name)
        assert said == f'{tmp_path / name}: File too large'
    assert not list(tmp_path.iterdir())


def test_a_name_says_what_is_written(tmp_path):
    made = episode.Episode(
        page='page', episode_return=0.0, length=1, film=lambda path: path.write_text('film')
    )
    for name, content in {'a.GIF': 'film', 'a.HTML': 'page', 'a': 'page'}.items():
        made.write(tmp_path / name)
        assert (tmp_path / name).read_text() == content
    said = f'{tmp_path}/a.webm: a page ends in .html, a film in .mp4 or .gif'
    assert message(made.write, tmp_path / 'a.webm') == said


def test_a_film_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    made = episode.Episode(page='', episode_return=0.0, length=1, film=lambda path: None)
    monkeypatch.setitem(sys.modules, 'av', None)
    path = tmp_path / 'new' / 'a.mp4'
    assert message(made.write, path) == f"{path}: needs av; pip install 'sail-jax[video]'"
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv('MUJOCO_GL', 'nothing')
    said = message(film.write, SHOWN, poses(1), tmp_path / 'a.gif')
    assert said.startswith('render: films are drawn with OpenGL (nothing), which does not work')
    assert '.html' in said
