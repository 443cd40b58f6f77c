"""The share of the learning rate that an update has."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sail_jax.errors import UserError
from sail_jax.language.config import check
from sail_jax.language.optimizer import LanguageOptimizer
from sail_jax.language.schedule import step_size
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


@pytest.mark.parametrize(
    ('schedule', 'arguments', 'message'),
    [
        ('linear_shedule', {}, "optimizer.schedule: 'linear_shedule'; did you mean linear_sched"),
        ('join_schedules', {}, "optimizer.schedule: 'join_schedules'; "),
        ('linear_schedule', {'init': 1}, 'arguments: linear_schedule: .*unexpected keyword'),
        ('constant_schedule', {'value': 'x'}, 'arguments: constant_schedule: .*'),
        ('cosine_decay_schedule', {'init_value': 1, 'decay_steps': 0}, 'positive decay_steps'),
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
