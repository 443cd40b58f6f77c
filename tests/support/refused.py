"""What is wrong with a configuration, as the user is told."""

import pytest

from sail_jax import configfile
from sail_jax.control.config import ControlRun
from sail_jax.errors import UserError


def message(call, *arguments):
    """The error's text, which is one line."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert text
    assert '\n' not in text
    return text


def override(*arguments, run=None):
    return configfile.override(run or ControlRun(), list(arguments), 'prog', 'description')
