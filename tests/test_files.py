"""Files from untrusted places: what is no file, too large or leads elsewhere is one line."""

import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
import yaml

import sail_jax
from sail_jax import configfile, files
from sail_jax.control.config import ControlRun
from sail_jax.errors import UserError
from sail_jax.language.model import weights
from sail_jax.sweep import Members
from sail_jax.training import rundir
from tests.support.disk import disk_of
from tests.support.paths import ROOT
from tests.support.toy import SETTINGS, Point

QUICKSTART = ROOT / 'configs' / 'quickstart.yaml'


def refuse(message, call, *arguments, **keywords):
    with pytest.raises(UserError, match=message) as caught:
        call(*arguments, **keywords)
    assert '\n' not in str(caught.value)


def test_a_regular_file_of_at_most_so_many_bytes_is_read(tmp_path):
    path, link = tmp_path / 'file', tmp_path / 'link'
    path.write_bytes(b'1234')
    link.symlink_to('file')
    assert files.read(path, 4) == files.read(link, 4) == b'1234'
    refuse(r'file: over 3 bytes; at most that', files.read, path, 3)
    os.truncate(path, 2**33)
    refuse(r'file: over 4 bytes', files.read, path, 4)


@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='no /proc')
def test_a_file_that_is_larger_than_it_says():
    assert Path('/proc/self/maps').stat().st_size == 0
    refuse('over 10 bytes', files.read, Path('/proc/self/maps'), 10)
    assert len(files.read(Path('/proc/self/maps'), 2**24)) > 10


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / 'pipe')  # To open it would wait for a writer.
    (tmp_path / 'zero').symlink_to('/dev/zero')
    for path in (tmp_path / 'pipe', tmp_path / 'zero', tmp_path):
        refuse(f'^{path}: not a regular file', files.read, path, 10)
    for path in (tmp_path / 'pipe', tmp_path / 'zero'):
        refuse('not a regular file', weights.open_safetensors, path, ExitStack())
    refuse('No such file', files.read, tmp_path / 'none', 10)
    refuse('null', files.read, Path('a\0b'), 10)


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (
            b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n',
            'a Git LFS pointer',
        ),
        (b'\xef\xbb\xbf\n <!DOCTYPE html>\n<html>', 'an HTML page'),
        (b'<HTML lang="en">', 'an HTML page'),
    ],
)
@pytest.mark.parametrize('call', [files.check, lambda path: files.read(path, 2**20)])
def test_what_was_saved_in_the_place_of_a_file_is_named(tmp_path, call, content, said):
    (tmp_path / 'file').write_bytes(content)
    refuse(f'file: {said} in the place of the file', call, tmp_path / 'file')


def test_only_regular_files_are_left_to_libraries(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'zero').symlink_to('/dev/zero')
    for name in ('pipe', 'zero', '.'):
        refuse('not a regular file', files.check, tmp_path / name)
        refuse('not a regular file', files.digest, tmp_path / name)
    refuse('No such file', files.check, tmp_path / 'none')
    refuse('null', files.check, tmp_path / 'a\0b')


def test_what_cannot_be_opened_for_writing_stays_as_it_is(tmp_path):
    program = Path(shutil.copy('/bin/sleep', tmp_path / 'program'))
    content = program.read_bytes()
    with subprocess.Popen([program, '60']) as running:
        refuse('Text file busy', files.write, program, b'another')
        running.kill()
    assert program.read_bytes() == content


def test_a_file_that_is_there_stays_until_another_is_whole(tmp_path):
    path, linked = tmp_path / 'file', tmp_path / 'linked'
    path.write_bytes(b'old')
    path.chmod(0o640)
    with disk_of(100):
        refuse('File too large', files.write, path, bytes(101))
    assert path.read_bytes() == b'old'
    files.write(path, bytes(101))
    assert path.read_bytes() == bytes(101)
    assert path.stat().st_mode & 0o777 == 0o640
    linked.hardlink_to(path)
    files.write(linked, b'new')
    assert path.read_bytes() == b'new'
    assert sorted(tmp_path.iterdir()) == [path, linked]


