"""What a signal ends in the middle of writing leaves nothing of it behind."""

import signal
from pathlib import Path

import pytest

from sail_jax import files, hub


def _write(directory):
    files.write(directory / 'file', b'1')


def _new_directory(directory):
    with files.new_directory(directory / 'new') as part:
        part.rename(directory / 'new.elsewhere')


def _upload(directory):
    with hub.new_version('hf://me/model', directory) as part:
        part.mkdir()
        part.rename(part.parent / 'elsewhere')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize('write', [_write, _new_directory, _upload])
def test_what_a_signal_ends_leaves_no_part(tmp_path, monkeypatch, write, number):
    def signalled(*_arguments):
        assert signal.getsignal(number) is not signal.SIG_DFL, 'it would end the tests'
        signal.raise_signal(number)

    monkeypatch.setattr(Path, 'rename', signalled)
    monkeypatch.setattr(Path, 'replace', signalled)
    monkeypatch.setattr('huggingface_hub.create_repo', lambda *_arguments, **_named: None)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended:
            write(tmp_path)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert ended.value.code == 128 + number
    assert list(tmp_path.iterdir()) == []
