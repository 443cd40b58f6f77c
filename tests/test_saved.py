"""What is made of a run that lies in its directory, from Python as on the command line."""

import html
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from brax.training.agents.ppo import checkpoint as ppo_checkpoint

import sail_jax
from sail_jax.cli import main
from sail_jax.control import envs
from sail_jax.control.config import ControlRun
from sail_jax.errors import UserError
from tests.support.toy import SETTINGS, Point

PENDULUM = ControlRun.model_validate(
    SETTINGS | {'env': {'name': 'inverted_pendulum', 'episode_length': 30}}
)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp('saved') / 'run'
    sail_jax.train(PENDULUM, path, quiet=True)
    return path


def test_to_import_sail_jax_takes_none_of_what_takes_long():
    code = 'import sail_jax, sys; sail_jax.load, sail_jax.render, sail_jax.load_policy; '
    code += "assert not {'jax', 'matplotlib', 'brax'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True)


def test_all_names_are_there():
    assert all(getattr(sail_jax, name) is not None for name in sail_jax.__all__)
    assert set(sail_jax.__all__) <= set(dir(sail_jax))


@pytest.fixture(scope='module')
def episode(trained):
    """Of seed 3."""
    return sail_jax.render(trained, seed=3)


def test_render_gives_the_page_that_the_command_writes(trained, episode, tmp_path, capsys):
    out = tmp_path / 'new' / 'episode.html'
    assert main(['render', str(trained), '--seed', '3', '--out', str(out)]) == 0
    assert out.read_text() == episode.page
    assert capsys.readouterr().out == f'{out}: return {episode.episode_return:.1f}\n'
    assert repr(episode) == (
        f'Episode(episode_return={episode.episode_return}, length={episode.length})'
    )


def test_a_cell_shows_the_episode_in_a_frame(episode):
    (within,) = re.findall(r'srcdoc="([^"]*)"', episode._repr_html_())
    assert html.unescape(within) == episode.page
    assert 'allow-same-origin' not in episode._repr_html_()


def test_the_loaded_policy_acts_as_the_rendered_one(trained, episode):
    policy, env = sail_jax.load_policy(trained), envs.make(PENDULUM.env)

    @jax.jit
    def acted(key):
        def step(state, _):
            state = env.step(state, policy(state.obs))
            return state, (state.reward, state.done)

        return jax.lax.scan(step, env.reset(jax.random.key_data(key)), length=30)[1]

    reset_key, _ = jax.random.split(jax.random.key(3))
    reward, done = acted(reset_key)
    alive = np.cumsum(done) - done == 0
    assert float((reward * alive).sum()) == pytest.approx(episode.episode_return)


def test_the_loaded_policy_is_the_exported_one(trained, tmp_path):
    theirs = ppo_checkpoint.load_policy(
        sail_jax.export(trained, tmp_path / 'brax'), deterministic=False
    )
    ours = sail_jax.load_policy(trained, deterministic=False)
    greedy = sail_jax.load_policy(trained)
    key = jax.random.key(4)
    for shape in ((4,), (3, 4), (2, 3, 4)):
        obs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        # Theirs draws noise of the same shape from the same key.
        np.testing.assert_allclose(ours(obs, key), theirs(obs, key)[0], atol=1e-6)
        assert greedy(obs).shape == (*shape[:-1], 1)
    assert not np.array_equal(ours(obs, key), ours(obs, jax.random.key(5)))
    obs_B = jnp.ones((2, 4))
    np.testing.assert_allclose(jax.vmap(greedy)(obs_B), greedy(obs_B), atol=1e-6)


def test_whole_numbers_are_observations_as_floats_are(trained):
    act, whole = sail_jax.load_policy(trained), [1, 0, 1, 0]
    for obs in (whole, np.asarray(whole, np.uint8), np.asarray(whole, bool), jnp.asarray(whole)):
        np.testing.assert_array_equal(act(obs), act(np.asarray(whole, np.float32)))


def test_wrong_arguments_of_a_policy_are_one_line(trained):
    with pytest.raises(UserError, match=r'^obs: expected shape \(4,\), or a batch of these, got'):
        sail_jax.load_policy(trained)(np.zeros(3))
    act, sampling = (sail_jax.load_policy(trained, deterministic=d) for d in (True, False))
    for wrong in (None, 'x', [[1, 2, 3, 4], [1]], np.zeros(4, object), act):
        with pytest.raises(UserError, match=r'^obs: expected an array, got a '):
            act(wrong)
    with pytest.raises(UserError, match=r'^obs: expected real numbers'):
        act(np.zeros(4, complex))
    with pytest.raises(UserError, match=r'^key: a sampled action needs one'):
        sampling(np.zeros(4))
    for wrong in (3, jax.random.split(jax.random.key(0)), np.zeros(3, np.uint32)):
        with pytest.raises(UserError, match=r'^key: expected one, '):
            sampling(np.zeros(4), wrong)


def test_a_policy_of_an_environment_from_python_is_loaded_with_it(tmp_path):
    path = tmp_path / 'run'
    sail_jax.train(ControlRun.model_validate(SETTINGS), path, env=Point(), quiet=True)
    assert sail_jax.load_policy(path, env=Point())(np.zeros(2)).shape == (2,)
    with pytest.raises(UserError, match='env Point came from Python'):
        sail_jax.load_policy(path)
    with pytest.raises(
        UserError, match='only environments of Brax and MuJoCo Playground have this viewer'
    ):
        sail_jax.render(path, env=Point())


def test_plot_gives_a_figure_and_writes_where_it_is_told(trained, tmp_path, capsys):
    picture = sail_jax.plot(trained)
    assert len(picture.axes) >= 9
    assert picture._repr_png_().startswith(b'\x89PNG')
    assert not list(tmp_path.iterdir())
    out = tmp_path / 'plot.png'
    assert sail_jax.plot([trained, tmp_path / 'none'], out).left_out
    assert matplotlib.image.imread(out).shape[1] > 1000
    printed = capsys.readouterr().err
    assert printed.startswith(f'sail-jax: not drawn: {tmp_path}/none/config.yaml: No such file')


def test_errors_name_arguments(trained, tmp_path):
    (tmp_path / 'taken').mkdir()
    calls = {
        r'^adapter=True: not for a control run': lambda: sail_jax.export(
            trained, tmp_path / 'out', adapter=True
        ),
        r'taken: exists': lambda: sail_jax.export(trained, tmp_path / 'taken'),
        r'^runs: none to draw': lambda: sail_jax.plot([]),
        r'^seed: should be an integer from 0': lambda: sail_jax.render(trained, seed=-1),
        r'generate is for .*language runs': lambda: sail_jax.generate(trained, ['a prompt']),
    }
    for message, call in calls.items():
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert not re.search(r' --[a-z]', str(caught.value))


def test_a_study_has_no_policy(tmp_path):
    shutil.copy('configs/bandit/landscape.yaml', tmp_path / 'config.yaml')
    with pytest.raises(UserError, match='load_policy is for control, sac, sft, language'):
        sail_jax.load_policy(tmp_path)