def test_the_directory_of_what_is_written_is_made(tmp_path):
    files.write(tmp_path / 'a' / 'b' / 'file', b'1')
    assert (tmp_path / 'a' / 'b' / 'file').read_bytes() == b'1'
    refuse('file/c: File exists', files.write, tmp_path / 'a' / 'b' / 'file' / 'c', b'2')


def test_a_tilde_that_no_shell_has_read_makes_no_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', '/home/ann')
    run = ControlRun.model_validate(SETTINGS)
    said = '^~/run: only a shell reads ~ as a home directory; write /home/ann/run$'
    refuse(said, sail_jax.train, run, '~/run', env=Point(), quiet=True)
    refuse('write /home/ann$', files.write, Path('~/plot.png'), b'')
    refuse('write /home/ann/a$', files.new_directory(Path('~/a/b')).__enter__)
    files.write(Path('~b/plot.png'), b'')  # Nobody's.
    assert [path.name for path in tmp_path.iterdir()] == ['~b']


def test_lines_are_of_bounded_length_and_of_a_regular_file(tmp_path, monkeypatch):
    path = tmp_path / 'lines'
    path.write_bytes(b'one\n' + b'x' * 50 + b'\n' + b'12345\n' + b'12345')
    assert list(files.lines(path, 6)) == [b'one\n', b'x' * 7, b'12345\n', b'12345']
    os.mkfifo(tmp_path / 'pipe')
    for other in (tmp_path / 'pipe', tmp_path, Path('/dev/zero')):
        refuse('not a regular file', list, files.lines(other, 6))
    refuse('No such file', list, files.lines(tmp_path / 'none', 6))
    os.truncate(path, 2**40)
    refuse('over 17179869184 bytes', list, files.lines(path, 6))


@pytest.mark.parametrize(
    'deep',
    ['[' * 1000, '{a: ' * 1000, 'a:\n- ' + '- ' * 1000 + '1', '? ' * 1000 + 'a', '[' * (5 * 10**5)],
)
def test_deeply_nested_yaml_is_refused_before_it_takes_time(tmp_path, deep):
    path = tmp_path / 'deep.yaml'
    path.write_text(f'b: {deep}' if deep[0] in '[{' else deep)
    refuse('deep.yaml: not valid YAML: line [12]: nested over 32 deep', configfile.read_yaml, path)
    path.write_text(f'a: {"[" * 30}{"]" * 30}')
    assert configfile.read_yaml(path)[0]['a']


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('a: 1\n? [b, c]\n: 2', 'line 2: a sequence as key; expected text'),
        ('a: [{? {b: c} : 2}]', 'line 1: a mapping as key'),
        ('a: [{b: 1, b: 2}]', "line 1: second 'b'"),
        (f'\nseed: {"9" * 5000}', 'line 2: an integer of 5000 digits; at most 1000'),
        (f'seed: [0x{"f" * 5000}]', 'line 1: an integer of 5002 digits'),
        ('seed: !!bool x', 'a value is not what its tag says'),
        ('seed: !!timestamp x', 'a value is not what its tag says'),
        ('seed: !!int x', 'invalid literal'),
        ('seed: !!binary x', 'base64'),
    ],
)
def test_yaml_that_python_has_no_value_for_is_one_line(tmp_path, text, said):
    path = tmp_path / 'odd.yaml'
    path.write_text(text)
    refuse(f'odd.yaml: not valid YAML: .*{said}', configfile.read_yaml, path)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_a_configuration_by_any_editor(tmp_path, encoding, end):
    """Also what PowerShell's `>` writes."""
    path = tmp_path / 'config.yaml'
    mark = '\ufeff' if encoding in ('utf-16-le', 'utf-16-be') else ''
    path.write_bytes(f'{mark}seed: 3{end}env:{end}  name: "\u00e9"{end}'.encode(encoding))
    run = sail_jax.load(path)
    assert (run.seed, run.env.name) == (3, '\u00e9')


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('objective.beta: 0.2', r'objective.beta: a dotted name; write it as objective: \{beta: '),
        (
            'objective.mixture.dpr: 1',
            r'objective.mixture.dpr: a dotted name; .* objective: \{mixture: \{dpr: VALUE\}\}',
        ),
        ('objective:', 'objective: a section; expected .*, got nothing; leave it out for its'),
        ('objective: [beta, 0.2]', 'objective: a section; expected keys and values'),
        ('objective.bata: 0.2', 'unknown key objective.bata; did you mean objective.beta'),
    ],
)
def test_keys_that_are_written_another_way_are_named(tmp_path, text, said):
    path = tmp_path / 'config.yaml'
    path.write_text(text)
    refuse(f'config.yaml:1: {said}', sail_jax.load, path)


