"""An episode as one file: what is in it, and that a browser draws it without a network."""

import base64
import json
import re
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from brax.envs.inverted_pendulum import InvertedPendulum

from sail_jax.control import envs, policy, render
from sail_jax.control.config import ControlRun
from sail_jax.errors import UserError
from tests.support import browsing
from tests.support.toy import SETTINGS, Point

RUN = ControlRun.model_validate(
    SETTINGS | {'env': {'name': 'inverted_pendulum', 'episode_length': 30}}
)
SLOW_FRAMES = 'window.requestAnimationFrame = (f) => setTimeout(() => f(performance.now()), 500)'
NAME = 'a</script><script>document.title="taken"</script>&amp;'


class Flagged(InvertedPendulum):
    """Its `done` is a number at reset and a bool in step, which is made right for a run."""

    def step(self, state, action):
        state = super().step(state, action)
        return state.replace(done=state.done > 0)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """The page of an episode, and the return that was printed."""
    path = tmp_path_factory.mktemp('pages') / 'new' / 'page.html'
    env = Flagged(backend='spring')
    fresh = policy.init(jax.random.key(0), env, policy.make_networks(env, RUN), RUN)
    episode = render.render(RUN, fresh, 0, True, name=NAME, whose='trained policy', env=env)
    episode.write(path)
    return path, episode.episode_return


class Elements(HTMLParser):
    """All that a browser would find."""

    def __init__(self, text):
        super().__init__()
        self.found, self.within = [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.within.setdefault(self.found[-1][1].get('id') if self.found else None, data)


def test_the_page_needs_nothing_else(drawn):
    text = drawn[0].read_text()
    elements = Elements(text)
    (policy,) = [a['content'] for tag, a in elements.found if a.get('http-equiv')]
    assert "default-src 'none'" in policy
    links = [a[key] for _, a in elements.found for key in ('src', 'href') if key in a]
    assert all(link.startswith('data:') for link in links)
    assert not re.search(r'https?:|url\(|import[ (]|fetch\(|XMLHttp', text)
    assert len([tag for tag, _ in elements.found if tag == 'script']) == 2, 'of a name, no script'


def test_what_the_page_shows_is_the_episode(drawn):
    path, total = drawn
    shown = json.loads(Elements(path.read_text()).within['episode'])
    assert shown['run'] == NAME
    assert shown['env'] == 'inverted_pendulum (spring)'
    assert shown['policy'] == 'trained policy, sampled actions, seed 0'
    poses, rewards = (
        np.frombuffer(base64.b64decode(shown[k]), '<f4') for k in ('poses', 'rewards')
    )
    poses = poses.reshape(len(rewards) + 1, shown['links'], 7)
    assert rewards.sum() == pytest.approx(total)
    np.testing.assert_allclose(np.linalg.norm(poses[..., 3:], axis=-1), 1, rtol=1e-4)
    assert np.ptp(poses[:, 0, 0]) > 1e-3, 'the cart moves'
    env = envs.make(RUN.env)
    assert len(shown['geoms']) == env.sys.ngeom
    assert {geom['link'] for geom in shown['geoms']} <= {-1, *range(shown['links'])}


@browsing.needs_chromium
def test_a_browser_draws_it_without_a_network(drawn):
    sync_api = pytest.importorskip('playwright.sync_api')
    with browsing.chromium(sync_api) as browser:
        page = browser.new_context(offline=True).new_page()
        page.add_init_script(SLOW_FRAMES)
        said = []
        page.on('console', lambda message: said.append(message.text))
        page.on('pageerror', lambda error: said.append(str(error)))
        page.goto(drawn[0].as_uri() + '#3')
        step, total = page.locator('#step').inner_text(), page.locator('#total').inner_text()
        assert re.fullmatch(r'3 of \d+', step), 'drawn as soon as the page is there'
        assert float(total) == pytest.approx(drawn[1], abs=0.05)
        assert float(page.locator('#return').inner_text()) == 3  # One a step.
        assert page.locator('#env').inner_text() == 'inverted_pendulum (spring)'
        page.locator('#play').click()
        sync_api.expect(page.locator('#step')).not_to_have_text(step)
    assert not said


@pytest.mark.parametrize('name', ['pusher', 'humanoid'])
def test_every_geom_is_drawn(name):
    env = envs.make(RUN.env.model_copy(update={'name': name}))
    geoms = render.geoms(render.model(env))
    assert len(geoms) == env.sys.ngeom
    assert {geom['type'] for geom in geoms} <= {'plane', 'sphere', 'capsule', 'cylinder', 'box'}
    json.dumps(geoms)


def test_what_cannot_be_drawn_or_written_is_one_line(tmp_path):
    env = Point()
    fresh = policy.init(jax.random.key(0), env, policy.make_networks(env, RUN), RUN)
    with pytest.raises(UserError, match='only environments of Brax and MuJoCo'):
        render.render(RUN, fresh, 0, True, env=env)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_episode_of_playground_is_drawn_as_mujoco_has_it(tmp_path):
    pytest.importorskip('mujoco_playground')
    import mujoco

    settings = {'env': {'name': 'CartpoleBalance', 'backend': 'playground', 'episode_length': 4}}
    run = ControlRun.model_validate(SETTINGS | settings)
    env = envs.make(run.env)
    state = jax.jit(env.reset)(jax.random.PRNGKey(0))
    model, data = render.model(env), mujoco.MjData(render.model(env))
    data.qpos[:] = state.data.qpos
    mujoco.mj_forward(model, data)
    pose = np.asarray(render.pose(state))
    np.testing.assert_allclose(pose[:, :3], data.xpos[1:], atol=1e-5)
    np.testing.assert_allclose(pose[:, 3:], data.xquat[1:], atol=1e-5)
    fresh = policy.init(jax.random.key(0), env, policy.make_networks(env, run), run)
    episode = render.render(run, fresh, 0, False)
    shown = json.loads(Elements(episode.page).within['episode'])
    assert shown['links'] == model.nbody - 1 == 2
    assert {geom['link'] for geom in shown['geoms']} == {-1, 0, 1}
    assert len(np.frombuffer(base64.b64decode(shown['poses']), '<f4')) == 5 * 2 * 7
