"""The share of the learning rate that an update has."""

import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sail_jax import configfile, runs
from sail_jax.core.schedule import step_size
from sail_jax.errors import UserError
from sail_jax.language.config import check
from sail_jax.language.optimizer import LanguageOptimizer
from tests.support import small


def shares(updates, **settings):
    share = step_size(LanguageOptimizer(**settings), updates)
    return np.asarray([share(jnp.int32(step)) for step in range(updates)])


def test_without_settings_it_is_whole():
    np.testing.assert_array_equal(shares(4), 1)


@pytest.mark.parametrize('decay', ['none', 'linear', 'cosine'])
def test_it_rises_from_the_first_update_on_and_is_then_whole(decay):
    got = shares(12, warmup_updates=4, decay=decay)
    np.testing.assert_allclose(got[:5], [0.25, 0.5, 0.75, 1, 1], rtol=1e-6)


def test_it_falls_to_0_at_the_end_of_the_run():
    linear, cosine = (shares(12, warmup_updates=4, decay=d) for d in ('linear', 'cosine'))
    done = np.arange(8) / 8
    np.testing.assert_allclose(linear[4:], 1 - done, rtol=1e-6)
    np.testing.assert_allclose(cosine[4:], (1 + np.cos(np.pi * done)) / 2, rtol=1e-5)


@pytest.mark.parametrize(
    ('schedule', 'arguments'),
    [
        ('linear_schedule', {'init_value': 1.0, 'end_value': 0.1, 'transition_steps': 5}),
        (
            'warmup_cosine_decay_schedule',
            {'init_value': 0.0, 'peak_value': 1.0, 'warmup_steps': 2, 'decay_steps': 6},
        ),
        ('exponential_decay', {'init_value': 2, 'transition_steps': 2, 'decay_rate': 0.5}),
    ],
)
def test_schedules_are_optaxs_by_their_names(schedule, arguments):
    got = shares(8, schedule=schedule, schedule_arguments=arguments)
    wanted = getattr(optax, schedule)(**arguments)
    np.testing.assert_array_equal(got, np.asarray([wanted(step) for step in range(8)], np.float32))
    assert len(set(got.tolist())) > 4


SCALES = {2: 0.5, 5: 0.1}
HALVES = [
    {'schedule': 'linear_schedule', 'init_value': 0.0, 'end_value': 1.0, 'transition_steps': 3},
    {'schedule': 'piecewise_constant_schedule', 'init_value': 1.0, 'boundaries_and_scales': SCALES},
]
CYCLES = [
    {'init_value': 0.0, 'peak_value': 1.0, 'decay_steps': 4, 'warmup_steps': 1, 'end_value': 0.0},
    {'init_value': 0.0, 'peak_value': 0.5, 'decay_steps': 4, 'warmup_steps': 2, 'end_value': 0.0},
]


@pytest.mark.parametrize(
    ('schedule', 'arguments', 'wanted'),
    [
        (
            'piecewise_constant_schedule',
            {'init_value': 1.0, 'boundaries_and_scales': SCALES},
            optax.piecewise_constant_schedule(1.0, SCALES),
        ),
        (
            'piecewise_interpolate_schedule',
            {'interpolate_type': 'linear', 'init_value': 1.0, 'boundaries_and_scales': SCALES},
            optax.piecewise_interpolate_schedule('linear', 1.0, SCALES),
        ),
        ('sgdr_schedule', {'cosine_kwargs': CYCLES}, optax.sgdr_schedule(CYCLES)),
        (
            'join_schedules',
            {'schedules': HALVES, 'boundaries': [3]},
            optax.join_schedules(
                [
                    optax.linear_schedule(0.0, 1.0, 3),
                    optax.piecewise_constant_schedule(1.0, SCALES),
                ],
                [3],
            ),
        ),
    ],
)
def test_schedules_take_lists_and_mappings(schedule, arguments, wanted, tmp_path):
    """From a file, from what a run leaves, and as JSON from the command line."""
    got = shares(9, schedule=schedule, schedule_arguments=arguments)
    expected = np.asarray([wanted(jnp.int32(step)) for step in range(9)])
    np.testing.assert_array_equal(got, expected)
    assert len(set(got.tolist())) > 2
    settings = {'schedule': schedule, 'schedule_arguments': arguments}
    run = small.run('m', 'd', optimizer=settings)
    check(run)
    configfile.write(run, tmp_path / 'config.yaml')
    assert runs.load(tmp_path / 'config.yaml') == run
    words = [
        word
        for key, value in arguments.items()
        for word in (key, value if isinstance(value, str) else json.dumps(value))
    ]
    options = ['--optimizer.schedule', schedule, '--optimizer.schedule-arguments', *words]
    told = configfile.override(small.run('m', 'd'), options, 'sail-jax', '')
    assert told.optimizer == run.optimizer