@pytest.mark.parametrize('text', ['', '\n', '# seed: 1\n', '---\n', '\ufeff', '~'])
def test_an_emptied_configuration_of_a_run_is_not_the_default_one(tmp_path, text):
    path = tmp_path / 'config.yaml'
    path.write_text(text)
    assert sail_jax.load(path) == ControlRun()
    (tmp_path / 'checkpoints').mkdir()
    refuse('config.yaml: empty, though a run', sail_jax.load, path)


def test_a_number_that_python_does_not_write_is_refused_from_python():
    refuse(
        'seed: should be less than .* got too many digits', sail_jax.load, QUICKSTART, seed=10**5000
    )


def test_a_new_directory_is_there_whole_or_not_at_all(tmp_path):
    foreign = tmp_path / 'out.partial'
    foreign.mkdir()
    (foreign / 'keep').touch()
    path = tmp_path / 'deep' / 'out'
    with files.new_directory(path) as inside:
        (inside / 'a').touch()
        assert not path.exists()
    assert [file.name for file in path.iterdir()] == ['a']
    usual = tmp_path / 'usual'
    usual.mkdir()
    assert path.stat().st_mode == usual.stat().st_mode

    def fail():
        with files.new_directory(tmp_path / 'out') as inside:
            (inside / 'a').touch()
            raise UserError('stopped')

    refuse('stopped', fail)
    assert sorted(file.name for file in tmp_path.iterdir()) == ['deep', 'out.partial', 'usual']
    assert (foreign / 'keep').exists()
    (tmp_path / 'dangling').symlink_to('nowhere')
    for taken in (path, tmp_path / 'dangling'):
        refuse('exists; name a new directory', files.new_directory(taken).__enter__)
    refuse('keep: File exists', files.new_directory(foreign / 'keep' / 'out').__enter__)


NOT_READ_AGAIN = ['lr=[1e-3]', '[0]', 'a[!b]/run', 'a*', 'is it?', 'back\\slash', 'gs://bucket/run']


@pytest.mark.parametrize('name', NOT_READ_AGAIN)
def test_a_directory_whose_checkpoints_could_not_be_read_again_is_refused(name, run, tmp_path):
    for resume in (False, True):
        claim = rundir.claimed(run, tmp_path / name, resume)
        refuse('in the path|is no local directory', claim.__enter__)
    assert not any(tmp_path.iterdir())


def test_a_current_directory_that_is_gone_is_said(run, tmp_path, monkeypatch):
    (tmp_path / 'gone').mkdir()
    monkeypatch.chdir(tmp_path / 'gone')
    (tmp_path / 'gone').rmdir()
    claim = rundir.claimed(run, Path('runs/new'), False)
    refuse('runs/new: the current directory is gone', claim.__enter__)
    refuse('current directory is gone', lambda: files.write(Path('plot.png'), b''))
    refuse('current directory is gone', files.new_directory(Path('export')).__enter__)
    files.write(tmp_path / 'plot.png', b'')


ODD_NAMES = ['a\nb {} %s $x #;', '-rf', 'a:', '12:30', 'é 中 🙂.tmp', '~', '\'"|&']


@pytest.mark.parametrize('name', ODD_NAMES)
def test_checkpoints_of_a_directory_with_an_odd_name_are_read(name, run, tmp_path):
    with rundir.claimed(run, tmp_path / name, False):
        pass
    path = tmp_path / name / 'checkpoints'
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, {'a': jnp.arange(3)})
        checkpointer.wait_until_finished()
        assert checkpointer.restore(path)['a'].tolist() == [0, 1, 2]


