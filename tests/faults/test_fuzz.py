"""Mutated configurations and data rows: a plan, or one line; never a traceback."""

import contextlib
import io
import json
import random
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sail_jax import cli, configfile, runs
from sail_jax.control.config import ControlRun
from sail_jax.control.config import check as check_control
from sail_jax.errors import UserError
from sail_jax.language.config import LanguageRun
from sail_jax.language.config import check as check_language
from sail_jax.language.data import rows, sources
from sail_jax.language.quickstart.config import QuickstartRun
from sail_jax.language.quickstart.config import check as check_quickstart
from sail_jax.language.reward.stage.config import RewardRun
from sail_jax.language.reward.stage.config import check as check_reward
from sail_jax.language.sft.config import SftRun
from sail_jax.language.sft.config import check as check_sft
from tests.support.mutation import mutate

CONFIGS = sorted(Path('configs').rglob('*.yaml'))


def plan(text: str, path: Path) -> None:
    """Reads a configuration as `train` does, up to where it would begin."""
    path.write_bytes(text.encode('utf-8', 'surrogatepass') if isinstance(text, str) else text)
    run = runs.load(path)
    match run:
        case ControlRun():
            check_control(run)
        case LanguageRun():
            check_language(run)
        case SftRun():
            check_sft(run)
        case RewardRun():
            check_reward(run)
        case QuickstartRun():
            check_quickstart(run)
    assert (
        configfile.validate(type(run), yaml.safe_load(configfile.to_yaml(run)), path, None) == run
    )


def works_or_refuses(call, *arguments) -> None:
    """Anything but `UserError` is a failure; its message is short."""
    message = ''
    try:
        call(*arguments)
    except UserError as error:
        message = str(error) or 'an empty message'
    assert len(message) < 2_000
    assert message != 'an empty message'


@settings(max_examples=1000)
@given(seed=st.integers(0, 2**32))
def test_configurations_with_changed_values(tmp_path_factory, seed):
    rng = random.Random(seed)
    settings = yaml.safe_load(rng.choice(CONFIGS).read_text())
    text = yaml.safe_dump(mutate(settings, rng), allow_unicode=True)
    works_or_refuses(plan, text, tmp_path_factory.getbasetemp() / 'values.yaml')


class Planned(Exception):
    """Training would begin."""


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32))
def test_the_command_line_begins_or_says_one_line_with_status_2(tmp_path_factory, seed):
    rng = random.Random(seed)
    values = yaml.safe_load(rng.choice(CONFIGS).read_text())
    path = tmp_path_factory.getbasetemp() / 'command.yaml'
    text = yaml.safe_dump(mutate(values, rng), allow_unicode=True)
    path.write_bytes(text.encode('utf-8', 'surrogatepass'))
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(printed):
        patch.setattr(runs, 'train', begin)
        try:
            assert cli.main(['train', str(path), '--run-dir', '/none/run']) == 2
        except Planned:
            return
    (line,) = printed.getvalue().splitlines()
    assert line.startswith('sail-jax: ')


def begin(*_, **__):
    raise Planned


@settings(max_examples=1000)
@given(seed=st.integers(0, 2**32), noise=st.binary(min_size=1, max_size=8))
def test_configurations_with_changed_bytes(tmp_path_factory, seed, noise):
    rng = random.Random(seed)
    text = bytearray(rng.choice(CONFIGS).read_bytes())
    at = rng.randrange(len(text))
    text[at : at + rng.randrange(10)] = noise
    works_or_refuses(plan, bytes(text), tmp_path_factory.getbasetemp() / 'bytes.yaml')


ROWS = {
    'trl': [
        {'prompt': 'Which?', 'chosen': 'this', 'rejected': 'that'},
        {'prompt': [{'role': 'user', 'content': 'Which?'}],
         'chosen': [{'role': 'assistant', 'content': 'this'}],
         'rejected': [{'role': 'assistant', 'content': 'that'}]},
        {'chosen': 'Which? this', 'rejected': 'Which? that'},
        {'prompt': 'Which?', 'completion': 'this'},
    ],
    'ultrafeedback': [
        {'prompt': 'Which?',
         'chosen': [{'role': 'user', 'content': 'Which?'}, {'role': 'assistant', 'content': 'a'}],
         'rejected': [{'role': 'user', 'content': 'Which?'},
                      {'role': 'assistant', 'content': 'b'}]},
    ],
    'hh-rlhf': [
        {'chosen': '\n\nHuman: Which?\n\nAssistant: this',
         'rejected': '\n\nHuman: Which?\n\nAssistant: that'},
    ],
    'pku-safe-rlhf': [
        {'prompt': 'Which?', 'response_0': 'this', 'response_1': 'that', 'better_response_id': 1,
         'safer_response_id': 0},
    ],
}  # fmt: skip


@settings(max_examples=2000)
@given(seed=st.integers(0, 2**32))
def test_data_rows_with_changed_values_and_bytes(tmp_path_factory, seed):
    rng = random.Random(seed)
    name = rng.choice(list(ROWS))
    line = json.dumps(mutate(rng.choice(ROWS[name]), rng), default=str).encode()
    if rng.random() < 0.3:
        at = rng.randrange(len(line))
        line = line[:at] + rng.randbytes(rng.randrange(4)) + line[at + rng.randrange(4) :]
    path = tmp_path_factory.getbasetemp() / 'rows.jsonl'
    path.write_bytes(line + b'\n')
    kind = rng.choice(['prompt', 'completion', 'preference'])

    def read():
        for located in sources.read(path):
            row = rows.check(rows.FORMATS[name].convert(located.load()), kind)
            assert row.prompt
            assert kind == 'prompt' or row.chosen
            assert kind != 'preference' or row.rejected != row.chosen

    works_or_refuses(read)


def test_no_code_runs_from_yaml(tmp_path):
    marker = tmp_path / 'ran'
    path = f'!!python/object/apply:pathlib.Path ["{marker}"]'
    text = f'seed: !!python/object/apply:pathlib.Path.touch [{path}]'
    with pytest.raises(UserError, match='not valid YAML'):
        plan(text, tmp_path / 'evil.yaml')
    assert not marker.exists()
