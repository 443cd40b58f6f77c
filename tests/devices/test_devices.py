"""Training on several (fake) devices is the same training, and any of them can go on with it."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.support import spread
from tests.support.spread import SHAPES

SLOW = pytest.mark.slow
WORKLOADS = (
    pytest.param('control', marks=SLOW),
    'bandit',
    pytest.param('language', marks=SLOW),
)
OTHERS = (pytest.param(2, marks=SLOW), pytest.param(4, marks=SLOW), 8)
UNFUSED = '--xla_cpu_max_isa=AVX'
"""Programs for one device and for several fuse multiply-adds in other places; so they fuse none."""
TOLERANCE = 1e-5
"""Of parameters after 50 updates of control, 10 of the bandit, 8 of the language model: sums are
taken in another order."""


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Runs `tests.support.spread` on so many devices, once; gives its directory."""
    path, known = tmp_path_factory.mktemp('devices'), {}

    def on(name, count, theirs=None, flags=''):
        if (name, count, theirs) not in known:
            out = path / f'{name}-{count}-{theirs}'
            arguments = [name, out, *([on(name, theirs)] if theirs else [])]
            if count == jax.device_count() and not flags:  # As this process has.
                spread.main(*arguments)
            else:
                command = [sys.executable, '-m', 'tests.support.spread', *arguments]
                many = f'--xla_force_host_platform_device_count={count}'
                env = {**os.environ, 'XLA_FLAGS': f'{many} {flags}'}
                subprocess.run(command, env=env, check=True, timeout=1200)
            known[name, count, theirs] = out
        return known[name, count, theirs]

    return on


def assert_same(ours, theirs):
    ours, theirs = dict(np.load(ours)), dict(np.load(theirs))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key], err_msg=key)


def assert_close(ours, theirs):
    """The parameters, and how far they came."""
    ours, theirs = np.load(ours), np.load(theirs)
    assert ours['.step'] == theirs['.step']
    keys = [key for key in ours if key.startswith('.policy.params')]
    assert keys
    for key in keys:
        np.testing.assert_allclose(ours[key], theirs[key], atol=TOLERANCE, err_msg=key)


@pytest.mark.parametrize('count', OTHERS)
@pytest.mark.parametrize('name', WORKLOADS)
def test_any_devices_draw_the_same_samples(run, name, count):
    alone, several = run(name, 1), run(name, count)
    if name == 'language':
        ours, theirs = (np.load(out / 'whole.npz')['said'] for out in (alone, several))
        assert ours.shape == (1, 16)
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert_same(alone / 'first.npz', several / 'first.npz')


@pytest.mark.slow
def test_a_reward_that_is_learned_hears_the_same_answers_on_any_devices(run):
    alone, several = (np.load(run('reward', n) / 'whole.npz') for n in (1, 8))
    told = '.sampler.reward'
    assert alone[f'{told}.asked'] == several[f'{told}.asked'] == 18
    # After the first round the policies that draw the pairs agree to rounding, and the fits make
    # more of that.
    np.testing.assert_array_equal(alone[f'{told}.update_N'], several[f'{told}.update_N'])
    for key in ('obs', 'action', 'mask', 'prob', 'weight'):
        ours, theirs = (each[f'{told}.answers.{key}'][:5] for each in (alone, several))
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4, 8])
@pytest.mark.parametrize(('contexts', 'lanes'), SHAPES)
def test_batches_of_any_shape_are_the_same(run, count, contexts, lanes):
    ours, theirs = (run('control', n) / f'{contexts}x{lanes}.npz' for n in (1, count))
    assert_same(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4, 8])
def test_batches_simulated_at_once_agree_to_rounding(run, count):
    ours, theirs = (np.load(run('control', n) / 'at_once.npz') for n in (1, count))
    for key in ours:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=TOLERANCE, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4, 8])
def test_a_brax_simulator_draws_the_same(run, count):
    alone, several = (run('hopper', n, flags=UNFUSED) for n in (1, count))
    assert_same(alone / 'first.npz', several / 'first.npz')


@pytest.mark.parametrize('count', OTHERS)
@pytest.mark.parametrize('name', WORKLOADS)
def test_parameters_agree_to_the_order_of_sums(run, name, count):
    assert_close(run(name, 1) / 'whole.npz', run(name, count) / 'whole.npz')


@pytest.mark.parametrize('count', [1, 8])
@pytest.mark.parametrize('name', [*WORKLOADS, pytest.param('reward', marks=SLOW)])
def test_two_halves_are_the_whole_bit_for_bit(run, name, count):
    """Optimizer, simulator states, normaliser, data cursor, label budget, skip counters, rows."""
    whole, parts = (dict(np.load(run(name, count) / f'{x}.npz')) for x in ('whole', 'parts'))
    for key in whole.keys() - {'said'}:
        np.testing.assert_array_equal(whole[key], parts[key], err_msg=key)
    assert whole.keys() == parts.keys()
    if name == 'bandit':  # Ended by its budget, after two updates that were not finite.
        assert (whole['.labels'], whole['.step'], whole['.skipped']) == (150, 10, 4)


@pytest.mark.slow
@pytest.mark.parametrize(('count', 'theirs'), [(2, 8), (8, 1)])
@pytest.mark.parametrize('name', WORKLOADS)
def test_other_devices_go_on_with_the_same_samples(run, name, count, theirs):
    here, there = run(name, count, theirs), run(name, theirs)
    if name == 'language':
        ours, theirs = (np.load(out / 'parts.npz')['said'] for out in (here, there))
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert_same(here / 'next.npz', there / 'next.npz')
    assert_close(here / 'parts.npz', there / 'parts.npz')


@pytest.mark.slow
def test_devices_tell_each_other_gradients_and_no_samples(run):
    alone, eight = (np.load(run('control', count) / 'communication.npz') for count in (1, 8))
    assert (alone['devices'], eight['devices']) == (1, 8)
    assert list(alone['kinds']) == []
    assert set(eight['kinds']) == {'all-reduce'}
    # The gradient once, with a few numbers: the loss, its metrics and what they are means of.
    assert 0 <= eight['gradient_bytes'] - eight['parameter_bytes'] <= 40
    assert eight['gradient_collectives'] == 1
    assert eight['other_bytes'] <= 256


@pytest.mark.slow
def test_shares_of_eight_devices_add_up_to_the_gradient(run):
    found = dict(np.load(run('control', 8) / 'gradients.npz'))
    assert len(set(found.pop('labels_of_a_device'))) > 1
    assert len(found.pop('routes')) == 4
    split, whole = (
        {key.replace(kind, '', 1): x for key, x in found.items() if kind in key}
        for kind in ("['split']", "['whole']")
    )
    assert split.keys() == whole.keys()
    assert len(split) + len(whole) == len(found) > 100
    for key, x in split.items():
        np.testing.assert_allclose(x, whole[key], rtol=1e-5, atol=1e-6, err_msg=key)