@pytest.fixture
def run():
    return ControlRun.model_validate(SETTINGS)


@pytest.fixture
def run_dir(run, tmp_path):
    """As a run leaves it that was killed before its first update."""
    rundir.claim_run_dir(run, tmp_path / 'run', resume=False)
    return tmp_path / 'run'


@pytest.fixture
def outside(tmp_path):
    """What is somebody else's, and must stay as it is."""
    (tmp_path / 'outside' / '5').mkdir(parents=True)
    (tmp_path / 'outside' / 'metrics.jsonl').write_text('{"step": 0}\n')
    return tmp_path / 'outside'


@pytest.mark.parametrize(
    ('entry', 'target'),
    [
        ('checkpoints', '../outside'),
        ('checkpoints/references', '../../outside'),
        ('tensorboard', '../outside'),
        ('model', '../outside'),
        ('wandb', '../outside'),
        ('config.part', '../outside/metrics.jsonl'),
        ('metrics.part', '../outside/metrics.jsonl'),
        ('metrics.jsonl', '../outside/new.jsonl'),
        ('a', 'a'),
    ],
)
def test_resume_does_not_follow_links_out_of_the_run_directory(
    run, run_dir, outside, entry, target
):
    link = run_dir / entry
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target)
    said = f'^{link}: a link that leads out of {run_dir}'
    refuse(said, sail_jax.train, run, run_dir, resume=True, env=Point(), quiet=True)
    assert sorted(path.name for path in outside.rglob('*')) == ['5', 'metrics.jsonl']
    assert (outside / 'metrics.jsonl').read_text() == '{"step": 0}\n'


def test_resume_does_not_follow_a_linked_member_of_a_sweep(tmp_path, outside):
    run = ControlRun.model_validate(SETTINGS | {'seeds': 2})
    rundir.claim_run_dir(run, tmp_path / 'run', resume=False)
    link = tmp_path / 'run' / Members.of(run).each[1].name
    link.symlink_to(outside)
    refuse(f'^{link}: a link', rundir.claim_run_dir, run, tmp_path / 'run', resume=True)


def test_links_that_stay_inside_do_not_keep_a_run_from_going_on(run, run_dir, tmp_path, outside):
    """What W&B leaves is among them; its earlier sessions link to logs in its cache."""
    session = run_dir / 'wandb' / 'run-1' / 'logs'
    session.mkdir(parents=True)
    (session / 'debug-core.log').symlink_to(outside / 'core.log')
    (run_dir / 'wandb' / 'latest-run').symlink_to('run-1')
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.symlink_to('run')
    rundir.claim_run_dir(run, elsewhere, resume=True)

    named = tmp_path / 'wandb'
    shutil.copytree(run_dir, named, symlinks=True)
    shutil.rmtree(named / 'wandb')
    (named / 'checkpoints').mkdir()
    (named / 'checkpoints' / 'references').symlink_to(outside)
    refuse('references: a link', rundir.claim_run_dir, run, named, resume=True)


@pytest.mark.parametrize('linked', [False, True])
def test_a_run_killed_before_it_had_its_configuration_is_started_anew(
    run, tmp_path, outside, linked
):
    part = tmp_path / 'run' / 'config.part'
    part.parent.mkdir()
    if linked:
        part.symlink_to(outside / 'metrics.jsonl')
    else:
        part.write_text('seed: 0\ntotal_')
    refuse('no run to resume', rundir.claim_run_dir, run, part.parent, resume=True)
    rundir.claim_run_dir(run, part.parent, resume=False)
    assert [path.name for path in part.parent.iterdir()] == ['config.yaml']
    assert yaml.safe_load((part.parent / 'config.yaml').read_text()) == yaml.safe_load(
        configfile.to_yaml(run)
    )
    assert (outside / 'metrics.jsonl').read_text() == '{"step": 0}\n'
    part.write_text('')
    refuse('exists already', rundir.claim_run_dir, run, part.parent, resume=False)
