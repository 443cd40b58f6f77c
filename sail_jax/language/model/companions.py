"""The files that lie in a checkpoint beside its configuration and weights: tokeniser, template."""

from pathlib import Path

from sail_jax import files
from sail_jax.errors import UserError
from sail_jax.language.data.tokens import MAX_TOKENIZER

MAX_COMPANIONS = 2**30
"""Bytes that are copied beside configuration and weights."""
# Files that speak of other weights than an export's.
FOREIGN_COMPANIONS = (
    'adapter_config.json',
    'quantize_config.json',
    'quant_config.json',
    'quantization_config.json',
    'hf_quant_config.json',
)


def copy(source: Path, to: Path) -> None:
    """Copies the files that lie in a checkpoint beside its configuration and weights. A tokeniser's
    `auto_map`, which names code that is not copied, is left out.

    Raises:
      UserError: they are absurdly large, or cannot be read.
    """
    companions = [file for file in sorted(source.iterdir()) if _is_companion(file)]
    if (size := sum(file.stat().st_size for file in companions)) > MAX_COMPANIONS:
        raise UserError(
            f'{source}: {size} bytes in files beside the weights ({companions[0].name}, ...); '
            f'at most {MAX_COMPANIONS}'
        )
    for file in companions:
        (to / file.name).write_bytes(files.read(file, MAX_TOKENIZER))
    config = to / 'tokenizer_config.json'
    if config.exists() and 'auto_map' in (data := files.read_json(config)):
        del data['auto_map']
        files.write_json(config, data)


def _is_companion(file: Path) -> bool:
    apart = file.name in ('config.json', *FOREIGN_COMPANIONS) or file.name.endswith('.index.json')
    is_text = file.suffix in ('.json', '.jinja', '.model', '.txt')
    return is_text and not apart and file.is_file()  # Neither devices nor pipes, by link or itself.
