"""Options of all commands: numbers in bounds, names that can be; one line, nothing left behind."""

import argparse
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib.image
import pytest

import sail_jax
from sail_jax import cli, configfile, files, plots, processor, program_cache
from sail_jax.control.config import ControlRun
from sail_jax.curves import Curve, group_by_settings, load_all
from sail_jax.errors import UserError
from sail_jax.sweep import Members
from tests.support.disk import disk_of
from tests.support.paths import ROOT
from tests.support.toy import SETTINGS, Point

QUICKSTART = 'configs/quickstart.yaml'


def said(capsys, *arguments):
    """What a refused command prints, which is one line."""
    assert cli.main(list(arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == ''
    assert printed.err.startswith('sail-jax: ')
    assert printed.err.count('\n') == 1
    return printed.err.removeprefix('sail-jax: ')


@pytest.mark.parametrize(
    ('arguments', 'what'),
    [
        (['evaluate', 'none', '--episodes', '1000000000000'], 'from 2 to 1048576'),
        (['evaluate', 'none', '--episodes', '1'], 'from 2 to 1048576'),
        (['evaluate', 'none', '--episodes', '1e3'], 'from 2 to 1048576'),
        (['render', 'none', '--seed', '-1'], 'from 0 to 2147483647'),
        (['render', 'none', '--seed', '2147483648'], 'from 0 to 2147483647'),
        (['generate', 'none', 'x', '--seed', str(10**400)], 'from 0 to 2147483647'),
        (['generate', 'none', 'x', '--seed', '٣'], "from 0 to 2147483647, got '٣'"),
        (['generate', 'none', 'x', '--samples', '0'], 'from 1 to 65536'),
        (['generate', 'none', 'x', '--samples', '1.5'], 'from 1 to 65536'),
        (['generate', 'none', 'x', '--max-tokens', '9' * 30], 'from 1 to 1048576'),
        (['generate', 'none', 'x', '--temperature', '٣'], "should be a number, got '٣'"),
        (['reward', 'evaluate', 'none', '--episodes', '1'], 'from 2 to 65536'),
        (['reward', 'evaluate', QUICKSTART], 'name a run whose policies act: --on RUN'),
        (['labels', 'export', 'none', ''], 'out: is empty'),
        (['doctor', '--num-processes', '0'], 'from 1 to 65536'),
        (['doctor', '--process-id', '-1'], 'from 0 to 65536'),
        (['train', QUICKSTART, '--num-processes', '9' * 20], 'from 1 to 65536'),
        (['train', QUICKSTART, '--run-dir', ''], '--run-dir: is empty'),
        (['export', 'none', ''], 'out: is empty'),
        (['doctor', '--dir', ''], '--dir: is empty'),
        (['plot', 'none', '--out', ''], '--out: is empty'),
        (['plot', 'none', ''], 'run: is empty'),
        (['evaluate', ''], 'run: is empty'),
        (['generate', '', 'x'], 'model: is empty'),
        (['reward', 'evaluate', ''], 'reward: is empty'),
        (['reward', 'evaluate', 'none', '--on', ''], '--on: is empty'),
        (['label', ''], 'run: is empty'),
        (['label', 'none', '--host', ''], '--host: is empty'),
    ],
)
def test_options_out_of_bounds(capsys, arguments, what):
    assert what in said(capsys, *arguments)


@pytest.mark.parametrize(
    ('home', 'cache', 'wanted'),
    [
        ('{}/h', '{}/c', '{}/c'),
        ('{}/h', '', '{}/h/.cache'),
        ('{}/h', 'here', None),
        ('here', '', None),
        ('{}/h', '{}/file', None),
        ('{}/file', '', None),
        ('{}/closed', '', None),
    ],
)
def test_compiled_programs_are_kept_where_the_user_has_a_cache(
    tmp_path, monkeypatch, capsys, home, cache, wanted
):
    (tmp_path / 'file').touch()
    (tmp_path / 'closed').mkdir(mode=0o500)
    if home.endswith('closed') and os.geteuid() == 0:
        pytest.skip('root writes anywhere')
    monkeypatch.setenv('HOME', home.format(tmp_path))
    monkeypatch.setenv('XDG_CACHE_HOME', cache.format(tmp_path))
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '')
    del os.environ['JAX_COMPILATION_CACHE_DIR']  # Put back at the end.
    said(capsys, 'plot', str(tmp_path))
    kept = os.environ.get('JAX_COMPILATION_CACHE_DIR')
    assert kept == (wanted and str(kept_in(Path(wanted.format(tmp_path)))))


def test_programs_are_kept_by_processor_and_cores(tmp_path, monkeypatch):
    """JAX's own keys are the same for all of them."""
    monkeypatch.setattr(processor, 'CPUINFO', tmp_path / 'cpuinfo')
    kinds = [processor.kind()]
    for flags in ('avx2', 'avx2 avx512f'):
        for cores in (1, 2):
            monkeypatch.setattr(os, 'sched_getaffinity', lambda _, n=cores: range(n), raising=False)
            cpu = 'model name\t: A\nflags\t\t: {}\ncpu MHz\t\t: {}\n'
            for mhz in (1000, 2000):  # Which is another at each moment.
                processor.CPUINFO.write_text(cpu.format(flags, mhz), encoding='utf-8')
                kinds.append(processor.kind())
    assert kinds[1::2] == kinds[2::2]
    assert len(set(kinds)) == 5


def kept_in(cache):
    """Where programs are in a user's cache."""
    return cache / 'sail_jax/programs' / processor.kind()


HALF_WRITTEN = """
import pathlib, sys
from sail_jax import program_cache
program_cache.use()
import jax
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
print(jax.jit(lambda x: x + 1)(1))
"""


def test_compiled_programs_that_were_half_written_are_replaced(tmp_path):
    """JAX would warn of them in every process, and compile them in every one."""
    kept = {k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'}
    kept |= {'XDG_CACHE_HOME': str(tmp_path), 'PYTHONPATH': str(ROOT)}

    def run():
        command = [sys.executable, '-c', HALF_WRITTEN]
        done = subprocess.run(command, env=kept, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ('2\n', '')
        return {x.name: x.read_bytes() for x in kept_in(tmp_path).glob('*-cache')}

    whole = run()
    assert whole
    for name, content in whole.items():
        (kept_in(tmp_path) / name).write_bytes(content[: len(content) // 2])
    assert {name: len(x) for name, x in run().items()} == {k: len(x) for k, x in whole.items()}


@pytest.mark.parametrize('own', [True, False])
@pytest.mark.parametrize('what', ['reading', 'writing'])
def test_programs_that_cannot_be_kept_are_one_line(tmp_path, monkeypatch, capsys, own, what):
    """JAX would warn of each; an entry that cannot be deleted (here a directory) ends nothing."""
    cache = kept_in(tmp_path)
    (cache / 'jit_f-0-cache').mkdir(parents=True)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path if own else tmp_path / 'other'))
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(cache))
    program_cache._warn_once.cache_clear()
    with warnings.catch_warnings():
        program_cache.use()
        for name in 'fgh':
            entry = f"persistent compilation cache entry for 'jit_{name}'"
            warnings.warn(f'Error {what} {entry}: OSError: full', stacklevel=1)
    verb = {'reading': 'read', 'writing': 'kept'}[what]
    said = f'{cache}: compiled programs cannot be {verb} there: OSError: full\n'
    assert capsys.readouterr().err == said


@pytest.mark.parametrize('command', ['plot', 'render'])
@pytest.mark.parametrize('name', ['there', 'there/', 'new/', 'new/.', '.', '..', '/'])
def test_a_directory_is_no_file_to_write(tmp_path, monkeypatch, capsys, command, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'there').mkdir()
    assert f"--out: '{name}' is a directory; name a file in it" in said(
        capsys, command, 'none', '--out', name
    )
    assert [path.name for path in tmp_path.rglob('*')] == ['there']


@pytest.mark.parametrize('name', ['plot', 'plot.', 'a.b/plot', 'plot.png', 'plot.svg', 'plot.PDF'])
def test_a_plot_lies_where_it_was_asked_for(tmp_path, name):
    out = tmp_path / name
    out.parent.mkdir(exist_ok=True)
    rows = [{'env_steps': x, 'labels': x, 'wall_s': x, 'eval/return': x} for x in (0.0, 1.0)]
    plots.draw_all([Curve('run', ControlRun(), rows)]).write(out)
    assert [path for path in tmp_path.rglob('*') if path.is_file()] == [out]
    if out.suffix in ('', '.png'):
        assert matplotlib.image.imread(out).shape[1] > 1000


def test_a_run_that_is_named_twice_is_drawn_once(tmp_path):
    whole = ControlRun(seeds=2)
    for directory, run in (
        (tmp_path / 'sweep', whole),
        *((tmp_path / 'sweep' / member.name, member.run) for member in Members.of(whole).each),
        (tmp_path / 'again', ControlRun(seed=1)),
    ):
        directory.mkdir()
        configfile.write(run, directory / 'config.yaml')
        row = {'step': 0, 'env_steps': 0, 'labels': 0, 'wall_s': 1, 'eval/return': run.seed}
        (directory / 'metrics.jsonl').write_text(json.dumps(row) + '\n')
    (tmp_path / 'link').symlink_to('sweep')

    def names(*directories):
        curves, refused = load_all([tmp_path / name for name in directories])
        assert not refused
        return [name for name, _ in group_by_settings(curves)]

    assert names('sweep') == ['sweep (2 seeds)']
    assert names('sweep', 'sweep/seed-0', 'link', 'sweep') == ['sweep (2 seeds)']
    assert names('again', 'again/../again') == ['again']
    assert names('sweep', 'again') == ['sweep (3 runs)']


def test_a_plot_of_a_format_that_there_is_not(tmp_path):
    rows = [{'env_steps': 0, 'labels': 0, 'wall_s': 0, 'eval/return': 0}]
    with pytest.raises(UserError, match=r'plot\.xyz: .*not supported'):
        plots.draw_all([Curve('run', ControlRun(), rows)]).write(tmp_path / 'plot.xyz')


LONG, BYTES = 'n' * 300, 'a\udcffb'
COMMANDS = [
    ['train', '{}'],
    ['train', QUICKSTART, '--env.name', '{}'],
    ['train', QUICKSTART, '--env.backend', '{}'],
    ['train', 'configs/bandit/landscape.yaml', '--problems.path', '{}'],
    ['train', 'configs/language/sft.yaml', '--model.path', '{}'],
    ['train', 'configs/language/qwen2.5-0.5b-ultrafeedback.yaml', '--model.path', '{}'],
    ['evaluate', '{}'],
    ['plot', '{}'],
    ['render', '{}'],
    ['export', '{}', 'out'],
    ['generate', '{}', 'a prompt'],
    ['{}'],
]


@pytest.mark.parametrize('command', COMMANDS, ids=' '.join)
@pytest.mark.parametrize('name', [LONG, BYTES, 'x/' * 3000, '/proc/self/mem', 'a\nb'])
def test_names_that_cannot_be(tmp_path, monkeypatch, capsys, command, name):
    root = Path.cwd()
    monkeypatch.chdir(tmp_path)
    where = [str(root / x) if x.startswith('configs/') else x.format(name) for x in command]
    if command[0] == 'train':
        where += ['--run-dir', str(tmp_path / 'run')]
    text = said(capsys, *where)
    if name == BYTES:
        assert text.startswith(r"not UTF-8: 'a\udcffb'")
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def test_prompts_that_are_no_utf8(capsys):
    assert said(capsys, 'generate', 'none', 'fine', BYTES).startswith("not UTF-8: 'a\\udcffb'")


@pytest.mark.parametrize('name', ['', 'a\0b', BYTES, LONG])
def test_run_directories_that_cannot_be(tmp_path, name):
    run = ControlRun.model_validate(SETTINGS)
    where = str(tmp_path / name) if name else ''
    for resume in (False, True):
        with pytest.raises(UserError) as caught:
            sail_jax.train(run, where, env=Point(), resume=resume, quiet=True)
        str(caught.value).encode()
        assert '\n' not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_whether_there_is_something_is_not_asked_of_an_impossible_name(tmp_path):
    assert files.exists(tmp_path)
    assert not files.exists(tmp_path / 'none')
    with pytest.raises(UserError, match='File name too long'):
        files.exists(tmp_path / LONG)


def test_every_number_among_the_options_has_bounds(monkeypatch):
    # What argparse would hand to int or float itself takes other scripts' digits and any size.
    types = []
    add = argparse.ArgumentParser.add_argument

    def note(parser, *names, **given):
        types.append(given.get('type'))
        return add(parser, *names, **given)

    monkeypatch.setattr(argparse.ArgumentParser, 'add_argument', note)
    for arguments in (['fly'], ['train', 'none.yaml']):
        cli.main(arguments)
    assert len(types) > 20
    assert not {int, float} & set(types)


@pytest.mark.parametrize('name', ['plot.png', 'plot.pdf', 'plot.svg', 'plot.eps', 'plot.jpg'])
@pytest.mark.parametrize('size', [0, 1000, 4096])
def test_a_plot_that_the_disk_does_not_take_is_one_line(tmp_path, name, size):
    rows = [{'env_steps': x, 'labels': x, 'wall_s': x, 'eval/return': x} for x in (0.0, 1.0)]
    curves = [Curve('run', ControlRun(), rows)]
    with disk_of(size), pytest.raises(UserError, match=rf'^{tmp_path}/{name}: File too large$'):
        plots.draw_all(curves).write(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_is_written_and_stays(tmp_path):
    with pytest.raises(UserError, match=r'^/dev/full: No space left on device$'):
        files.write(Path('/dev/full'), b'text')
    assert Path('/dev/full').exists()
    (tmp_path / 'file').symlink_to(tmp_path / 'there')
    files.write(tmp_path / 'file', b'text')
    assert (tmp_path / 'there').read_bytes() == b'text'
