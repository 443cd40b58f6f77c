"""Digests of the files that a run reads, so that it is resumed on the same ones or not at all.

Of data every byte counts. Of a model, the files that say what it is and how its text becomes ids;
and its weights, of which `files.digest` takes blocks spread evenly: enough to tell other weights,
which differ everywhere, not to find a single bit.
"""

import hashlib
from pathlib import Path

from sail_jax import files, hub
from sail_jax.language.config import LanguageRun
from sail_jax.language.data import sources, template, tokens
from sail_jax.language.model import lora
from sail_jax.language.sft.config import SftRun
from sail_jax.language.supervised.config import SupervisedRun

MODEL_FILES = ('tokenizer.json', 'chat_template.jinja', *tokens.COMPANIONS)
ABSENT = ''


def of_run(run: LanguageRun | SupervisedRun) -> dict[str, str]:
    """Digests by the key of the configuration and the file.

    Raises:
      UserError: a file that cannot be read.
    """
    digests, held_out = {}, run.evaluation
    if run.model.path is not None:
        digests |= of_model('model.path', run.model.path)
    if run.model.adapter is not None:
        digests |= of_adapter('model.adapter', run.model.adapter)
    if isinstance(run, SftRun) and run.model.tokenizer is not None:
        digests |= of_model('model.tokenizer', run.model.tokenizer)
    if isinstance(run, LanguageRun):
        for key, source in run.sources.items():
            for number, path in enumerate(source.paths):
                index = f'[{number}]' if len(source.paths) > 1 else ''
                digests |= of_model(f'{key}.path{index}', path)
    digests['data.path'] = of_data(run.data.path, run.data.split)
    if held_out.path is not None or held_out.split is not None:
        path, split = held_out.path or run.data.path, held_out.split or 'test'
        digests['evaluation.path'] = of_data(path, split)
    return digests


def of_model(key: str, path: Path) -> dict[str, str]:
    """Of a directory's files. One that may be missing and is, is `ABSENT`; weights that are gone
    are left out: whoever needs them says so."""
    digests, path = {}, hub.local(path, hub.MODEL)
    for name in MODEL_FILES:
        file = path / name
        digests[f'{key}: {name}'] = files.digest(file) if file.exists() else ABSENT
    named = [
        f'{file.name} {files.digest(file)}'
        for file in sorted(path.glob(f'{template.MORE_TEMPLATES}/*.jinja'))
    ]
    digests[f'{key}: {template.MORE_TEMPLATES}'] = _of_all(named) if named else ABSENT
    for file in sorted(path.glob('*.safetensors')):
        digests[f'{key}: {file.name}'] = files.digest(file)
    return digests


def of_adapter(key: str, path: Path) -> dict[str, str]:
    """Of the two files of an adapter of PEFT's."""
    path = hub.local(path, hub.MODEL)
    return {f'{key}: {name}': files.digest(path / name) for name in (lora.CONFIG, lora.WEIGHTS)}


def of_data(path: str, split: str) -> str:
    """Of all files of a data set's split, where they lie excepted."""
    return _of_all([files.digest(file, whole=True) for file in sources.find(path, split)])


def _of_all(parts: list[str]) -> str:
    return hashlib.sha256(' '.join(parts).encode()).hexdigest()[: files.DIGITS]
