"""Numbers and text for every numeric setting and option: taken as what they are, or one line."""

import contextlib
import io
import math
from decimal import Decimal

import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sail_jax import cli, commands, configfile, runs
from sail_jax.control.config import ControlRun
from sail_jax.errors import UserError
from tests.support.settings import ALL, Setting, settings

NUMERIC = [setting for setting in ALL if setting.kinds & {int, float}]
OF_CONTROL = [s for s in settings(ControlRun) if s.kinds & {int, float}]

INTEGERS = st.integers(-(10**40), 10**40) | st.sampled_from(
    [sign * (2**power + more) for power in (0, 8, 16, 31, 32, 53, 63, 64) for more in (-1, 0, 1)
     for sign in (1, -1)]
)  # fmt: skip
NUMBERS = st.floats() | st.sampled_from(
    [1e308, -1e308, 1e39, 3.5e38, 1e-38, 1e-46, 1e-320, -1e-320, 5e-324, math.inf, math.nan, -0.0]
)
TEXTS = st.sampled_from(
    ['true', 'yes', 'on', 'no', '010', '0x10', '0b1', '1_000', '1__0', '12:30:45', '2026-01-31',
     '1e3', '1e-5', '1.', '.5', '+5', '٣', '१२', '²', 'Ⅷ', '3٣', ' 3', '3 ', '1e400',
     '-1e400', '1' * 5000, 'nan', 'inf', 'none', 'null', '~', '', '-', '--', '1,000', '1 000', '3L']
) | st.text(max_size=6) | st.text(st.characters(categories=['Nd', 'No']), max_size=4)  # fmt: skip
VALUES = INTEGERS | NUMBERS | TEXTS | st.booleans() | st.none()


def is_right(setting: Setting, value) -> bool:
    """Whether a value that was taken can be what the devices compute with."""
    if value is None or isinstance(value, str):
        return value is None or value == 'auto'
    if isinstance(value, tuple | list):
        return all(is_right(setting, item) for item in value)
    if isinstance(value, bool):
        return False
    if isinstance(value, int) and int in setting.kinds:
        return abs(value) <= 2**40
    with np.errstate(over='ignore', under='ignore'):
        rounded = np.float32(value)
    return bool(np.isfinite(rounded)) and (rounded == 0) == (value == 0)


def one_line(error: UserError) -> None:
    text = str(error)
    assert '\n' not in text
    assert 0 < len(text) < 1000
    text.encode()


def taken(setting: Setting, run):
    for key in setting.keys:
        run = getattr(run, key)
    return run


@hypothesis_settings(max_examples=600)
@example(OF_CONTROL[0], True)
@given(st.sampled_from(NUMERIC), VALUES)
def test_values_of_settings(setting, value):
    given = [value] if setting.many else value
    if setting.problems(given):
        with pytest.raises(UserError) as caught:
            configfile.validate(setting.model, setting.data(given))
        one_line(caught.value)
    else:
        # Taken as it is: no text and no switch has become a number.
        assert value is None or value in ('none', 'auto') or not isinstance(value, str | bool)
        assert value in ('none', None) or is_right(setting, value)


@hypothesis_settings(max_examples=200)
@given(st.sampled_from(OF_CONTROL), TEXTS | INTEGERS.map(str) | NUMBERS.map(repr))
def test_text_of_files(tmp_path_factory, setting, text):
    path = tmp_path_factory.getbasetemp() / 'numbers.yaml'
    lines = [f'{"  " * depth}{key}:' for depth, key in enumerate(setting.keys)]
    lines[-1] += f' [{text}]' if setting.many else f' {text}'
    path.write_text('\n'.join(lines), 'utf-8', 'surrogatepass')
    try:
        run = runs.load(path)
    except UserError as error:
        one_line(error)
        return
    found = taken(setting, run)
    assert is_right(setting, found)
    # What is read is what the digits say, as far as they are digits.
    with contextlib.suppress(ArithmeticError, ValueError):
        if text.isascii() and not setting.many and isinstance(found, int | float):
            assert found == pytest.approx(float(Decimal(text.strip())), rel=1e-12)
    assert yaml.safe_load(configfile.to_yaml(run)) == run.model_dump(mode='json')


@hypothesis_settings(max_examples=40)
@given(
    st.sampled_from(OF_CONTROL),
    TEXTS.filter(lambda text: text != '-h') | INTEGERS.map(str) | NUMBERS.map(repr),
)
def test_arguments_of_settings(setting, text):
    try:
        run = configfile.override(ControlRun(), [f'--{setting.key}', text], 'prog', 'description')
    except UserError as error:
        one_line(error)
        return
    assert is_right(setting, taken(setting, run))
    assert text.isascii()


OPTIONS = {
    'evaluate': ('--episodes',),
    'render': ('--seed',),
    'generate': ('--seed', '--samples', '--max-tokens', '--temperature'),
    'doctor': ('--num-processes', '--process-id'),
}
WORDS = {'evaluate': ['none'], 'render': ['none'], 'generate': ['none', 'x'], 'doctor': []}


@hypothesis_settings(max_examples=120)
@example(('evaluate', '--episodes'), '--')
@given(
    st.sampled_from([(command, name) for command, names in OPTIONS.items() for name in names]),
    TEXTS | INTEGERS.map(str) | NUMBERS.map(repr),
)
def test_options_of_commands(option, text):
    command, name = option
    found = []
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(printed):
        # What the command would do with it.
        for each in OPTIONS:
            patch.setattr(commands, f'_{each}', found.append)
        status = cli.main([command, *WORDS[command], f'{name}={text}'])
    if status == 0:
        (options,) = found
        value = getattr(options, name.removeprefix('--').replace('-', '_'))
        assert text.isascii()
        assert not isinstance(value, int) or 0 <= value < 2**31
        assert float(text) == value or value != value
    else:
        assert status == 2
        (line,) = printed.getvalue().splitlines()
        assert line.startswith(f'sail-jax: argument {name}: ')
