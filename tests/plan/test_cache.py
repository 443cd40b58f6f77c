"""What the compilers said is kept: minutes are spent once on a program, a target and flags."""

import math

import jax
import jax.numpy as jnp
import pytest

from sail_jax.plan import compiler, targets
from sail_jax.plan.compiler import Compiled
from sail_jax.training.program import Program
from tests.support.disk import disk_of

H100 = targets.parse('h100:8')


def program(function):
    return Program('update', jax.jit(function), (jnp.zeros(3),), 1.0)


def moved(x):
    return x + 1


DOUBLED = program(lambda x: 2 * x)


@pytest.fixture
def compiles(tmp_path, monkeypatch):
    """Of which program is asked what the compiler makes."""
    asked = []

    def compile_(lowered):
        asked.append(lowered.as_text())
        return Compiled(f'made {len(asked)}', {'temporaries': 3}, '', 1.5)

    monkeypatch.setattr(compiler, '_compile', compile_)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    for name in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS'):
        monkeypatch.delenv(name, raising=False)
    return asked


def test_results_are_kept_and_damaged_ones_are_not(tmp_path):
    entry = tmp_path / 'plan' / 'key.json.gz'
    one = Compiled('text', {'temporaries': 3}, '', 1.5)
    compiler._write(entry, one)
    assert compiler._read(entry) == one
    entry.write_bytes(entry.read_bytes()[:-4])
    assert compiler._read(entry) is None


@pytest.mark.parametrize(
    'edited',
    [
        {'text': 3},
        {'error': None},
        {'memory': []},
        {'memory': {'temporaries': '3'}},
        {'memory': {'temporaries': -3}},
        {'memory': {'temp': 3}},
        {'seconds': None},
        {'seconds': math.nan},
    ],
)
def test_results_that_were_edited_are_made_again(tmp_path, edited):
    entry = tmp_path / 'plan' / 'key.json.gz'
    one = Compiled('text', {'temporaries': 3}, '', 1.5)
    compiler._write(entry, one._replace(**edited))
    assert compiler._read(entry) is None


def test_of_a_result_that_a_full_disk_does_not_take_no_part_stays(tmp_path):
    with disk_of(10):
        compiler._write(tmp_path / 'plan' / 'key.json.gz', Compiled('text', {}, '', 1.5))
    assert not list((tmp_path / 'plan').iterdir())


def test_a_program_is_compiled_once_wherever_its_lines_are(compiles):
    first = compiler.compile(program(lambda x: x + 1), H100)
    assert compiler.compile(program(lambda x: x + 1), H100) == first
    # Lines are none of a program's, and names of functions are.
    assert len(compiles) == 1
    assert compiler.compile(program(moved), H100) != first


@pytest.mark.parametrize(
    ('error', 'times'),
    [('takes 81G of a memory of 80G', 1), ('ptxas: No space left on device', 2)],
)
def test_what_fails_on_this_host_is_compiled_again(compiles, monkeypatch, error, times):
    made = lambda lowered: compiles.append(lowered) or Compiled('', {}, error, 1.5)
    monkeypatch.setattr(compiler, '_compile', made)
    for _ in range(2):
        assert compiler.compile(DOUBLED, H100).error == error
    assert len(compiles) == times


@pytest.mark.parametrize('name', ['XLA_FLAGS', 'LIBTPU_INIT_ARGS'])
def test_other_flags_are_another_program(name, compiles, monkeypatch):
    first = compiler.compile(DOUBLED, H100)
    monkeypatch.setenv(name, '--of_the_compiler=true')
    assert compiler.compile(DOUBLED, H100) != first
    monkeypatch.delenv(name)
    assert compiler.compile(DOUBLED, H100) == first
    assert len(compiles) == 2


def test_so_are_another_target_another_computation_and_another_compiler(compiles, monkeypatch):
    first = compiler.compile(DOUBLED, H100)
    for text in ('h100:4', 'h200:8', 'v5e:2x4', 'v5e:4x2'):
        assert compiler.compile(DOUBLED, targets.parse(text)) != first
    assert compiler.compile(program(lambda x: 3 * x), H100) != first
    monkeypatch.setattr(compiler, 'versions', lambda: {'jaxlib': '0.1'})
    assert compiler.compile(DOUBLED, H100) != first
    assert len(compiles) == 7
    monkeypatch.setattr(compiler, 'versions', lambda: {'jaxlib': '0.1', 'sail-jax': '0.1'})
    compiler.compile(DOUBLED, H100)
    assert len(compiles) == 7
