"""What a new host is told."""

import secrets
import tempfile

import jax
import pytest

from sail_jax import cli, doctor


def test_a_good_host(tmp_path, capsys):
    assert cli.main(['doctor', '--dir', str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    seen = ('versions', 'devices', 'memory of a device', 'memory of the host', 'mesh')
    for what in (*seen, 'collective', 'randomness', 'checkpoint'):
        assert f'ok      {what}' in printed
    assert f'jax {jax.__version__}' in printed
    assert not list(tmp_path.iterdir())


def test_what_lies_in_the_directory_is_left_alone(tmp_path):
    for name in ('doctor', 'doctor-00000000'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'notes').write_text('mine')
    assert all(finding.well for finding in doctor.examine(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['doctor', 'doctor-00000000']
    assert all((path / 'notes').read_text() == 'mine' for path in tmp_path.iterdir())


def test_a_name_that_is_taken_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(secrets, 'randbits', lambda bits: 0)
    (tmp_path / 'doctor-00000000').write_text('mine')
    found = {finding.what: finding for finding in doctor.examine(tmp_path)}
    assert found['checkpoint'].answer.endswith('/doctor-00000000 is there already')
    assert not found['checkpoint'].well
    assert (tmp_path / 'doctor-00000000').read_text() == 'mine'


def test_nothing_is_left_in_the_temporary_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    assert all(finding.well for finding in doctor.examine())
    assert not list(tmp_path.iterdir())


def test_a_directory_that_takes_no_checkpoint(tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    assert cli.main(['doctor', '--dir', str(tmp_path / 'file')]) == 1
    assert 'FAILED  checkpoint' in capsys.readouterr().out


def test_other_random_numbers_are_noticed():
    jax.config.update('jax_default_prng_impl', 'rbg')
    try:
        found = {finding.what: finding for finding in doctor.examine()}
    finally:
        jax.config.update('jax_default_prng_impl', 'threefry2x32')
    assert not found['randomness'].well


@pytest.mark.parametrize('more', [['--distributed'], ['--process-id', '0']])
def test_several_processes_need_a_shared_directory(more, capsys):
    assert cli.main(['doctor', *more]) == 2
    assert capsys.readouterr().err.startswith('sail-jax: ')
