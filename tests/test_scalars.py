"""Scalars of configurations: what they are written as, within what the devices compute with."""

import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from sail_jax import configfile, runs, scalars
from sail_jax.control.config import ControlRun
from sail_jax.errors import UserError
from sail_jax.scalars import Dumper, Loader
from tests.support.settings import ALL, MODELS


def test_there_are_settings_of_every_kind():
    assert {setting.model for setting in ALL} == set(MODELS)
    assert {int, float, bool, str} < set().union(*(setting.kinds for setting in ALL))


NO_INTEGER = [True, np.True_, '3', '12:30:45', b'3', 1.5, 2**63, 10**400, -(2**40), 1e30, np.nan]
NO_NUMBER = [True, '0.1', b'1', 1e308, -1e308, 1e39, 1e-320, 1e-39, np.nan, np.inf, 10**400]
NO_SWITCH = [1, 0, 1.0, 'yes', 'on', 'true', 'True', np.True_, b'1']


@pytest.mark.parametrize(
    ('kind', 'values'), [(int, NO_INTEGER), (float, NO_NUMBER), (bool, NO_SWITCH)]
)
def test_no_setting_takes_what_it_is_not(kind, values):
    accepted = [
        (setting.model.__name__, setting.key, value)
        for setting in ALL
        if kind in setting.kinds
        for value in values
        if not setting.problems([value] if setting.many else value)
    ]
    assert not accepted


def test_no_integer_is_out_of_int32_but_for_lengths_in_steps_and_prompts():
    longer = {
        setting.key
        for setting in ALL
        if int in setting.kinds and not setting.problems([2**31] if setting.many else 2**31)
    }
    assert longer == {
        'total_env_steps',
        'reference.ppo_env_steps',
        'reference.refresh_env_steps',
        'reward.questions.every_env_steps',
        'reference.refresh_prompts',
        'alignment.reference.refresh_prompts',
    }


def test_a_bound_holds_after_rounding_to_float32():
    below = np.nextafter(np.float32(1), np.float32(0))
    for setting in ALL:
        if setting.key in ('optimizer.clip', 'value.discount'):
            assert setting.problems(1 - 1e-12) == [
                'Value error, should be less than 1, as float32 rounds it too'
            ]
            assert not setting.problems(float(below))


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('seed: 1_000', 1000),
        ('seed: 0x10', 16),
        ('seed: 1e3', 1000),
        ('seed: +7', 7),
        ('objective: {beta: 1e-5}', 1e-5),
        ('objective: {beta: 1.0e-5}', 1e-5),
        ('objective: {beta: .5}', 0.5),
        ('objective: {beta: 2}', 2.0),
        ('labeller: {soft: true}', True),
        ('env: {name: on}', 'on'),
        ('env: {name: 12:30:45}', '12:30:45'),
        ('env: {name: 2026-01-31}', '2026-01-31'),
        ('env: {name: 010}', '010'),
        ('optimizer: {clip: none}', None),
        ('optimizer: {clip: }', None),
    ],
)
def test_what_a_file_says(tmp_path, text, value):
    path = tmp_path / 'run.yaml'
    path.write_text(text)
    run = runs.load(path)
    (line,) = configfile.differences(run, ControlRun())
    found = run
    for key in line.split(' ')[0].split('.'):
        found = getattr(found, key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('seed: true', 'seed: should be a valid integer, not true or false, got True'),
        ('optimizer: {arguments: {b1: .nan}}', 'optimizer.arguments.b1: should be a finite number'),
        ('optimizer: {arguments: {b1: [1]}}', 'optimizer.arguments.b1: expected text, a number'),
        ('seed: yes', "seed: should be a valid integer, not text, got 'yes'"),
        ('seed: 12:30:45', "seed: should be a valid integer, not text, got '12:30:45'"),
        ('seed: 2026-01-31', "seed: should be a valid integer, not text, got '2026-01-31'"),
        ('seed: 010', "seed: should be a valid integer, not text, got '010'"),
        ('seed: "3"', "seed: should be a valid integer, not text, got '3'"),
        ('seed: 1__0', "seed: should be a valid integer, not text, got '1__0'"),
        ('seed: ٣', "seed: should be a valid integer, not text, got '٣'"),
        ('rollout: {contexts: true}', 'rollout.contexts: should be a valid integer, not true or'),
        ('labeller: {soft: yes}', "labeller.soft: should be true or false, got 'yes'"),
        ('objective: {beta: "0.1"}', "objective.beta: should be a valid number, not text, got '0"),
        ('objective: {beta: off}', "objective.beta: should be a valid number, not text, got 'off'"),
        ('objective: {beta: 1e308}', 'objective.beta: should be at most 3.4e+38, the largest of'),
        ('objective: {beta: 1e-320}', 'objective.beta: should be 0 or at least 1.18e-38, the'),
        ('sweep: {beta: [1, 1e-320]}', 'sweep.beta.1: should be 0 or at least'),
        ('seeds: [1, "2"]', "seeds.1: should be a valid integer, not text, got '2'"),
        ('seeds: 5_000', 'seeds: should be less than or equal to 4096, got 5000'),
    ],
)
def test_what_a_file_cannot_say(tmp_path, text, said):
    path = tmp_path / 'run.yaml'
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        runs.load(path)
    assert str(caught.value).startswith(f'{path}:1: {said}')


@example('1e-5')
@example('12:30:45')
@example('010')
@example('0o10')
@given(st.text('0123456789eE.+-_xo:~yesnotrufalNI<=', max_size=8) | st.text(max_size=8))
def test_text_stays_text_for_readers_of_either_yaml(text):
    written = yaml.dump({'key': text}, Dumper=Dumper)
    assert yaml.load(written, Loader) == {'key': text}
    assert yaml.safe_load(written) == {'key': text}


@given(st.floats(allow_nan=False) | st.integers() | st.booleans() | st.none())
def test_values_are_read_back_as_they_were_written(value):
    found = yaml.load(yaml.dump({'key': value}, Dumper=Dumper), Loader)['key']
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize('kind', [int, float])
@given(st.text(st.characters(categories=['Nd', 'Nl', 'No']), min_size=1, max_size=4))
def test_a_number_of_the_command_line_is_ascii(kind, text):
    if text.isascii():
        assert scalars.parse(kind, text) == kind(text)
    else:
        with pytest.raises(ValueError, match='should be a'):
            scalars.parse(kind, text)