@pytest.mark.parametrize(
    ('schedule', 'arguments', 'message'),
    [
        ('piecewise_constant_schedule', {'init_value': 1, 'boundaries_and_scales': '{'}, 'JSON'),
        (
            'piecewise_constant_schedule',
            {'init_value': 1, 'boundaries_and_scales': {'a': 1}},
            'invalid literal',
        ),
        (
            'piecewise_constant_schedule',
            {'init_value': 1, 'boundaries_and_scales': dict.fromkeys(range(2000), 0.9)},
            'boundaries_and_scales: over 8192 characters',
        ),
        (
            'join_schedules',
            {'schedules': [{'init_value': 1}], 'boundaries': []},
            'optimizer.schedule: None; there are',
        ),
        ('join_schedules', {'schedules': [3], 'boundaries': []}, 'join_schedules: AttributeError'),
        ('linear_shedule', {}, "optimizer.schedule: 'linear_shedule'; did you mean linear_sched"),
        ('inject_hyperparams', {}, "optimizer.schedule: 'inject_hyperparams'; "),
        ('linear_schedule', {'init': 1}, 'arguments: linear_schedule: .*unexpected keyword'),
        ('constant_schedule', {'value': 'x'}, 'arguments: constant_schedule: .*'),
        ('cosine_decay_schedule', {'init_value': 1, 'decay_steps': 0}, 'positive decay_steps'),
        (
            'exponential_decay',
            {'init_value': 1, 'transition_steps': 2, 'decay_rate': 0.5, 'staircase': 'no'},
            "exponential_decay: staircase: 'no'; expected true or false",
        ),
        ('constant_schedule', {'value': True}, 'constant_schedule: value: True; expected a number'),
    ],
)
def test_what_is_no_schedule_is_one_line(schedule, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        shares(3, schedule=schedule, schedule_arguments=arguments)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('optimizer', 'message'),
    [
        ({'schedule': 'linear_schedule', 'decay': 'linear'}, 'optimizer.schedule: stands in for'),
        ({'schedule_arguments': {'value': 1}}, 'schedule_arguments: not used without'),
        ({'minibatches': 2, 'accumulation': 4}, 'accumulation: 4 does not divide the 2 prompts'),
    ],
)
def test_settings_that_do_not_go_together_are_refused(optimizer, message):
    with pytest.raises(UserError, match=message):
        check(small.run('m', 'd', optimizer=optimizer))


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        ('constant_schedule', {'value': -1}, 'update 0 has -1 times'),
        (
            'linear_schedule',
            {'init_value': 1, 'end_value': -1, 'transition_steps': 10},
            'update 6 has -0.2 times',
        ),
        (
            'polynomial_schedule',
            {'init_value': 1, 'end_value': 0, 'power': -1, 'transition_steps': 4},
            'update 4 has inf times',
        ),
    ],
)
def test_a_schedule_is_a_rate_through_all_of_the_run(name, arguments, message):
    """Also where it begins well: a negative one ascends, an infinite one ends the policy."""
    settings = LanguageOptimizer(schedule=name, schedule_arguments=arguments)
    with pytest.raises(UserError, match=f'^optimizer.schedule: {name}: {message} the learning'):
        step_size(settings, 10)
    if 'update 0' not in message:
        step_size(settings, 4)
