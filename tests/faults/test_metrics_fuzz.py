"""Damaged and edited `metrics.jsonl`: a resume repairs it, what reads it says one line."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sail_jax import configfile, plots
from sail_jax.control.config import ControlRun
from sail_jax.control.kind import CONTROL
from sail_jax.curves import Group, load_all
from sail_jax.errors import UserError
from sail_jax.training import metrics
from sail_jax.training.rows import scan
from tests.support.toy import SETTINGS

STRANGE = [
    None, True, False, 0, -1, 1.5, 10**400, -(10**30), 1e308, -1e308, 5e-324, math.nan, math.inf,
    '', 'x', '1', '\x1b[2J', [], [1], {}, {'a': 1}, '\udc80',
]  # fmt: skip
BYTES = [b'', b'\0', b'\0' * 5000, b'\n', b'\r\n', b'\xff\xfe', b'[' * 100_000, b'9' * 5000,
         b'{"step": 1}', b'NaN', b'\xef\xbb\xbf', b',', b'"', b'}', b'{']  # fmt: skip


def sound(step):
    return {
        'step': step,
        'env_steps': 60 * step,
        'labels': 12 * step,
        'wall_s': 0.5 * step,
        'train/kl': 0.1,
        'eval/return': float(step),
        'eval/kl_policy_to_start': 0.25,
    }


def mutate(rng):
    """A file of sound rows of which something was changed."""
    rows = [sound(step) for step in range(6)]
    for _ in range(rng.randrange(3)):
        row = rng.choice(rows)
        key = rng.choice([*row, 'new', ''])
        row[key] = rng.choice(STRANGE)
        if rng.random() < 0.3:
            del row[key]
    if rng.random() < 0.3:
        rng.shuffle(rows)
    if rng.random() < 0.3:
        rows.insert(rng.randrange(len(rows)), rng.choice([*rows, *STRANGE]))
    text = bytearray(b''.join(json.dumps(row).encode() + b'\n' for row in rows))
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(text) + 1)
        text[at : at + rng.choice([0, 0, 1, 7, 300])] = rng.choice(BYTES)
    return bytes(text[: rng.randrange(len(text) + 1)] if rng.random() < 0.2 else text)


def resume(path, text):
    """What a run that goes on after step 3 leaves of a file."""
    path.write_bytes(text)
    for left in path.parent.glob('damaged-*'):
        left.unlink()
    with metrics.console.capture() as said:
        writer = metrics.JsonLines(path, 3)
        writer.write(sound(4))
        writer.close()
    return metrics.read_rows(path), list(path.parent.glob('damaged-*')), said.get()


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32))
def test_a_run_goes_on_whatever_its_metrics_are(tmp_path_factory, seed):
    path = tmp_path_factory.mktemp('fuzz') / 'metrics.jsonl'
    text = mutate(random.Random(seed))
    rows, aside, said = resume(path, text)
    steps = [row['step'] for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == 4
    assert rows[-1] == sound(4)
    # Nothing that was there is made up, and nothing that was left out is lost.
    readable = []
    for line in text.split(b'\n'):
        try:
            readable.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    assert all(set(row) in [set(other) for other in readable if isinstance(other, dict)]
               for row in rows[:-1])  # fmt: skip
    assert bool(aside) == bool(said)
    assert said.count('\n') <= 1
    assert not aside or aside[0].read_bytes() == text


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32))
def test_curves_are_read_or_refused_in_one_line(tmp_path_factory, seed):
    path = tmp_path_factory.mktemp('fuzz')
    (path / 'config.yaml').write_text(configfile.to_yaml(ControlRun.model_validate(SETTINGS)))
    (path / 'metrics.jsonl').write_bytes(mutate(random.Random(seed)))
    curves, refused = load_all([path])
    assert bool(curves) != bool(refused)
    for error in refused:
        assert str(path) in str(error)
        assert str(error).isprintable()
    axis = plots.Picture().subplots()
    for x in CONTROL.figure.x:
        for y in CONTROL.figure.y:
            plots.draw(axis, Group('name', curves), (x, y), plots.look(0), plots.PLAIN)
    for line in axis.lines:
        assert np.isfinite(line.get_xydata().astype(float)).all()


def test_what_is_left_of_sound_rows_is_what_was_there(tmp_path):
    text = b''.join(json.dumps(sound(step)).encode() + b'\n' for step in range(6))
    rows, aside, _ = resume(tmp_path / 'metrics.jsonl', text)
    assert rows == [sound(step) for step in range(5)]
    assert not aside


@pytest.mark.parametrize(
    ('line', 'why'),
    [
        (b'{"step": 2', 'not JSON'),
        (b'[1]', 'expected an object, got list'),
        (b'{"env_steps": 2}', 'step: expected a count, got None'),
        (b'{"step": true}', 'step: expected a count, got True'),
        (b'{"step": 1.0}', 'step: expected a count, got 1.0'),
        (b'{"step": -1}', 'step: expected a count, got -1'),
        (b'{"step": 2, "a": "x"}', "'a': expected a number, got 'x'"),
        (b'{"step": 2, "a": 1e300}', "'a': 1e+300 is too large"),
        (b'{"step": 1}', 'step 1 after step 1'),
        (b'\xff', 'not JSON'),
        (b'x' * 2**21, 'over 1048576 bytes'),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, why):
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    assert scan(path) == ([{'step': 1}, {'step': 3}], [f'2: {why}'])
    with pytest.raises(UserError) as caught:
        metrics.read_rows(path)
    assert str(caught.value) == f'{path}:2: {why}; delete the line'


@pytest.mark.parametrize('end', [b'{"step": 3', b'\0' * 4096, b'{"step": 3, "a": [', b'\xff'])
def test_a_half_line_at_the_end_is_no_damage(tmp_path, end):
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(b'{"step": 1}\n\r\n{"step": 2, "a": NaN, "b": 1e999}\n' + end)
    assert metrics.read_rows(path) == [{'step': 1}, {'step': 2, 'a': None, 'b': None}]
